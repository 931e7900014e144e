"""How a detector holds when images are changed harmlessly: a sweep at its fixed threshold."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from ctfake_jax import metrics, progress, streams
from ctfake_jax.data import degrade
from ctfake_jax.detector import training
from ctfake_jax.detector.directory import Detector
from ctfake_jax.detector.exhibits import Exhibits

UNCHANGED = 'unchanged'
MOST = 1000  # images, drawn at random: 33 passes over them


def _noisy(images: jax.Array, deviation: jax.Array) -> jax.Array:
  return degrade.noisy(images, deviation, streams.key(0, 'noise'))


def _contrast(images: jax.Array, gain: jax.Array) -> jax.Array:
  return degrade.windowed(images, gain, 0 * gain)


def _level(images: jax.Array, offset: jax.Array) -> jax.Array:
  return degrade.windowed(images, 1 + 0 * offset, offset)


# Each change with its strengths: quality, pixels, factor of the side and back, share of half the
# range (deviation, offset), factor of the contrast, yes, share of the side.
SWEEP: dict[str, tuple[Callable, tuple[float, ...]]] = {
  'jpeg': (degrade.jpeg, (100, 90, 75, 60, 50, 40, 30)),
  'blur': (degrade.blur, (0.5, 0.75, 1.0, 1.5, 2.0)),
  'resize': (degrade.resized, (0.5, 0.75, 0.9, 1.1, 1.25, 1.5)),
  'noise': (_noisy, (0.01, 0.02, 0.05, 0.1)),
  'contrast': (_contrast, (0.8, 0.9, 1.1, 1.2)),
  'level': (_level, (-0.1, -0.05, 0.05, 0.1)),
  'flip': (degrade.mirrored, (1,)),
  'crop': (degrade.cropped, (0.95, 0.9, 0.8)),
}


def sweep(detector: Detector, shown: Exhibits, seed: int) -> dict[str, list[dict[str, float]]]:
  """Rows {strength, auroc, detection, false_alarms} of each change, and of none at `unchanged`.

  Detection and false alarms are the shares of fakes and reals above the detector's threshold, of at
  most `MOST` images.
  """
  drawn = streams.generator(seed, 'robustness, drawn').permutation(len(shown))[:MOST]
  shown = shown.take(np.sort(drawn))
  measure = functools.partial(_row, detector, fake=shown.fake)
  found = {UNCHANGED: [measure(shown.images, 0.0)]}
  for name, (change, strengths) in progress.bar('harmless changes', SWEEP.items()):
    found[name] = [
      measure(degrade.in_batches(change, shown.images, strength), strength)
      for strength in strengths
    ]
  return found


def _row(detector: Detector, images: np.ndarray, strength: float, fake: np.ndarray) -> dict:
  scores = training.judge(detector.model, detector.variables, images)[0]
  alarm = scores > detector.threshold.value
  return {
    'strength': float(strength),
    'auroc': metrics.auroc(scores[fake], scores[~fake]),
    'detection': float(alarm[fake].mean()),
    'false_alarms': float(alarm[~fake].mean()),
  }
