"""The task `detect`: a verdict for every image of a file or folder.

Leaves `verdicts.csv`, one row an image: path (relative to the input), p_fake, verdict (real, fake,
unsure, unreadable), score, threshold, false_alarm_rate, domain (deviations from the images of the
making), reasons; and `results.json` with counts.
"""

import collections
import csv
import time
from collections.abc import Iterator
from pathlib import Path

import ml_collections

from ctfake_jax.data.sources import walker
from ctfake_jax.data.sources.sandboxed import Decoded, Limits, decode_all
from ctfake_jax.detector import bundle, calibration
from ctfake_jax.detector.bundle import Detector
from ctfake_jax.detector.calibration import UNSURE
from ctfake_jax.detector.domain import CROWD
from ctfake_jax.runtime import batching, progress_bar
from ctfake_jax.types import UserError
from ctfake_jax.workdir import files as workdir_lib

FEWEST_OF_A_BATCH = 5  # of images that can say where a batch comes from
UNREADABLE = 'unreadable'
COLUMNS = (
  *('path', 'p_fake', 'verdict', 'score', 'threshold', 'false_alarm_rate', 'domain'),
  *('says_synthetic', 'reasons'),
)


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
  """Judges all of `config.input` by the detector in `config.detector`."""
  workdir_lib.check_same_command(workdir, config)
  detector = bundle.load(Path(config.detector))
  _refuse_another_rate(config, detector)
  warnings = bundle.warnings(Path(config.detector))
  for warning in warnings:
    print(f'WARNING: {warning}', flush=True)
  skipped: collections.Counter = collections.Counter()
  limits = Limits.from_config(config)
  images = decode_all(Path(config.input), detector.view, limits, skipped=skipped)
  counts: collections.Counter = collections.Counter()
  outside = 0
  begun = time.perf_counter()
  # Whole or not at all.
  unfinished = workdir / '.verdicts.csv.tmp'
  with open(unfinished, 'w', newline='', encoding='utf-8') as handle:
    writer = csv.writer(handle)
    writer.writerow(COLUMNS)
    rows = _rows(images, detector, config.fake_prevalence)
    for row, elsewhere in progress_bar.bar('judging', rows):
      counts[row[COLUMNS.index('verdict')]] += 1
      outside += elsewhere
      writer.writerow(row)
  walker.say(skipped)
  threshold, judged = detector.threshold, sum(counts.values()) - counts[UNREADABLE]
  if warning := crowd_outside(outside, judged):
    print(f'WARNING: {warning}', flush=True)
    warnings.insert(0, warning)
  results = {
    'images': sum(counts.values()),
    'skipped': dict(skipped),
    'outside_domain': outside,
    'verdicts': {name: counts[name] for name in ('real', 'fake', UNSURE, UNREADABLE)},
    'threshold': threshold.value,
    'false_alarm_rate': threshold.false_alarm_rate,
    'false_alarm_rate_bound95': threshold.rate_bound,
    'calibration_groups': threshold.groups,
    'guarantee': threshold.guarantee,
    'warnings': warnings,
    'fake_prevalence': config.fake_prevalence,
    'seconds': time.perf_counter() - begun,
  }
  workdir_lib.record_command(workdir, config)
  unfinished.replace(workdir / 'verdicts.csv')
  workdir_lib.write_json(workdir / 'results.json', results)
  return results


def crowd_outside(outside: int, judged: int) -> str:
  """What is to be said first of a batch most of which lies outside of the domain; '' of others.

  Whatever generator made them, most fakes of a detector's own originals lie inside, as these do.
  """
  if judged < FEWEST_OF_A_BATCH or outside <= CROWD * judged:
    return ''
  return (
    f'{outside} of {judged} images are unlike those that the detector was calibrated on: this '
    'batch comes from elsewhere, and its verdicts say little; recalibrate on its originals'
  )


def _refuse_another_rate(config: ml_collections.ConfigDict, detector: Detector) -> None:
  own = detector.threshold.false_alarm_rate
  asked = calibration.asked_rate(config, own)
  if asked != own:
    raise UserError(
      f'config.detection.false_alarm_rate = {asked:g}: this detector was calibrated for {own:g}; '
      'the rate is set where it is made or recalibrated'
    )


def _rows(
  images: Iterator[Decoded], detector: Detector, prior: float
) -> Iterator[tuple[list, bool]]:
  """Rows of the table in the files' order, and which images lie outside; judged in batches."""
  waiting: list[Decoded] = []
  for decoded in images:
    waiting.append(decoded)
    if (
      sum(d.pixels is not None for d in waiting) == batching.BATCH_SIZE
      or len(waiting) > 4 * batching.BATCH_SIZE
    ):
      yield from _judge(waiting, detector, prior)
      waiting = []
  yield from _judge(waiting, detector, prior)


def _judge(waiting: list[Decoded], detector: Detector, prior: float) -> Iterator[tuple[list, bool]]:
  readable = [d for d in waiting if d.pixels is not None]
  found: Iterator[dict] = iter(())
  if readable:
    columns = detector.examine(readable, prior)
    found = (dict(zip(columns, values)) for values in zip(*columns.values()))
  t = detector.threshold
  fixed = [f'{t.value:.6f}', f'{t.false_alarm_rate:g}']
  for decoded in waiting:
    path = workdir_lib.csv_safe(decoded.path)
    if decoded.pixels is None:
      reason = workdir_lib.csv_safe(decoded.reason)
      yield [path, '', UNREADABLE, '', *fixed, '', '', reason], False
      continue
    judged = next(found)
    p_fake, score, domain = (f'{judged[name]:.6f}' for name in ('p_fake', 'score', 'domain'))
    reasons = '; '.join(judged['reasons'])
    says = 'YES' if decoded.synthetic else ''
    row = [path, p_fake, judged['verdict'], score, *fixed, domain, says, reasons]
    yield row, bool(judged['outside'])
