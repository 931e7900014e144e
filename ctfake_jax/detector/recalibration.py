"""The task `recalibrate`: a detector fitted to another site's own real images, no labels needed.

The network stays; the threshold is set anew from the site's reals. Before that the site is
compared with what the detector learnt from, and its images with each other: an alarm says that the
reals look unlike the old ones (drift), or that some of them score unlike the rest (planted fakes?).
"""

import dataclasses
import shutil
from pathlib import Path

import ml_collections
import numpy as np
import scipy.stats
from scipy.spatial.distance import cdist

from ctfake_jax import controls
from ctfake_jax import workdir as workdir_lib
from ctfake_jax.data import splits
from ctfake_jax.data.pipeline import gather
from ctfake_jax.detector import calibration, directory
from ctfake_jax.detector.directory import Detector
from ctfake_jax.predict import open_input
from ctfake_jax.types import UserError

ALARM = 0.01  # p-value
PERMUTATIONS = 500
# A score so many robust standard deviations above the median does not belong to the rest.
OUTLYING = 5.0
OUTLIERS_ALLOWED = 0.01


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
  """Reads the site's reals in `config.input`, leaves a detector directory in the workdir."""
  old = directory.load(Path(config.detector))
  if workdir.resolve() == Path(config.detector).resolve():
    raise UserError(f'--workdir={workdir} is the old detector: choose another one')
  source = open_input(Path(config.input), config.data.max_pixels)
  images = gather(source, old.view, labelled=False)
  if images.unit != old.unit:
    raise UserError(
      f'config.input = {config.input}: {images.unit} values, the detector learnt from '
      f'{old.unit} values; give images of the same form'
    )
  _, groups = splits.group(images, old.config.split)
  pixels = controls.through_png(np.asarray(images.images))
  new, results = recalibrate(old, pixels, groups, config)
  results['unreadable'] = [{'path': e.path, 'reason': e.reason} for e in images.unreadable]
  _copy_network(Path(config.detector), workdir)
  directory.save(
    new, workdir, {**directory.figures(Path(config.detector)), 'recalibration': results}
  )
  workdir_lib.write_json(workdir / 'results.json', results)
  for name, alarm in results['alarms'].items():
    if alarm['raised']:
      print(f'ALARM, {name}: {alarm["says"]}')
  return results


def recalibrate(
  old: Detector, images: np.ndarray, groups: np.ndarray, config: ml_collections.ConfigDict
) -> tuple[Detector, dict]:
  """From reals f32[n, h, w, 1] of another site in groups int[n]; the new detector and figures."""
  found = old.examine(images, config.prior_fake)
  one = calibration.one_per_group(np.arange(len(images)), groups, config.seed)
  scores, features = found['score'][one], found['features'][one]
  threshold = calibration.conformal_threshold(scores, config.detection.false_alarm_rate)
  results = {
    'images': len(images),
    'groups': len(one),
    'before': {
      'threshold': old.threshold.value,
      'false_alarms': float(found['alarm'].mean()),
      'verdicts': {
        name: float((found['verdict'] == name).mean()) for name in ('real', 'fake', 'unsure')
      },
    },
    'threshold': dataclasses.asdict(threshold),
    'alarms': {
      'drift': drift(old.reference, features, config.seed),
      'outliers': outliers(scores),
    },
  }
  return dataclasses.replace(old, threshold=threshold, reference=features), results


def drift(reference: np.ndarray, features: np.ndarray, seed: int) -> dict:
  """Permutation test of the energy distance between two samples f[n, d], f[m, d].

  Szekely & Rizzo 2013, doi:10.1016/j.jspi.2013.03.018. Features are scaled by the reference.
  """
  scale = reference.std(0) + 1e-6
  together = np.concatenate([reference, features]) / scale
  distances = cdist(together, together)
  first = np.arange(len(together)) < len(reference)
  rng = np.random.default_rng(seed)
  seen = _energy(distances, first)
  null = [_energy(distances, rng.permutation(first)) for _ in range(PERMUTATIONS)]
  p_value = float((1 + np.sum(np.array(null) >= seen)) / (1 + PERMUTATIONS))
  return {
    'raised': p_value < ALARM,
    'p_value': p_value,
    'energy_distance': float(seen),
    'says': 'these images differ from those that the detector learnt from; its figures do not hold',
  }


def _energy(distances: np.ndarray, first: np.ndarray) -> float:
  a, b = first.astype(float), (~first).astype(float)
  a, b = a / a.sum(), b / b.sum()
  return float(2 * a @ distances @ b - a @ distances @ a - b @ distances @ b)


def outliers(scores: np.ndarray) -> dict:
  """Whether more scores f[n] than chance explains lie far above the rest (Hampel's identifier)."""
  deviation = scipy.stats.median_abs_deviation(scores, scale='normal')
  limit = np.median(scores) + OUTLYING * max(deviation, 1e-6)
  count = int((scores > limit).sum())
  test = scipy.stats.binomtest(count, len(scores), OUTLIERS_ALLOWED, alternative='greater')
  return {
    'raised': bool(test.pvalue < ALARM),
    'p_value': float(test.pvalue),
    'count': count,
    'says': f'{count} of {len(scores)} images score far above the rest; are some of them fakes?',
  }


def _copy_network(old: Path, new: Path) -> None:
  new.mkdir(parents=True, exist_ok=True)
  shutil.copytree(old / directory.NETWORK, new / directory.NETWORK, dirs_exist_ok=True)
  shutil.copyfile(old / directory.CONFIG, new / directory.CONFIG)
