"""Verdicts on CT in HU, slice by slice and series by series, by a forensic detector.

Leaves `objects.csv`, `verdicts.csv`, `series.csv` and `results.json`; with `detection.maps` also
`maps/<path>.npy`, log odds f16 of squares of `stride` pixels, and an overlay of each as PNG.
"""

import collections
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ctfake_jax import __version__
from ctfake_jax.config.keys import Config
from ctfake_jax.data import image_grids
from ctfake_jax.data.sources import native, walker
from ctfake_jax.data.sources.native import Header
from ctfake_jax.data.sources.sandboxed import Limits
from ctfake_jax.detector.bundle import decide
from ctfake_jax.detector.calibration import FAKE, REAL, UNSURE
from ctfake_jax.detector.verdict import (
  NOT_JUDGED,
  VERDICTS,
  Ruling,
  Verdict,
  number,
  opened,
  write_table,
)
from ctfake_jax.forensics import bundle, series
from ctfake_jax.forensics.bundle import SHIPPED, ForensicDetector
from ctfake_jax.forensics.calibration import Level
from ctfake_jax.forensics.examine import Examined, examine
from ctfake_jax.forensics.series import Evidence
from ctfake_jax.models.forensic_net import STRIDE
from ctfake_jax.runtime import progress_bar
from ctfake_jax.types import UserError
from ctfake_jax.workdir import files as workdir_lib

WINDOW_HU, LEAST_SHOWN, INCHES = (-1350.0, 150.0), -6.0, 4.5  # of overlays
SERIES_COLUMNS = (
  *('series', 'verdict', 'score', 'p', 'threshold', 'false_alarm_rate', 'slices'),
  *('slices_called_fake', 'peak_path', 'peak_row', 'peak_column', 'volume_mm3', 'reasons'),
)
FEW_SLICES = 'no three neighbouring slices can be judged'


@dataclasses.dataclass(frozen=True)
class SeriesVerdict:
  """What is said of a series.

  Attributes:
    evidence: of its slices.
    verdict: real, fake, unsure or not_judged.
    p: share of untouched series whose score is as high.
    called_fake: slices that are called fake.
    reasons: in words.
  """

  evidence: Evidence
  verdict: str
  p: float
  called_fake: int
  reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Judge:
  """A detector at a rate of false alarms.

  Attributes:
    detector: whose scores these are.
    slices, series: thresholds.
    prior: share of fakes among such slices that `p_fake` assumes.
  """

  detector: ForensicDetector
  slices: Level
  series: Level
  prior: float

  @classmethod
  def of(cls, detector: ForensicDetector, prior: float, rate: float = 0.0) -> 'Judge':
    """At a rate; at the detector's usual one where it is 0."""
    asked = rate or detector.false_alarm_rate
    return cls(detector, detector.slices.level(asked), detector.series.level(asked), prior)

  def verdict(self, each: Examined) -> Verdict:
    """Of a slice, the only place where these are made."""
    header, detector = each.header, self.detector
    distance = detector.domain.distance(each.texture)
    outside = distance > detector.domain.limit
    p_fake = float(detector.scaling.p_fake(np.array([each.score]), self.prior)[0])
    alarm = each.score > self.slices.value
    obstacles = []
    if alarm and p_fake < 0.5:
      obstacles.append(f'p_fake is {p_fake:.2f}')
    if outside:
      obstacles.append(
        f'its texture is unlike that of the slices that the detector knows ({distance:.1f} '
        f'deviations, up to {detector.domain.limit:.1f} are usual): recalibrate on series like it'
      )
    said = [f'score {"above" if alarm else "not above"} the threshold']
    if header.synthetic:
      said.insert(0, 'says itself that it is synthetic or edited')
    body = series.region(each, detector.map_limit)
    return Verdict(
      header.path,
      decide(FAKE if alarm else REAL, obstacles, header.synthetic),
      (*obstacles, *said),
      p_fake=p_fake,
      score=each.score,
      domain=distance,
      outside=outside,
      synthetic=header.synthetic,
      patch_map=each.logits,
      series=header.series,
      peak=each.peak,
      area_mm2=float(body.sum()) * series.square_mm2(each),
    )

  def series_verdict(self, evidence: Evidence, slices: list[Verdict]) -> SeriesVerdict:
    """Of a series whose slices were judged as `slices`."""
    fakes = sum(found.verdict == FAKE for found in slices)
    if not evidence.judged:
      return SeriesVerdict(evidence, NOT_JUDGED, float('nan'), fakes, (FEW_SLICES,))
    alarm = evidence.score > self.series.value
    reasons = [f'score {"above" if alarm else "not above"} the threshold of series']
    said = FAKE if alarm else REAL
    if sum(found.outside for found in slices) > len(slices) / 2:
      said = UNSURE
      reasons.insert(0, 'most of its slices are unlike those that the detector knows')
    if any(found.synthetic for found in slices) and said == REAL:
      said = UNSURE
      reasons.insert(0, 'says itself that it is synthetic or edited')
    p = self.detector.series.p_value(evidence.score)
    return SeriesVerdict(evidence, said, p, fakes, tuple(reasons))


def judge(
  path: Path,
  ruler: Judge,
  limits: Limits,
  skipped: collections.Counter | None = None,
  maps: Path | None = None,
) -> Iterator[Verdict | SeriesVerdict]:
  """Every image below `path`: what cannot be judged first, then series by series, each with a last
  word. Headers are read at once.

  Args:
    path: a file or a folder.
    ruler: a detector at a rate.
    limits: of the processes that decode.
    skipped: gets the number of hidden files, by kind.
    maps: folder that maps are left in.

  Raises:
    UserError: there is no such file or folder.
  """
  counted = collections.Counter() if skipped is None else skipped
  headers = native.headers(path, limits, counted)
  return _judged(path, headers, ruler, limits, maps)


