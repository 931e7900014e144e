"""Untrusted CT in HU, as its files hold it: first what headers tell, then pixels, series by series.

Both are read in the processes of `sandboxed`, whose limits hold. Rows and columns are those of the
file. Worker processes import this module, so it must not import JAX.
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from ctfake_jax.data.sources import sandboxed, walker
from ctfake_jax.data.sources.sandboxed import Limits
from ctfake_jax.types import UserError

if TYPE_CHECKING:  # which decoder processes import when they need it
  from ctfake_jax.data.sources.dicom.source import DicomSource

AIR_HU = -1024.0  # of padding
NO_DICOM = (
  'no DICOM: the detector that comes with this package judges CT in HU; for pictures make one by '
  'configs/detector_folders.py and name it by --config.detector'
)


@dataclasses.dataclass(frozen=True)
class Header:
  """What is known of an image before its pixels are read, or the reason why it is not judged.

  Attributes:
    path: relative to the input as it is shown, `#frame` behind it where a file holds several.
    file: relative to the input, as the file system spells it.
    number: of the frame in its file, from 0.
    series: a pseudonym of the Series Instance UID; '' where there is no image.
    patient: a pseudonym of the Patient ID, '' where there is none.
    height_mm: along the normal of its plane, None where unknown.
    spacing_mm: between rows and columns, None where unknown.
    synthetic: whether the file itself says so.
    reason: '' where the image can be judged.
  """

  path: str
  file: str = ''
  number: int = 0
  series: str = ''
  patient: str = ''
  height_mm: float | None = None
  spacing_mm: tuple[float, float] | None = None
  synthetic: bool = False
  reason: str = ''


@dataclasses.dataclass(frozen=True)
class Frame:
  """An image in HU, rows and columns as stored; None where `header.reason` says why."""

  header: Header
  hu: Float32[np.ndarray, 'h w'] | None


@dataclasses.dataclass(frozen=True)
class _Headers:
  """The work of reading headers; items are paths below the base."""

  base: str
  max_pixels: int

  def decode(self, items: list[str], again: bool) -> list[Header]:
    del again
    return [header for item in items for header in self._file(item)]

  def _file(self, item: str) -> list[Header]:
    shown, path = walker.shown(item), Path(self.base) / item
    try:
      if not walker.is_dicom(path):
        return [Header(shown, item, reason=NO_DICOM)]
      source = _source(self.base, item, self.max_pixels)
    except Exception as error:  # whatever it is, the other files are judged
      return [Header(shown, item, reason=_reason(error, self.base))]
    found = [_header(source, row, item) for row in range(len(source))]
    return found + [Header(e.path, item, reason=e.reason) for e in source.unreadable]

  def failed(self, item: str, reason: str) -> Header:
    return Header(walker.shown(item), item, reason=reason)


@dataclasses.dataclass(frozen=True)
class _Pixels:
  """The work of decoding pixels; items are headers."""

  base: str
  max_pixels: int

  def decode(self, items: list[Header], again: bool) -> list[Frame]:
    del again
    return [self._frame(header) for header in items]

  def _frame(self, header: Header) -> Frame:
    try:
      source = _source(self.base, header.file, self.max_pixels)
      row = [record.provenance for record in source.records].index(header.path)
      stored = source.stored(row)
    except Exception as error:  # as above
      return self.failed(header, _reason(error, self.base, header.path))
    if stored.unit != 'HU':
      return self.failed(header, 'its values are no HU')
    pixels = stored.pixels
    hu = (pixels.values * pixels.slope + pixels.intercept).astype(np.float32)
    if not np.isfinite(hu).all():
      return self.failed(header, 'holds NaN or infinite values')
    return Frame(header, np.where(stored.padding, np.float32(AIR_HU), hu))

  def failed(self, item: Header, reason: str) -> Frame:
    return Frame(dataclasses.replace(item, reason=reason), None)


def headers(root: Path, limits: Limits, skipped: collections.Counter) -> list[Header]:
  """Of every image below `root`, or of the one file; hidden files are counted in `skipped`.

  Raises:
    UserError: there is no such file or folder.
  """
  if not root.exists():
    raise UserError(f'config.input = {root}: no such file or folder')
  work = _Headers(str(walker.base(root)), limits.max_pixels)
  files = sandboxed.seen_files(root, skipped, work.failed)
  return list(sandboxed.in_processes(work, files, limits))


def in_order(found: Iterable[Header]) -> list[Header]:
  """Those that can be judged, series by series, from the lowest slice to the highest."""
  series: dict[str, list[Header]] = collections.defaultdict(list)
  for header in found:
    if not header.reason:
      series[header.series].append(header)
  ordered = []
  for members in series.values():
    placed = all(header.height_mm is not None for header in members)
    ordered += sorted(members, key=lambda h: h.height_mm or 0.0) if placed else members
  return ordered


def frames(root: Path, asked: Iterable[Header], limits: Limits) -> Iterator[Frame]:
  """The pixels of headers, in their order."""
  work = _Pixels(str(walker.base(root)), limits.max_pixels)
  return sandboxed.in_processes(work, iter(asked), limits)


def _header(source: 'DicomSource', row: int, file: str) -> Header:
  record, key = source.records[row], source.series[row]
  plane, instance = record.plane, record.instance
  return Header(
    path=record.provenance,
    file=file,
    number=max(0, instance.frame - 1) if instance else 0,
    series=hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()[:12],
    patient=record.patient_id or '',
    height_mm=plane.height_mm if plane else None,
    spacing_mm=plane.spacing_mm if plane else None,
    synthetic=bool(instance and instance.synthetic),
  )


@functools.lru_cache(maxsize=1)
def _source(base: str, file: str, max_pixels: int) -> 'DicomSource':
  """A file alone; kept for its other frames."""
  from ctfake_jax.data.sources.dicom.source import DicomSource

  return DicomSource(
    Path(base),
    labels_csv=None,
    max_pixels=max_pixels,
    unlabelled_ok=True,
    synthetic_ok=True,
    files=[file],
  )


def _reason(error: Exception, base: str, path: str = '') -> str:
  """Without the folder that the input lies in, nor the path that stands beside it."""
  text = walker.shown(str(error).replace(base, '').strip())
  return text.removeprefix(f'{path}: ') or type(error).__name__
