"""What the header of a DICOM CT object must say of a frame, and what is taken from it.

Enters a parsed header; leaves spacing, plane, rescale and unit, or the reason why there are none;
`kind` says what is shown. An attribute of an enhanced object is that of the frame's own
functional group, else of the shared one, else of the object (PS3.3 C.7.6.16). Text that should be a
number and is none is quoted, of no other attribute more than a code.
"""

import contextlib
import logging
import math
import pathlib
import re
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.datadict import dictionary_description
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from ctfake_jax.data.sources import walker
from ctfake_jax.types import Plane, Unit, Vector

# A whole chest in 32 pixels has up to 16 mm a pixel; anything far above that is a mistake.
MAX_SPACING_MM, MIN_SPACING_MM = 20.0, 0.01

_CT_CLASSES = (
  uid.CTImageStorage,
  uid.EnhancedCTImageStorage,
  uid.LegacyConvertedEnhancedCTImageStorage,
)
# Which functional group macro bears an attribute in an enhanced object (C.7.6.16.2, C.8.15.3).
_MACROS = {
  'PixelSpacing': 'PixelMeasuresSequence',
  'ImagePositionPatient': 'PlanePositionSequence',
  'ImageOrientationPatient': 'PlaneOrientationSequence',
  'RescaleSlope': 'PixelValueTransformationSequence',
  'RescaleIntercept': 'PixelValueTransformationSequence',
  'RescaleType': 'PixelValueTransformationSequence',
  'FrameType': 'CTImageFrameTypeSequence',
  'VolumeBasedCalculationTechnique': 'CTImageFrameTypeSequence',
  'DerivationCodeSequence': 'DerivationImageSequence',
}
_AXES_TOLERANCE = 0.02  # of lengths and the product of directions; headers round
# What the letters of a patient orientation run towards.
_TOWARDS: dict[str, Vector] = {
  'L': (1, 0, 0),
  'R': (-1, 0, 0),
  'P': (0, 1, 0),
  'A': (0, -1, 0),
  'H': (0, 0, 1),
  'F': (0, 0, -1),
}
# A decimal string (PS3.5 6.2, DS), without blanks around it.
_DECIMAL = re.compile(r'[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?')
_SHOWN_CHARACTERS = 16  # of a text from a file: the longest decimal string


class RefusalError(Exception):
  """Why a file or frame cannot be used, in words fit for the user."""


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
  """Holds back pydicom's remarks on small breaches of the standard, which may quote patient data.

  Errors still raise, and warnings of NumPy still warn. Level and filters are the whole process's:
  the first of several threads sets them, and the last one puts back what was there.
  """
  _quiet.enter()
  try:
    yield
  finally:
    _quiet.leave()


class _Quiet:
  """How many threads want it quiet."""

  def __init__(self):
    self._lock, self._threads, self._before = threading.Lock(), 0, contextlib.ExitStack()

  def enter(self) -> None:
    with self._lock:
      self._threads += 1
      if self._threads == 1:
        logger = logging.getLogger('pydicom')
        self._before.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        self._before.enter_context(warnings.catch_warnings())
        warnings.simplefilter('ignore', UserWarning)

  def leave(self) -> None:
    with self._lock:
      self._threads -= 1
      if not self._threads:
        self._before.close()


_quiet = _Quiet()


def read(
  path: pathlib.Path, max_pixels: int, *, stop_before_pixels: bool = False
) -> pydicom.Dataset:
  """A file's attributes, pixels still encoded; raises pydicom's and `RefusalError`."""
  if program := walker.packed_by(path):
    raise RefusalError(f'is packed by {program}: unpack it')
  try:
    meta = read_file_meta_info(path)
  except InvalidDicomError:
    return _read_without_preamble(path)
  if meta.get('TransferSyntaxUID') == uid.DeflatedExplicitVRLittleEndian:
    # pydicom inflates the whole file at once: a few kB could ask for gigabytes.
    limit = 8 * max_pixels + 2**20
    deflated = path.read_bytes()[144 + meta.FileMetaInformationGroupLength :]
    if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(deflated, limit)) == limit:
      raise RefusalError(f'inflates to more than {limit} bytes')
  return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)