def _judged(
  path: Path, headers: list[Header], ruler: Judge, limits: Limits, maps: Path | None
) -> Iterator[Verdict | SeriesVerdict]:
  detector = ruler.detector
  for header in headers:
    if header.reason:
      yield _not_judged(header)
  ordered = native.in_order(headers)
  shown = progress_bar.bar('judging', native.frames(path, ordered, limits), total=len(ordered))
  of_series: list[Verdict] = []
  examined = examine(detector.maps, iter(shown))
  for item in series.gather(examined, detector.map_limit):
    if isinstance(item, Evidence):
      yield ruler.series_verdict(item, of_series)
      of_series = []
    elif isinstance(item, Header):
      yield _not_judged(item)
    else:
      found = ruler.verdict(item)
      of_series.append(dataclasses.replace(found, patch_map=None))
      if maps is not None:
        _save_map(maps, item, found, detector.map_limit)
      yield found


def _not_judged(header: Header) -> Verdict:
  return Verdict(header.path, NOT_JUDGED, (header.reason,))


def run(config: Config, workdir: Path) -> dict:
  """The task `detect` by a forensic detector; returns the results."""
  detector = bundle.load(Path(config.detector) if config.detector else SHIPPED)
  name = f'{__version__}/{detector.name}'
  whose = config.detector or 'the one that comes with this package'
  print(f'detector of edits in CT: {whose} ({name})', flush=True)
  ruler = Judge.of(detector, config.fake_prevalence, config.detection.false_alarm_rate)
  _say_level('slices', ruler.slices)
  _say_level('series', ruler.series)
  skipped: collections.Counter = collections.Counter()
  begun = time.perf_counter()
  maps = workdir / 'maps' if config.detection.maps else None
  found = judge(Path(config.input), ruler, Limits.from_config(config), skipped, maps)
  counts: collections.Counter = collections.Counter()
  outside, rows = 0, []
  ruling = Ruling(ruler.slices.value, ruler.slices.holds, name)
  with opened(workdir, ruling, Path(config.input)) as tables:
    for item in found:
      if isinstance(item, SeriesVerdict):
        rows.append(item)
        continue
      counts[item.verdict] += 1
      outside += item.outside
      tables.add(item)
    if not counts:
      raise UserError(f'config.input = {config.input}: no image to judge; it is empty')
  write_table(workdir / 'series.csv', SERIES_COLUMNS, (_row(row, ruler.series) for row in rows))
  walker.say(skipped)
  of_series = collections.Counter(row.verdict for row in rows)
  results = {
    'images': sum(counts.values()),
    'skipped': dict(skipped),
    'outside_domain': outside,
    'verdicts': {verdict: counts[verdict] for verdict in VERDICTS},
    'series': {verdict: of_series[verdict] for verdict in VERDICTS},
    'detector': name,
    'slices_level': dataclasses.asdict(ruler.slices),
    'series_level': dataclasses.asdict(ruler.series),
    'map_limit': detector.map_limit,
    'stride': STRIDE,
    'fake_prevalence': config.fake_prevalence,
    'seconds': time.perf_counter() - begun,
  }
  for title, counted in (('slices', counts), ('series', of_series)):
    print(f'{title}: ' + ', '.join(f'{counted[v]} {v}' for v in VERDICTS), flush=True)
  workdir_lib.record_command(workdir, config)
  workdir_lib.write_results(workdir, results)
  return results


def _say_level(what: str, level: Level) -> None:
  if level.holds > level.asked:
    print(
      f'careful: {level.patients} patient(s) promise {level.holds:.1%} false alarms of {what}, not '
      f'the {level.asked:.1%} asked for; recalibrate on more',
      flush=True,
    )


def _row(found: SeriesVerdict, level: Level) -> list:
  evidence = found.evidence
  path, row, column = evidence.peak
  return [
    evidence.series,
    found.verdict,
    number(evidence.score) if np.isfinite(evidence.score) else '',
    number(found.p),
    f'{level.value:.6f}',
    f'{level.holds:g}',
    evidence.slices,
    found.called_fake,
    workdir_lib.csv_safe(path),
    row,
    column,
    number(evidence.volume_mm3, 1),
    workdir_lib.csv_safe('; '.join(found.reasons)),
  ]


def _save_map(folder: Path, each: Examined, found: Verdict, map_limit: float) -> None:
  """The log odds of a slice, and these over the slice."""
  path = (folder / f'{found.path}.npy').resolve()
  if not path.is_relative_to(folder.resolve()):  # a name that leads elsewhere
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  np.save(path, each.logits.astype(np.float16), allow_pickle=False)
  image = (each.hu - WINDOW_HU[0]) / (WINDOW_HU[1] - WINDOW_HU[0]) * 2 - 1
  large = each.logits.repeat(STRIDE, 0).repeat(STRIDE, 1)[: image.shape[0], : image.shape[1]]
  body = series.above(each, map_limit).repeat(STRIDE, 0).repeat(STRIDE, 1)
  image_grids.save_maps(
    path.with_suffix('.png'),
    np.clip(image, -1, 1).astype(np.float32)[..., None],
    {'log odds of an edit': np.maximum(large, LEAST_SHOWN)},
    f'{found.verdict}, score {found.score:.1f}',
    mask=body[: image.shape[0], : image.shape[1]],
    inches=INCHES,
  )
