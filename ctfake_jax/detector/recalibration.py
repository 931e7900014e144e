"""The task `recalibrate`: a detector fitted to another site's own real images, no labels needed.

The network and how fakes differ from reals stay. The site's reals give the centre, half of the
covariance and the threshold (`site_adaptation`); fakes of the site are supposed to differ from them
as the old ones did from theirs, which gives p_fake. The site is compared with the reals of the
detector's making, and its images with each other: an alarm says that they look unlike those
(drift), or that some of them lie apart from the rest (planted fakes?).
"""

import collections
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.stats
from jaxtyping import Float, Shaped
from scipy.spatial.distance import cdist

from ctfake_jax.config.keys import Config
from ctfake_jax.data import splits
from ctfake_jax.data.preprocess import from_uint8
from ctfake_jax.data.sources import layout, walker
from ctfake_jax.data.sources.sandboxed import Decoded, Limits, decode_all, judgeable
from ctfake_jax.detector import bundle, calibration, card, discriminant, domain, site_adaptation
from ctfake_jax.detector.bundle import Detector
from ctfake_jax.runtime import progress_bar, streams
from ctfake_jax.types import UNKNOWN_LABEL, ImageSet, Record, UnreadableImageError, UserError
from ctfake_jax.workdir import files as workdir_lib

ALARM = 0.01  # p-value
PERMUTATIONS = 500
COMPARED = 2000
LOOSE = 3  # times the promised rate that the bound on it may be, without a word


def run(config: Config, workdir: Path) -> dict:
  """Reads the site's reals in `config.input`, leaves a detector directory in the workdir."""
  old = bundle.load(Path(config.detector))
  if workdir.resolve() == Path(config.detector).resolve():
    raise UserError(f'--workdir={workdir} is the old detector: choose another one')
  workdir_lib.check_same_command(workdir, config)
  found, images = reals(config, old)
  _, groups = splits.group(images, config.split)
  new, results = recalibrate(old, found, groups, config)
  results['outliers'] = [images.records[row].provenance for row in results['outliers']]
  results['left_out'] = [{'path': e.path, 'reason': e.reason} for e in images.unreadable]
  results['skipped'] = dict(images.skipped)
  workdir_lib.record_command(workdir, config)
  _copy_network(Path(config.detector), workdir)
  figures = _figures(Path(config.detector), results)
  bundle.save(new, workdir, figures)
  card.write_site(old.config, figures, workdir)
  workdir_lib.write_results(workdir, results)
  promised = new.threshold.false_alarm_rate
  asked = calibration.asked_rate(config, old.threshold.false_alarm_rate)
  if promised != asked:
    print(
      f'{new.threshold.groups} independent reals (patients or near-duplicate groups) are for '
      f'{promised:.2%} false alarms, not the {asked:.2%} asked for'
    )
  bound = new.threshold.rate_bound
  if bound > LOOSE * promised:
    print(
      f'careful: {new.threshold.groups} independent reals promise {promised:.2%} false alarms on '
      f'average, but this detector may raise up to {bound:.2%} (95 % confidence): more narrow it'
    )
  for name, alarm in results['alarms'].items():
    if alarm['raised']:
      print(f'ALARM, {name}: {bundle.ALARMS[name]}')
  return results


def reals(config: Config, detector: Detector) -> tuple[list[Decoded], ImageSet]:
  """Every image of `config.input`, decoded as `detect` does, as the detector sees it.

  Raises:
    UserError: there is none that the detector could judge.
  """
  left_out: list[UnreadableImageError] = []
  skipped: collections.Counter = collections.Counter()
  limits = Limits.from_config(config)
  images = decode_all(Path(config.input), detector.view, limits, skipped=skipped)

  def obstacles(decoded: Decoded) -> list[str]:
    found = detector.obstacles(decoded)
    if decoded.synthetic and not config.data.synthetic_ok:
      found.insert(0, f'{decoded.remarks[0]}: no original; data.synthetic_ok=True takes it')
    return found

  found = list(progress_bar.bar('reading', judgeable(images, obstacles, left_out)))
  walker.say(skipped)
  layout.refuse_masks(f'config.input = {config.input}', [decoded.path for decoded in found])
  if not found:
    reasons = '; '.join(str(error) for error in left_out[:3])
    raise UserError(f'config.input = {config.input}: no image can be taken; {reasons}')
  if left_out:
    print(f'left out: {len(left_out)} files; results.json says why')
  return found, ImageSet(
    images=from_uint8(np.array([d.pixels for d in found]))[..., None],
    labels=np.full(len(found), UNKNOWN_LABEL, np.int32),
    records=tuple(Record(UNKNOWN_LABEL, _patient(d, config), d.path) for d in found),
    native_sizes=np.array([d.native_size for d in found], np.int32),
    class_names=(),
    unit=detector.unit,
    unreadable=tuple(left_out),
    skipped=dict(skipped),
  )


def _patient(decoded: Decoded, config: Config) -> str | None:
  """That of a DICOM file; of a picture the folder right below the input, where that is said."""
  if not config.data.patient_folders:
    return decoded.patient_id
  folders = Path(decoded.path).parts[:-1]
  if not folders:
    raise UserError(
      f'config.data.patient_folders: {decoded.path} lies in no folder of a patient; put each '
      "patient's images into one of config.input"
    )
  return folders[0]


