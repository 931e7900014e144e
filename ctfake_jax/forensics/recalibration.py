"""The task `recalibrate` for a forensic detector: fitted to a site's own untouched series.

The network stays. The site's series give thresholds, the limit of maps, and the centre of the
domain, whose spread stays; edits there are supposed to raise scores by as much as they did before.
Nobody is asked whether the series are untouched: what is edited among them raises thresholds.
"""

import collections
import dataclasses
from pathlib import Path

import numpy as np

from ctfake_jax.config.keys import Config
from ctfake_jax.data.sources import native
from ctfake_jax.data.sources.native import Frame, Header
from ctfake_jax.data.sources.sandboxed import Limits
from ctfake_jax.detector.calibration import Scaling
from ctfake_jax.forensics import bundle, calibration, card
from ctfake_jax.forensics.bundle import SHIPPED, ForensicDetector
from ctfake_jax.forensics.examine import examine
from ctfake_jax.forensics.untouched import Looks
from ctfake_jax.runtime import progress_bar, streams
from ctfake_jax.types import UserError
from ctfake_jax.workdir import files as workdir_lib

SYNTHETIC = 'says itself that it is synthetic or edited; data.synthetic_ok=True takes it'


def run(config: Config, workdir: Path) -> dict:
  """Reads untouched series in `config.input`, leaves a detector in the workdir."""
  folder = Path(config.detector) if config.detector else SHIPPED
  if workdir.resolve() == folder.resolve():
    raise UserError(f'--workdir={workdir} is the old detector: choose another one')
  old = bundle.load(folder)
  workdir_lib.check_same_command(workdir, config)
  looks = look(config, old)
  new = recalibrated(old, looks, config)
  rate = new.false_alarm_rate
  results = {
    'slices': vars(new.slices.level(rate)),
    'series': vars(new.series.level(rate)) if len(new.series.patients) else None,
    'site': new.facts['site'],
    'left_out': [{'path': h.path, 'reason': h.reason} for h in looks.left_out],
  }
  workdir_lib.record_command(workdir, config)
  bundle.save(new, workdir)
  card.write(bundle.load(workdir), workdir)
  workdir_lib.write_results(workdir, results)
  for what, level in (('slices', results['slices']), ('series', results['series'])):
    if level and level['holds'] > level['asked']:
      print(
        f'{level["patients"]} patients promise {level["holds"]:.1%} false alarms of {what}, not '
        f'the {level["asked"]:.1%} asked for: more bring it nearer'
      )
  return results


def look(config: Config, detector: ForensicDetector) -> Looks:
  """Judges every slice of the input.

  Raises:
    UserError: there is none that the detector could judge.
  """
  looks, limits, root = Looks(), Limits.from_config(config), Path(config.input)
  headers = native.headers(root, limits, collections.Counter())
  looks.left_out += [header for header in headers if header.reason]
  kept = []
  for header in native.in_order(headers):
    if header.synthetic and not config.data.synthetic_ok:
      looks.left_out.append(dataclasses.replace(header, reason=SYNTHETIC))
    else:
      kept.append(header)
  frames = progress_bar.bar('reading', native.frames(root, kept, limits), total=len(kept))
  named = (Frame(_named(frame.header), frame.hu) for frame in frames)
  rng = streams.generator(config.seed, 'squares')
  looks.take(examine(detector.maps, named), rng)
  if not looks.slices:
    reasons = '; '.join(f'{h.path}: {h.reason}' for h in looks.left_out[:3])
    raise UserError(f'config.input = {root}: no slice can be taken; {reasons}')
  if looks.left_out:
    print(f'left out: {len(looks.left_out)} images; results.json says why')
  return looks


def _named(header: Header) -> Header:
  """With somebody whose it is: a series without a Patient ID is a patient of its own."""
  return header if header.patient else dataclasses.replace(header, patient=header.series)


def recalibrated(old: ForensicDetector, looks: Looks, config: Config) -> ForensicDetector:
  """The old detector with what the site's series give."""
  slices, series = looks.untouched(config.seed)
  patients = np.array(looks.patients)
  _, which, counts = np.unique(patients, return_inverse=True, return_counts=True)
  centre = np.average(np.stack(looks.textures), axis=0, weights=1 / counts[which])
  domain = dataclasses.replace(old.domain, centre=centre)
  moved = float(np.median(slices.patients) - np.median(_all(old)))
  site = {
    'patients': len(slices.patients),
    'slices': len(looks.slices),
    'scores_moved': moved,
    'texture_moved': old.domain.distance(centre),
    'from': old.name,
  }
  return dataclasses.replace(
    old,
    slices=slices,
    series=series if len(series.patients) else old.series,
    scaling=Scaling(old.scaling.slope, old.scaling.intercept - old.scaling.slope * moved),
    map_limit=looks.map_limit(calibration.MAP_RATE),
    domain=calibration.limited(domain, looks.distances(domain, config.seed)),
    false_alarm_rate=config.detection.false_alarm_rate or old.false_alarm_rate,
    facts={**old.facts, 'site': site},
  )


def _all(detector: ForensicDetector) -> np.ndarray:
  known = detector.slices
  return known.patients if len(known.patients) else known.phantoms
