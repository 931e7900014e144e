"""What is said of an image, whichever detector says it, and the tables that hold it.

`verdicts.csv` has a row an image, `objects.csv` each file of the input once. One vocabulary: real,
fake, unsure, not_judged, with reasons in words. Rows and columns are those of the file.
"""

import contextlib
import csv
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from ctfake_jax.data.sources import walker
from ctfake_jax.detector.calibration import FAKE, REAL, UNSURE
from ctfake_jax.workdir import files as workdir_lib

NOT_JUDGED = 'not_judged'
VERDICTS = (REAL, FAKE, UNSURE, NOT_JUDGED)
COLUMNS = (
  *('path', 'p_fake', 'verdict', 'score', 'threshold', 'false_alarm_rate', 'domain'),
  *('says_synthetic', 'reasons', 'detector'),
  *('series', 'frame', 'peak_row', 'peak_column', 'area_mm2'),
)
OBJECT_COLUMNS = ('path', 'kind', 'judged', 'reason')
NO_IMAGE = 'holds no image'


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What is said of one image of a file.

  Attributes:
    path: relative to the input as it is shown, `#frame` behind it where a file holds several.
    verdict: real, fake, unsure or not_judged; of the last there is nothing but the reason.
    reasons: in words.
    p_fake: probability of being fake.
    score: of the network, above the detector's threshold where it raises an alarm.
    domain: deviations from the images that the detector was calibrated on.
    outside: whether they are too many.
    synthetic: whether the file itself says that it is.
    pixels: uint8[h, w], what the network saw, of a picture's detector.
    patch_map: log odds of each patch to be synthetic, or edited.
    series: a pseudonym of the Series Instance UID of CT in HU.
    peak: row and column of the highest log odds there.
    area_mm2: of what hangs together about the peak, NaN where the spacing is not known.
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
  series: str = ''
  peak: tuple[int, int] | None = None
  area_mm2: float = float('nan')

  @property
  def file(self) -> str:
    """Path of the file that holds the image."""
    path, mark, frame = self.path.rpartition('#')
    return path if mark and frame.isdigit() else self.path

  @property
  def frame(self) -> str:
    """Its number in the file from 1, '' where the file holds one image."""
    return self.path[len(self.file) + 1 :]


@dataclasses.dataclass(frozen=True)
class Ruling:
  """By what a verdict came about: a threshold, the rate it is for, the detector's name."""

  threshold: float
  false_alarm_rate: float
  detector: str


class Tables:
  """Writers of `verdicts.csv` and `objects.csv`; `opened` makes them."""

  def __init__(self, verdicts: Any, ruling: Ruling):
    self._verdicts, self._ruling = csv.writer(verdicts), ruling
    self._verdicts.writerow(COLUMNS)
    self._reasons: dict[str, str] = {}  # of files; '' of what was judged

  def add(self, found: Verdict) -> None:
    """The row of an image."""
    self._verdicts.writerow(_row(found, self._ruling))
    judged = found.verdict != NOT_JUDGED
    before = self._reasons.get(found.file, '; '.join(found.reasons))
    self._reasons[found.file] = '' if judged else before

  def objects(self, root: Path) -> Iterator[Sequence[str]]:
    """A row for each file below `root` that is not hidden."""
    for entry in walker.walk(root):
      if entry.kind not in ('folder', walker.HIDDEN):
        path = walker.shown(entry.path) or '.'
        reason = self._reasons.get(path, NO_IMAGE)
        judged = 'NO' if reason else 'YES'
        yield workdir_lib.csv_safe(path), entry.kind, judged, workdir_lib.csv_safe(reason)


@contextlib.contextmanager
def opened(workdir: Path, ruling: Ruling, root: Path) -> Iterator[Tables]:
  """Both tables, whole or not at all; `root` is the input."""
  unfinished = workdir / '.verdicts.csv.tmp'
  try:
    with open(unfinished, 'w', newline='', encoding='utf-8') as handle:
      tables = Tables(handle, ruling)
      yield tables
    write_table(workdir / 'objects.csv', OBJECT_COLUMNS, tables.objects(root))
    unfinished.replace(workdir / 'verdicts.csv')
  finally:
    unfinished.unlink(missing_ok=True)


def write_table(path: Path, columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
  """One CSV file, whole or not at all."""
  unfinished = path.with_name(f'.{path.name}.tmp')
  with open(unfinished, 'w', newline='', encoding='utf-8') as handle:
    writer = csv.writer(handle)
    writer.writerow(columns)
    writer.writerows(rows)
  unfinished.replace(path)


def number(value: float, digits: int = 6) -> str:
  """As tables show it; '' of what is none."""
  return '' if math.isnan(value) else f'{value:.{digits}f}'


def _row(found: Verdict, ruling: Ruling) -> list[str]:
  """Of `verdicts.csv`, in the order of `COLUMNS`."""
  row, column = ('', '') if found.peak is None else map(str, found.peak)
  return [
    workdir_lib.csv_safe(found.path),
    number(found.p_fake),
    found.verdict,
    number(found.score),
    f'{ruling.threshold:.6f}',
    f'{ruling.false_alarm_rate:g}',
    number(found.domain),
    'YES' if found.synthetic else '',
    workdir_lib.csv_safe('; '.join(found.reasons)),
    ruling.detector,
    found.series,
    found.frame,
    row,
    column,
    number(found.area_mm2, 1),
  ]
