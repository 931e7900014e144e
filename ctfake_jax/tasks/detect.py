"""The task `detect`: a verdict for every image of a file or folder.

By a detector of pictures (`detector`), or by one of edits in CT (`forensics`), such as the one that
comes with the package. Leaves `verdicts.csv`, one row an image: path (relative to the input),
p_fake, verdict (real, fake, unsure, not_judged), score, threshold, false_alarm_rate, domain
(deviations from the images of the making), says_synthetic, reasons, detector (version that judged /
hash of the detector's files), and of CT in HU series, frame, peak and area; `objects.csv`, each
file once; and `results.json` with counts. Of CT also `series.csv`.
"""

import collections
import time
from collections.abc import Iterator
from pathlib import Path

from ctfake_jax import __version__
from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import Config
from ctfake_jax.data.sources import walker
from ctfake_jax.data.sources.sandboxed import Decoded, Limits, decode_all
from ctfake_jax.detector import bundle, calibration
from ctfake_jax.detector.bundle import Detector
from ctfake_jax.detector.domain import comes_from_elsewhere
from ctfake_jax.detector.verdict import NOT_JUDGED, VERDICTS, Ruling, Verdict, opened
from ctfake_jax.forensics import bundle as forensic_bundle
from ctfake_jax.forensics import judge as forensic_judge
from ctfake_jax.forensics.bundle import ForensicDetector
from ctfake_jax.runtime import batching, progress_bar
from ctfake_jax.types import UserError
from ctfake_jax.workdir import files as workdir_lib


def detect(
  path: Path | str,
  detector: Detector | ForensicDetector | Path | str | None = None,
  *,
  fake_prevalence: float = 0.5,
  limits: Limits | None = None,
  skipped: collections.Counter | None = None,
) -> Iterator[Verdict]:
  """A verdict for every image of a file or folder.

  By a detector of pictures in the files' order; whether all of them come from elsewhere is to be
  asked of `crowd_outside`. By one of edits in CT series by series, what cannot be judged first.

  Args:
    path: pictures and DICOM, side by side.
    detector: a loaded one, or the workdir of its making; None for the one that comes with the
      package, which judges CT in HU.
    fake_prevalence: share of fakes among such images that `p_fake` assumes.
    limits: of the processes that decode; None for those of the config's defaults. They are started
      afresh: a script that calls this does so under `if __name__ == '__main__'`.
    skipped: gets the number of hidden files, by kind.

  Raises:
    UserError: there is no such file or detector; at once, not with the first image.
  """
  loaded = _loaded(detector)
  limits = limits or Limits.from_config(config_lib.Config())
  if isinstance(loaded, ForensicDetector):
    ruler = forensic_judge.Judge.of(loaded, fake_prevalence)
    found = forensic_judge.judge(Path(path), ruler, limits, skipped)
    return (item for item in found if isinstance(item, Verdict))
  images = decode_all(Path(path), loaded.view, limits, skipped=skipped)
  return _in_batches(images, loaded, fake_prevalence)


def _loaded(
  detector: Detector | ForensicDetector | Path | str | None,
) -> Detector | ForensicDetector:
  if isinstance(detector, Detector | ForensicDetector):
    return detector
  if detector is None:
    return forensic_bundle.load()
  folder = Path(detector)
  return forensic_bundle.load(folder) if forensic_bundle.is_one(folder) else bundle.load(folder)


def run(config: Config, workdir: Path) -> dict:
  """Judges all of `config.input` by the detector in `config.detector`, or the package's own."""
  workdir_lib.check_same_command(workdir, config)
  if not config.detector or forensic_bundle.is_one(Path(config.detector)):
    return forensic_judge.run(config, workdir)
  return _judge_pictures(config, workdir)


def _judge_pictures(config: Config, workdir: Path) -> dict:
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
  threshold = detector.threshold
  ruling = Ruling(threshold.value, threshold.false_alarm_rate, name)
  with opened(workdir, ruling, Path(config.input)) as tables:
    for found in progress_bar.bar('judging', verdicts):
      counts[found.verdict] += 1
      outside += found.outside
      tables.add(found)
    if not counts:
      raise UserError(f'config.input = {config.input}: no image to judge; it is empty')
  walker.say(skipped)
  judged = sum(counts.values()) - counts[NOT_JUDGED]
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
      yield Verdict(decoded.path, NOT_JUDGED, (decoded.reason,))
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
