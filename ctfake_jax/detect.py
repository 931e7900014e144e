"""The task `detect`: a verdict for every image of a file or folder.

Leaves `verdicts.csv`, one row an image: path (relative to the input), p_fake, verdict (real, fake,
unsure, unreadable), score, threshold, false_alarm_rate, reasons; and `results.json` with counts.
"""

import collections
import csv
import time
from collections.abc import Iterator
from pathlib import Path

import ml_collections
import numpy as np

from ctfake_jax import config as config_lib
from ctfake_jax import progress
from ctfake_jax import workdir as workdir_lib
from ctfake_jax.data.decode import Decoded, Limits, decode_all
from ctfake_jax.data.preprocess import from_uint8
from ctfake_jax.detector import directory
from ctfake_jax.detector.calibration import REAL, UNSURE
from ctfake_jax.detector.directory import Detector
from ctfake_jax.types import UserError

BATCH_SIZE = 64
UNREADABLE = 'unreadable'
COLUMNS = ('path', 'p_fake', 'verdict', 'score', 'threshold', 'false_alarm_rate', 'reasons')


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
  """Judges all of `config.input` by the detector in `config.detector`."""
  workdir_lib.refuse_others(workdir, config)
  detector = directory.load(Path(config.detector))
  _refuse_another_rate(config, detector)
  warnings = directory.warnings(Path(config.detector))
  for warning in warnings:
    print(f'WARNING: {warning}', flush=True)
  images = decode_all(Path(config.input), detector.view, Limits.from_config(config))
  counts: collections.Counter = collections.Counter()
  begun = time.perf_counter()
  # Whole or not at all.
  unfinished = workdir / '.verdicts.csv.tmp'
  with open(unfinished, 'w', newline='', encoding='utf-8') as handle:
    writer = csv.writer(handle)
    writer.writerow(COLUMNS)
    for row in progress.bar('judging', _rows(images, detector, config.prior_fake)):
      counts[row[COLUMNS.index('verdict')]] += 1
      writer.writerow(row)
  threshold = detector.threshold
  results = {
    'images': sum(counts.values()),
    'verdicts': {name: counts[name] for name in ('real', 'fake', UNSURE, UNREADABLE)},
    'threshold': threshold.value,
    'false_alarm_rate': threshold.false_alarm_rate,
    'false_alarm_rate_bound95': threshold.rate_bound,
    'calibration_groups': threshold.groups,
    'guarantee': threshold.guarantee,
    'warnings': warnings,
    'prior_fake': config.prior_fake,
    'seconds': time.perf_counter() - begun,
  }
  workdir_lib.sign(workdir, config)
  unfinished.replace(workdir / 'verdicts.csv')
  workdir_lib.write_json(workdir / 'results.json', results)
  return results


def _refuse_another_rate(config: ml_collections.ConfigDict, detector: Detector) -> None:
  asked, own = config.detection.false_alarm_rate, detector.threshold.false_alarm_rate
  if asked not in (own, config_lib.defaults().detection.false_alarm_rate):
    raise UserError(
      f'config.detection.false_alarm_rate = {asked:g}: this detector was calibrated for {own:g}; '
      'the rate is set where it is made or recalibrated'
    )


def _rows(images: Iterator[Decoded], detector: Detector, prior: float) -> Iterator[list]:
  """Rows of the table in the files' order; images are judged in batches."""
  waiting: list[Decoded] = []
  for decoded in images:
    waiting.append(decoded)
    if sum(d.pixels is not None for d in waiting) == BATCH_SIZE or len(waiting) > 4 * BATCH_SIZE:
      yield from _judge(waiting, detector, prior)
      waiting = []
  yield from _judge(waiting, detector, prior)


def _judge(waiting: list[Decoded], detector: Detector, prior: float) -> Iterator[list]:
  pixels = [d.pixels for d in waiting if d.pixels is not None]
  found: Iterator[dict] = iter(())
  if pixels:
    images = from_uint8(np.stack(pixels))[..., None]
    columns = detector.examine(images, prior)
    found = (dict(zip(columns, values)) for values in zip(*columns.values()))
  t = detector.threshold
  fixed = [f'{t.value:.6f}', f'{t.false_alarm_rate:g}']
  for decoded in waiting:
    path = workdir_lib.csv_safe(decoded.path)
    if decoded.pixels is None:
      yield [path, '', UNREADABLE, '', *fixed, workdir_lib.csv_safe(decoded.reason)]
      continue
    judged = next(found)
    obstacles = detector.obstacles(decoded)
    doubtful = obstacles or (decoded.synthetic and judged['verdict'] == REAL)
    verdict = UNSURE if doubtful else judged['verdict']
    reasons = '; '.join([*decoded.remarks, *obstacles, *_reasons(judged)])
    yield [path, f'{judged["p_fake"]:.6f}', verdict, f'{judged["score"]:.6f}', *fixed, reasons]


def _reasons(judged: dict) -> Iterator[str]:
  """Why the verdict is what it is."""
  yield f'score {"above" if judged["alarm"] else "not above"} the threshold'
  if judged['flips']:
    yield 'JPEG re-encoding changes the verdict'
  if judged['alarm'] != (judged['p_fake'] >= 0.5):
    yield f'yet p_fake is {judged["p_fake"]:.2f}'