def _read_without_preamble(path: pathlib.Path) -> pydicom.Dataset:
  """A file as it was written before PS3.10; raises `InvalidDicomError` where it is no image."""
  with path.open('rb') as file:
    if str(uid.DeflatedExplicitVRLittleEndian).encode() in file.read(1024):
      raise RefusalError('deflated and without a DICM prefix; write it anew with one')
  ds = pydicom.dcmread(path, force=True)
  if not ds.get('SOPClassUID') or 'Rows' not in ds or 'Columns' not in ds:
    raise InvalidDicomError('no header of an image')
  if 'TransferSyntaxUID' not in ds.file_meta:
    if 'PixelData' in ds and ds['PixelData'].is_undefined_length:
      raise RefusalError('compressed, and neither DICM prefix nor Transfer Syntax UID say how')
    implicit, little = ds.original_encoding
    plain = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    ds.file_meta.TransferSyntaxUID = plain if little else uid.ExplicitVRBigEndian
  return ds


def check_file(header: pydicom.Dataset, file_bytes: int, max_pixels: int) -> int:
  """The number of frames; raises `RefusalError` for what is no CT image of sane size."""
  if (modality := header.get('Modality') or 'missing') != 'CT':
    raise RefusalError(f'Modality {modality}, need CT')
  if header.get('SOPClassUID') not in _CT_CLASSES:
    name = uid.UID(str(header.get('SOPClassUID') or 'missing')).name
    raise RefusalError(f'SOP Class {name}, need CT Image Storage or an enhanced form of it')
  photometric = header.get('PhotometricInterpretation')
  if header.get('SamplesPerPixel', 1) != 1 or photometric not in ('MONOCHROME1', 'MONOCHROME2'):
    raise RefusalError(f'Photometric Interpretation {photometric}, need grey values')
  rows, columns = (int(header.get(key) or 0) for key in ('Rows', 'Columns'))
  (frames,) = map(int, numbers(header, 0, 'NumberOfFrames') or (1,))
  if min(rows, columns, frames) < 1:
    raise RefusalError(f'{frames} frames of {rows} x {columns} pixels')
  if rows * columns > max_pixels:
    raise RefusalError(f'{rows} x {columns} is above data.max_pixels = {max_pixels}')
  groups = header.get('PerFrameFunctionalGroupsSequence')
  if groups and len(groups) != frames:
    raise RefusalError(f'{frames} frames, but functional groups for {len(groups)}')
  _check_bits(header)
  syntax = header.file_meta.TransferSyntaxUID
  # An encapsulated frame takes an item header of 8 bytes (PS3.5 A.4) and some content.
  bits = 72 if syntax.is_compressed else rows * columns * int(header.BitsAllocated)
  if not syntax.is_deflated and frames * bits // 8 > file_bytes:
    raise RefusalError(f'truncated: {frames * bits // 8} bytes of pixels in {file_bytes}')
  return frames


def _check_bits(header: pydicom.Dataset) -> None:
  """Stored bits must lie within the allocated ones (C.7.6.3.1, PS3.5 8.1.1).

  High Bit is one less than Bits Stored today. Older objects shift the values up in their cells,
  which no JPEG codestream knows of.
  """
  allocated, stored, high = (
    int(header.get(key) or 0) for key in ('BitsAllocated', 'BitsStored', 'HighBit')
  )
  shifted = high + 1 - stored
  shown = f'Bits Stored {stored}, High Bit {high} of {allocated} bits'
  if not 1 <= stored <= high + 1 <= allocated:
    raise RefusalError(f'{shown}: no such bits')
  syntax = header.file_meta.TransferSyntaxUID
  if shifted and syntax.is_compressed and not syntax.is_deflated and syntax != uid.RLELossless:
    raise RefusalError(f'{shown} in a JPEG: where the values lie is unknown')


def value(ds: pydicom.Dataset, frame: int, keyword: str) -> Any:
  """An attribute of one frame, None where it is missing or empty."""
  macro = _MACROS.get(keyword, '')
  for group in functional_groups(ds, frame) if macro else ():
    items = group.get(macro)
    if items and keyword in items[0]:
      return items[0].get(keyword)
  return ds.get(keyword)


def functional_groups(ds: pydicom.Dataset, frame: int) -> list[pydicom.Dataset]:
  """Those that speak of a frame, its own first; none in a classic object."""
  own = ds.get('PerFrameFunctionalGroupsSequence')
  shared = ds.get('SharedFunctionalGroupsSequence')
  return [*([own[frame]] if own else []), *([shared[0]] if shared else [])]


