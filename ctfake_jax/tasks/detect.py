"""The task `detect`: a verdict for every image of a file or folder.

Leaves `verdicts.csv`, one row an image: path (relative to the input), p_fake, verdict (real, fake,
unsure, unreadable), score, threshold, false_alarm_rate, domain (deviations from the images of the
making), says_synthetic, reasons, detector (version that judged / hash of the detector's files); and
`results.json` with counts.
"""

import collections
import csv
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from ctfake_jax import __version__
from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import Config
from ctfake_jax.data.sources import walker
from ctfake_jax.data.sources.sandboxed import Decoded, Limits, decode_all
from ctfake_jax.detector import bundle, calibration
from ctfake_jax.detector.bundle import Detector
from ctfake_jax.detector.calibration import UNSURE
from ctfake_jax.detector.domain import comes_from_elsewhere
from ctfake_jax.runtime import batching, progress_bar
from ctfake_jax.types import UserError
from ctfake_jax.workdir import files as workdir_lib

UNREADABLE = 'unreadable'
VERDICTS = ('real', 'fake', UNSURE, UNREADABLE)
COLUMNS = (
  *('path', 'p_fake', 'verdict', 'score', 'threshold', 'false_alarm_rate', 'domain'),
  *('says_synthetic', 'reasons', 'detector'),
)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What is said of one image of a file.

  Attributes:
    path: relative to the input as it is shown, `#frame` behind it where a file holds several.
    verdict: real, fake, unsure or unreadable; of the last there is nothing but the reason.
    reasons: in words.
    p_fake: probability of being fake.
    score: of the network, above the detector's threshold where it raises an alarm.
    domain: deviations from the images that the detector was calibrated on.
    outside: whether they are too many.
    synthetic: whether the file itself says that it is.
    pixels: uint8[h, w], what the network saw.
    patch_map: f32[h', w'], log odds of each patch of them to be synthetic.
  """

  path: str
  verdict: str
  reasons: tuple[str, ...] = ()
  p_fake: float = float('nan')
  score: float = float('nan')
  domain: float = float('nan')
  outside: bool = False
  synthetic: bool = False
  pixels: UInt8[np.ndarray, 'h w'] | None = None
  patch_map: Float[np.ndarray, 'p q'] | None = None


def detect(
  path: Path | str,
  detector: Detector | Path | str,
  *,
  fake_prevalence: float = 0.5,
  limits: Limits | None = None,
  skipped: collections.Counter | None = None,
) -> Iterator[Verdict]:
  """A verdict for every image of a file or folder, in the files' order.

  Whether all of them come from elsewhere is to be asked of `crowd_outside`.

  Args:
    path: pictures and DICOM, side by side.
    detector: a loaded one, or the workdir of its making.
    fake_prevalence: share of fakes among such images that `p_fake` assumes.
    limits: of the processes that decode; None for those of the config's defaults. They are started
      afresh: a script that calls this does so under `if __name__ == '__main__'`.
    skipped: gets the number of hidden files, by kind.

  Raises:
    UserError: there is no such file or detector; at once, not with the first image.
  """
  loaded = detector if isinstance(detector, Detector) else bundle.load(Path(detector))
  limits = limits or Limits.from_config(config_lib.Config())
  images = decode_all(Path(path), loaded.view, limits, skipped=skipped)
  return _in_batches(images, loaded, fake_prevalence)


def run(config: Config, workdir: Path) -> dict:
  """Judges all of `config.input` by the detector in `config.detector`."""
  workdir_lib.check_same_command(workdir, config)
  detector = bundle.load(Path(config.detector))
  _refuse_another_rate(config, detector)
  warnings = bundle.warnings(Path(config.detector))
  name = f'{__version__}/{bundle.digest(Path(config.detector))}'
  for warning in warnings:
    print(f'WARNING: {warning}', flush=True)
  skipped: collections.Counter = collections.Counter()
  verdicts = detect(
    config.input,
    detector,
    fake_prevalence=config.fake_prevalence,
    limits=Limits.from_config(config),
    skipped=skipped,
  )
  counts: collections.Counter = collections.Counter()
  outside = 0
  begun = time.perf_counter()
  # Whole or not at all.
  unfinished = workdir / '.verdicts.csv.tmp'
  with open(unfinished, 'w', newline='', encoding='utf-8') as handle:
    writer = csv.writer(handle)
    writer.writerow(COLUMNS)
    for found in progress_bar.bar('judging', verdicts):
      counts[found.verdict] += 1
      outside += found.outside
      writer.writerow([*_row(found, detector.threshold), name])
  walker.say(skipped)
  if not counts:
    unfinished.unlink()
    raise UserError(f'config.input = {config.input}: no image to judge; it is empty')
  threshold, judged = detector.threshold, sum(counts.values()) - counts[UNREADABLE]
  if warning := crowd_outside(outside, judged):
    print(f'WARNING: {warning}', flush=True)
    warnings.insert(0, warning)
  results = {
    'images': sum(counts.values()),
    'skipped': dict(skipped),
    'outside_domain': outside,
    'verdicts': {verdict: counts[verdict] for verdict in VERDICTS},
    'detector': name,
    'threshold': threshold.value,
    'false_alarm_rate': threshold.false_alarm_rate,
    'false_alarm_rate_bound95': threshold.rate_bound,
    'calibration_groups': threshold.groups,
    'guarantee': threshold.guarantee,
    'warnings': warnings,
    'fake_prevalence': config.fake_prevalence,
    'seconds': time.perf_counter() - begun,
  }
  print(', '.join(f'{counts[verdict]} {verdict}' for verdict in VERDICTS), flush=True)
  workdir_lib.record_command(workdir, config)
  unfinished.replace(workdir / 'verdicts.csv')
  workdir_lib.write_results(workdir, results)
  return results


def crowd_outside(outside: int, judged: int) -> str:
  """What is to be said first of a batch most of which lies outside of the domain; '' of others.

  Whatever generator made them, most fakes of a detector's own originals lie inside, as these do.
  """
  if not comes_from_elsewhere(outside, judged):
    return ''
  return (
    f'{outside} of {judged} images are unlike those that the detector was calibrated on: this '
    'batch comes from elsewhere, and its verdicts say little; recalibrate on its originals'
  )


def _refuse_another_rate(config: Config, detector: Detector) -> None:
  own = detector.threshold.false_alarm_rate
  asked = calibration.asked_rate(config, own)
  if asked != own:
    raise UserError(
      f'config.detection.false_alarm_rate = {asked:g}: this detector was calibrated for {own:g}; '
      'the rate is set where it is made or recalibrated'
    )


def _in_batches(images: Iterator[Decoded], detector: Detector, prior: float) -> Iterator[Verdict]:
  waiting: list[Decoded] = []
  for decoded in images:
    waiting.append(decoded)
    if (
      sum(d.image is not None for d in waiting) == batching.BATCH_SIZE
      or len(waiting) > 4 * batching.BATCH_SIZE
    ):
      yield from _judge(waiting, detector, prior)
      waiting = []
  yield from _judge(waiting, detector, prior)


def _judge(waiting: list[Decoded], detector: Detector, prior: float) -> Iterator[Verdict]:
  readable = [d for d in waiting if d.image is not None]
  found: Iterator[dict] = iter(())
  if readable:
    columns = detector.examine(readable, prior)
    found = (dict(zip(columns, values)) for values in zip(*columns.values()))
  for decoded in waiting:
    if decoded.image is None:
      yield Verdict(decoded.path, UNREADABLE, (decoded.reason,))
      continue
    judged = next(found)
    yield Verdict(
      decoded.path,
      judged['verdict'],
      judged['reasons'],
      p_fake=float(judged['p_fake']),
      score=float(judged['score']),
      domain=float(judged['domain']),
      outside=bool(judged['outside']),
      synthetic=decoded.synthetic,
      pixels=decoded.pixels,
      patch_map=judged['patches'],
    )


def _row(found: Verdict, threshold: calibration.Threshold) -> list[str]:
  """Of the table, in the order of `COLUMNS`."""
  numbers = (found.p_fake, found.score, found.domain)
  p_fake, score, domain = ('' if math.isnan(n) else f'{n:.6f}' for n in numbers)
  return [
    workdir_lib.csv_safe(found.path),
    p_fake,
    found.verdict,
    score,
    f'{threshold.value:.6f}',
    f'{threshold.false_alarm_rate:g}',
    domain,
    'YES' if found.synthetic else '',
    workdir_lib.csv_safe('; '.join(found.reasons)),
  ]
