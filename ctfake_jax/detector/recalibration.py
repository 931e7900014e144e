"""The task `recalibrate`: a detector fitted to another site's own real images, no labels needed.

The network and how fakes differ from reals stay. The site's reals give the centre, half of the
covariance and, each as new to the others, the threshold (a jackknife: what split conformal
prediction promises, but approximately); fakes of the site are supposed to differ from them as the
old ones did from theirs, which gives p_fake. The site is compared with the reals of the detector's
making, and its images with each other: an alarm says that they look unlike those (drift), or that
some of them lie apart from the rest (planted fakes?).
"""

import dataclasses
import math
import shutil
from pathlib import Path

import ml_collections
import numpy as np
from scipy.spatial.distance import cdist

from ctfake_jax import controls, progress
from ctfake_jax import workdir as workdir_lib
from ctfake_jax.data import splits
from ctfake_jax.data.pipeline import gather
from ctfake_jax.detector import calibration, directory, discriminant
from ctfake_jax.detector.directory import Detector
from ctfake_jax.detector.discriminant import Learnt
from ctfake_jax.predict import open_input
from ctfake_jax.types import UserError

ALARM = 0.01  # p-value
PERMUTATIONS = 500
DRAWS = 200  # of old reals, that a site's are compared with
EXTREME = 0.05  # share of the reals whose distance is compared, and who are suspects


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
  records = images.records
  results['suspects'] = [records[row].provenance for row in results['suspects']]
  results['unreadable'] = [{'path': e.path, 'reason': e.reason} for e in images.unreadable]
  _copy_network(Path(config.detector), workdir)
  directory.save(new, workdir, _figures(Path(config.detector), results))
  workdir_lib.write_json(workdir / 'results.json', results)
  promised, asked = new.threshold.false_alarm_rate, config.detection.false_alarm_rate
  if promised != asked:
    print(
      f'{new.threshold.groups} independent reals (patients or near-duplicate groups) promise '
      f'{promised:.2%} false alarms, not the {asked:.2%} asked for'
    )
  for name, alarm in results['alarms'].items():
    if alarm['raised']:
      print(f'ALARM, {name}: {alarm["says"]}')
  return results


def recalibrate(
  old: Detector, images: np.ndarray, groups: np.ndarray, config: ml_collections.ConfigDict
) -> tuple[Detector, dict]:
  """From reals f32[n, h, w, 1] of another site in groups int[n]; the new detector and figures.

  `suspects` are the rows of those that score highest.
  """
  rate = calibration.nearest_rate(groups, config.detection.false_alarm_rate)
  found = old.examine(images, config.prior_fake)
  one = calibration.one_per_group(np.arange(len(images)), groups, config.seed)
  features = found['features'][one]
  # The site's reals, and the same moved as each family of fakes was.
  scores, *of_supposed = discriminant.left_out_scores(old.learnt, features, old.differences).T
  threshold = calibration.conformal_threshold(scores, rate, calibration.LEFT_OUT)
  new = dataclasses.replace(
    old,
    variables=discriminant.with_discriminant(
      old.variables, *discriminant.for_site(old.learnt, features)
    ),
    scaling=_scaling(scores, np.concatenate(of_supposed)),
    threshold=threshold,
  )
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
    'scaling': dataclasses.asdict(new.scaling),
    'alarms': {
      'drift': drift(old.reference, features, config.seed),
      'outliers': outliers(old.reference, features, old.learnt, config.seed),
    },
    'suspects': one[np.argsort(-scores)[: math.ceil(EXTREME * len(one))]].tolist(),
  }
  return new, results


def _scaling(reals: np.ndarray, fakes: np.ndarray) -> calibration.Scaling:
  fake = np.arange(len(reals) + len(fakes)) >= len(reals)
  return calibration.fit_scaling(np.concatenate([reals, fakes]), fake)


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


def outliers(reference: np.ndarray, features: np.ndarray, learnt: Learnt, seed: int) -> dict:
  """Whether some reals f[n, d] lie further towards fakes than is usual among reals f[m, d] of old.

  Compares `lopsidedness` with that of draws of as many of the old ones, of half of them at most,
  along the direction where it stands out most. Draws of a share s of the old ones vary by 1 - s of
  the variance of fresh ones, and their mean by s of it.
  """
  rng, count = np.random.default_rng(seed), min(len(features), len(reference) // 2)
  seen = lopsidedness(features, learnt)
  null = np.stack(
    [
      lopsidedness(reference[rng.choice(len(reference), count, replace=False)], learnt)
      for _ in progress.bar('planted fakes', range(DRAWS), patience=progress.PATIENCE)
    ]
  )
  center, spread = null.mean(0), null.std(0) + 1e-9
  share = count / len(reference)
  usual = ((null - center) / spread).max(1) * np.sqrt((1 + share) / (1 - share))
  p_value = float((1 + np.sum(usual >= ((seen - center) / spread).max())) / (1 + DRAWS))
  return {
    'raised': p_value < ALARM,
    'p_value': p_value,
    'lopsidedness': seen.tolist(),
    'says': 'some of these images lie apart from the rest on the side of fakes; look at `suspects`',
  }


def lopsidedness(features: np.ndarray, learnt: Learnt) -> np.ndarray:
  """How far apart the reals f[n, d] that lie furthest towards each of k families are, f[k].

  The direction is made anew of the others, for planted fakes would widen what they lie along.
  """
  found, few = [], max(1, round(EXTREME * len(features)))
  for family, direction in enumerate(learnt.directions):
    rest = features[np.argsort(features @ direction)[:-few]]
    found.append(lean(features @ discriminant.for_site(learnt, rest)[1][family], few))
  return np.array(found)


def lean(projections: np.ndarray, few: int) -> float:
  """By how much the `few` highest of f[n] are further out than the lowest are.

  In standard deviations of the lower half, which fakes above do not widen; 0 for what is symmetric.
  """
  ordered = np.sort(projections - np.median(projections))
  below = ordered[: len(ordered) // 2]
  spread = np.sqrt(np.maximum((below**2).mean(), 1e-12))
  return float((ordered[-few:].mean() + ordered[:few].mean()) / spread)


def _figures(old: Path, results: dict) -> dict:
  """Those of the making, which hold at home, apart from the new ones."""
  known = directory.figures(old)
  home = known.get('home', known)
  return {'best_step': known['best_step'], 'home': home, 'recalibration': results}


def _copy_network(old: Path, new: Path) -> None:
  new.mkdir(parents=True, exist_ok=True)
  shutil.copytree(old / directory.NETWORK, new / directory.NETWORK, dirs_exist_ok=True)
  shutil.copyfile(old / directory.CONFIG, new / directory.CONFIG)
