"""How a detector holds when images are changed harmlessly: a sweep at its fixed threshold.

A change in the file is made to the slice at the size it is stored in, before the network's view;
what changes a whole picture alike is made to the view.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from ctfake_jax.data.preprocess import Preprocess, from_uint8, to_uint8
from ctfake_jax.data.transforms import degradations, file_degradations
from ctfake_jax.detector import training
from ctfake_jax.detector.bundle import Detector
from ctfake_jax.detector.dataset import DetectorDataset
from ctfake_jax.evaluation import metrics
from ctfake_jax.runtime import progress_bar, streams

UNCHANGED = 'unchanged'
MOST = 1000  # images, drawn at random: 33 passes over them


def _noisy(levels: np.ndarray, deviation: float) -> np.ndarray:
  return file_degradations.noisy(levels, deviation, streams.generator(0, 'robustness, noise'))


def _contrast(images: jax.Array, gain: jax.Array) -> jax.Array:
  return degradations.windowed(images, gain, 0 * gain)


def _level(images: jax.Array, offset: jax.Array) -> jax.Array:
  return degradations.windowed(images, 1 + 0 * offset, offset)


# Each change with its strengths: JPEG quality, pixels, factor of the side, deviation as a share of
# the range.
OF_STORED: dict[str, tuple[Callable, tuple[float, ...]]] = {
  'jpeg': (file_degradations.jpeg, (100, 90, 75, 60, 50, 40, 30)),
  'blur': (file_degradations.blurred, (0.5, 0.75, 1.0, 1.5, 2.0)),
  'resize': (file_degradations.resampled, (0.5, 0.75, 0.9, 1.1, 1.25, 1.5)),
  'noise': (_noisy, (0.005, 0.01, 0.025, 0.05)),
}
# Factor of the contrast, share of half the range, yes, share of the side.
OF_VIEW: dict[str, tuple[Callable, tuple[float, ...]]] = {
  'contrast': (_contrast, (0.8, 0.9, 1.1, 1.2)),
  'level': (_level, (-0.1, -0.05, 0.05, 0.1)),
  'flip': (degradations.mirrored, (1,)),
  'crop': (degradations.cropped, (0.95, 0.9, 0.8)),
}


def sweep(
  detector: Detector, shown: DetectorDataset, seed: int
) -> dict[str, list[dict[str, float]]]:
  """Rows {strength, auroc, detection, false_alarms} of each change, and of none at `unchanged`.

  Detection and false alarms are the shares of fakes and reals above the detector's threshold, of at
  most `MOST` images.
  """
  drawn = streams.generator(seed, 'robustness, drawn').permutation(len(shown))[:MOST]
  shown = shown.take(np.sort(drawn))
  measure = functools.partial(_row, detector, fake=shown.fake, groups=shown.groups)
  found = {UNCHANGED: [measure(shown.images, 0.0)]}
  for name, strength, images in progress_bar.bar(
    'harmless changes', _changed(detector.view, shown)
  ):
    found.setdefault(name, []).append(measure(images, strength))
  return found


def _changed(view: Preprocess, shown: DetectorDataset) -> Iterator[tuple[str, float, np.ndarray]]:
  """Name, strength and the images f32[n, h, w, 1] after each change, in 8 bits."""
  stored = [levels() for levels in shown.stored]
  for name, (change, strengths) in OF_STORED.items():
    for strength in strengths:
      yield name, strength, _seen(view, [change(levels, strength) for levels in stored])
  for name, (change, strengths) in OF_VIEW.items():
    for strength in strengths:
      yield name, strength, degradations.in_batches(change, shown.images, strength)


def _seen(view: Preprocess, stored: list[np.ndarray]) -> np.ndarray:
  return from_uint8(to_uint8(np.stack([view.frame(levels) for levels in stored])))


def _row(
  detector: Detector, images: np.ndarray, strength: float, fake: np.ndarray, groups: np.ndarray
) -> dict:
  scores = training.predict(detector.model, detector.variables, images)[0]
  alarm = scores > detector.threshold.value
  return {
    'strength': float(strength),
    'auroc': metrics.auroc(scores[fake], scores[~fake]),
    **metrics.share_row('detection', alarm[fake], groups[fake]),
    **metrics.share_row('false_alarms', alarm[~fake], groups[~fake]),
  }