def numbers(ds: pydicom.Dataset, frame: int, keyword: str) -> tuple[float, ...] | None:
  """The finite numbers of an attribute, None where it is missing or empty.

  Raises:
    RefusalError: it holds a text that is no decimal number, '-1024,0' for one.
  """
  name = dictionary_description(keyword)
  try:
    found = value(ds, frame, keyword)
  except (TypeError, ValueError, OverflowError):
    raise RefusalError(f'{name} is no number') from None
  if found is None or found == '' or found == []:
    return None
  several = isinstance(found, Sequence) and not isinstance(found, str)
  texts = [str(item).strip() for item in (found if several else [found])]
  for text in texts:
    if not _DECIMAL.fullmatch(text):
      shown = ascii(text[:_SHOWN_CHARACTERS])
      raise RefusalError(f'{name} is {shown}, no number (which has a decimal point, if any)')
  if not all(map(math.isfinite, map(float, texts))):
    raise RefusalError(f'{name} is infinite')
  return tuple(map(float, texts))


def spacing_mm(ds: pydicom.Dataset, frame: int) -> tuple[float, float]:
  """(0028,0030) Pixel Spacing: between rows, between columns (10.7.1.3)."""
  spacing = numbers(ds, frame, 'PixelSpacing')
  if not spacing:
    raise RefusalError('Pixel Spacing is missing; scale is unknown without it')
  if len(spacing) != 2 or not all(MIN_SPACING_MM <= v <= MAX_SPACING_MM for v in spacing):
    shown = ' x '.join(f'{v:g}' for v in spacing)
    raise RefusalError(
      f'Pixel Spacing {shown} mm, need two values from {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g}'
    )
  return spacing[0], spacing[1]


def plane(ds: pydicom.Dataset, frame: int) -> Plane:
  """Where the frame's stored pixels lie (C.7.6.2).

  Raises:
    RefusalError: a spacing, position or orientation that is none.
  """
  shape, spacing = (int(ds.Rows), int(ds.Columns)), spacing_mm(ds, frame)
  corner = numbers(ds, frame, 'ImagePositionPatient')
  if corner and len(corner) != 3:
    raise RefusalError('Image Position (Patient) needs three values')
  return Plane(shape, spacing, _axes(ds, frame), corner)  # type: ignore[arg-type]


def _axes(ds: pydicom.Dataset, frame: int) -> tuple[Vector, Vector] | None:
  """Directions of rows and columns (0020,0037), else their letters (0020,0020; C.7.6.1.1.1)."""
  cosines = numbers(ds, frame, 'ImageOrientationPatient')
  if cosines is None:
    letters = ds.get('PatientOrientation') or ()
    known = [
      _TOWARDS[str(text).strip()[:1]] for text in letters if str(text).strip()[:1] in _TOWARDS
    ]
    axes = np.array(known, float)
    if len(known) != 2:
      return None
  else:
    axes = np.array(cosines)
  axes = axes.reshape(-1, 3) if axes.size == 6 else np.zeros((2, 3))
  if not np.allclose(axes @ axes.T, np.eye(2), atol=_AXES_TOLERANCE):
    raise RefusalError('Image Orientation (Patient) is no pair of perpendicular directions')
  row, column = axes.tolist()
  return tuple(row), tuple(column)


def unit(ds: pydicom.Dataset, frame: int) -> Unit:
  """What the values mean after the modality transformation; see `rescale` where it is missing."""
  if ds.get('ModalityLUTSequence'):
    kind = ds.ModalityLUTSequence[0].get('ModalityLUTType')
  else:
    rescale(ds, frame)
    # Rescale Type is required of a CT image only if it is not HU (C.8.2.1).
    kind = value(ds, frame, 'RescaleType') or 'HU'
  kind = str(kind).strip().upper()
  if kind not in ('HU', 'US'):
    raise RefusalError(f'Rescale Type {kind}, need HU')
  return 'HU' if kind == 'HU' else 'grey'


def lacks_intercept(ds: pydicom.Dataset, frame: int) -> bool:
  """Whether values are HU, but neither a table nor Rescale Intercept leads to them."""
  if ds.get('ModalityLUTSequence') or unit(ds, frame) != 'HU':
    return False
  return rescale(ds, frame)[1] is None


def rescale(ds: pydicom.Dataset, frame: int) -> tuple[float | None, float | None]:
  """Rescale Slope and Intercept (C.11.1.1.2), None for each that is missing or empty."""
  pair = [numbers(ds, frame, key) for key in ('RescaleSlope', 'RescaleIntercept')]
  if any(part is not None and len(part) != 1 for part in pair) or pair[0] == (0,):
    raise RefusalError(f'Rescale Slope {pair[0]} with Intercept {pair[1]}')
  slope, intercept = (part[0] if part else None for part in pair)
  return slope, intercept