def recalibrate(
  old: Detector, seen: Sequence[Decoded], groups: Shaped[np.ndarray, ' n'], config: Config
) -> tuple[Detector, dict]:
  """From n reals of another site in groups int[n]; the new detector and figures.

  `outliers` are rows, the highest score first.
  """
  asked = calibration.asked_rate(config, old.threshold.false_alarm_rate)
  rate = calibration.nearest_rate(groups, asked)
  _refuse_rare_alarms(rate, len(old.reference))
  found = old.examine(seen, config.fake_prevalence)
  one = calibration.one_per_group(np.arange(len(seen)), groups, config.seed)
  features = found['features'][one]
  reference_null = site_adaptation.reference_null_scores(
    old.class_statistics, old.reference, len(features), config.seed
  )
  own = site_adaptation.fit_site(old.class_statistics, features, old.differences, config.seed)
  threshold = site_adaptation.threshold(own.scores, reference_null, rate)
  tails = site_adaptation.usual_tails(reference_null, len(own.scores), config.seed)
  order = np.argsort(-own.scores)
  new = dataclasses.replace(
    old,
    variables=discriminant.with_discriminant(old.variables, own.centre, own.directions),
    scaling=_scaling(own, reference_null),
    threshold=threshold,
    domain=_domain(old, [seen[row] for row in one], own.outliers, config.seed),
  )
  results = {
    'images': len(seen),
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
      'drift': _alarm(drift(old.reference, features, config.seed)),
      'outliers': _alarm({'p_value': site_adaptation.outlier_p_value(own.scores, tails)}),
      'rate': _alarm(too_many_above(own.scores, threshold)),
    },
    'outliers': one[order[own.outliers[order]]].tolist(),
  }
  return new, results


def _domain(
  old: Detector, seen: Sequence[Decoded], outliers: np.ndarray, seed: int
) -> domain.Domain:
  images = from_uint8(np.array([d.pixels for d in seen]))[..., None]
  return domain.fit_site_domain(old.domain, images[~outliers], seed)


def _refuse_rare_alarms(rate: float, count: int) -> None:
  """Where the tail begins is learnt from `count` reals of the making."""
  least = 1 / (count + 1)
  if rate < least:
    raise UserError(
      f'config.detection.false_alarm_rate = {rate:g}: the detector was calibrated on {count} '
      f'independent reals, too few for so rare alarms: ask for {least:.2g} or more, or make one of '
      'more originals'
    )


def _scaling(own: site_adaptation.SiteFit, reference_null: np.ndarray) -> calibration.Scaling:
  """Of reals as resampled, so that planted fakes do not count as reals, against supposed fakes."""
  location, scale = site_adaptation.location_and_scale(own.scores)
  reals, fakes = location + scale * reference_null, own.shifted_scores.ravel()
  fake = np.arange(len(reals) + len(fakes)) >= len(reals)
  return calibration.fit_scaling(np.concatenate([reals, fakes]), fake)


def drift(
  reference: Float[np.ndarray, 'm d'], features: Float[np.ndarray, 'n d'], seed: int
) -> dict:
  """Permutation test of the energy distance between two samples f[n, d], f[m, d].

  Szekely & Rizzo 2013, doi:10.1016/j.jspi.2013.03.018. Features are scaled by both together. Of
  large samples `COMPARED` rows each are drawn, for memory grows with their square.
  """
  rng = streams.generator(seed, 'drift')
  reference, features = (rng.permutation(rows)[:COMPARED] for rows in (reference, features))
  together = np.concatenate([reference, features])
  together = together / (together.std(0) + 1e-6)
  distances = cdist(together, together)
  first = np.arange(len(together)) < len(reference)
  seen = _energy(distances, first)
  null = [_energy(distances, rng.permutation(first)) for _ in range(PERMUTATIONS)]
  p_value = float((1 + np.sum(np.array(null) >= seen)) / (1 + PERMUTATIONS))
  return {'p_value': p_value, 'energy_distance': float(seen)}


def _energy(distances: np.ndarray, first: np.ndarray) -> float:
  a, b = first.astype(float), (~first).astype(float)
  a, b = a / a.sum(), b / b.sum()
  return float(2 * a @ distances @ b - a @ distances @ a - b @ distances @ b)


def too_many_above(scores: Float[np.ndarray, ' n'], threshold: calibration.Threshold) -> dict:
  """Binomial test of how many scores f[n] of the site's own reals exceed its threshold."""
  above = int((scores > threshold.value).sum())
  test = scipy.stats.binomtest(above, len(scores), threshold.false_alarm_rate, 'greater')
  return {'p_value': float(test.pvalue), 'above': above}


def _alarm(test: dict) -> dict:
  return {'raised': test['p_value'] < ALARM, **test}


def _figures(old: Path, results: dict) -> dict:
  """Those of the source site apart from the new ones; of files their number."""
  known = bundle.figures(old)
  source_reals = known.get('source_site') or known.get('home', known)
  own = results | {name: len(results[name]) for name in ('outliers', 'left_out')}
  return {'best_step': known['best_step'], 'source_site': source_reals, 'recalibration': own}


def _copy_network(old: Path, new: Path) -> None:
  """And its config but for paths: a detector is what one passes on."""
  new.mkdir(parents=True, exist_ok=True)
  shutil.copytree(old / bundle.NETWORK, new / bundle.NETWORK, dirs_exist_ok=True)
  record = workdir_lib.read_json(old / bundle.CONFIG)
  record['config']['data'] |= {'path': '', 'labels_csv': ''}
  record['config']['detection']['fakes_folder'] = ''
  workdir_lib.write_json(new / bundle.CONFIG, record)
