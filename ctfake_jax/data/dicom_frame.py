"""One frame of a DICOM CT object: what its header must say, and its pixels in HU.

Enters a file; leaves a `types.Slice`, float32[h, w] in HU with the side of a square pixel in mm.
What a frame becomes (sections of DICOM PS3.3):
  stored values go through Rescale Slope and Intercept, or the Modality LUT, to HU before anything
    else (C.11.1), per frame where there are functional groups (C.7.6.16);
  padding (C.7.5.1.1.2, compared with stored values) becomes -1024 HU, as air around the patient;
  MONOCHROME1 says that a display shows low values bright (C.7.6.3.1.2). That step comes after the
    rescale, so HU stay as they are: bone is 1000 HU in either;
  values without a meaning in HU (no rescale, or Rescale Type US) become grey in [0, 1] over the
    range of Bits Stored, unit 'grey'; here MONOCHROME1 is inverted, so that high is bright;
  unequal Pixel Spacing is resampled to the smaller of the two.
"""

import contextlib
import logging
import math
import pathlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_modality_lut, pixel_array
from skimage.transform import resize

from ctfake_jax.types import Slice, Unit

AIR_HU = -1024.0  # what padding becomes: the lowest value of a 12-bit CT with intercept -1024
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
}


class RefusalError(Exception):
  """Why a file or frame cannot be used, in words fit for the user."""


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
  """Holds back pydicom's remarks on small breaches of the standard, which may quote patient data.

  Errors still raise, and warnings of NumPy still warn.
  """
  logger = logging.getLogger('pydicom')
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', UserWarning)
      yield
  finally:
    logger.setLevel(level)


def read(
  path: pathlib.Path, max_pixels: int, *, stop_before_pixels: bool = False
) -> pydicom.Dataset:
  """A file's attributes, pixels still encoded; raises pydicom's and `RefusalError`."""
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
  frames = int(header.get('NumberOfFrames', 1) or 1)
  if min(rows, columns, frames) < 1:
    raise RefusalError(f'{frames} frames of {rows} x {columns} pixels')
  if rows * columns > max_pixels:
    raise RefusalError(f'{rows} x {columns} is above data.max_pixels = {max_pixels}')
  groups = header.get('PerFrameFunctionalGroupsSequence')
  if groups and len(groups) != frames:
    raise RefusalError(f'{frames} frames, but functional groups for {len(groups)}')
  syntax = header.file_meta.TransferSyntaxUID
  # An encapsulated frame takes an item header of 8 bytes (PS3.5 A.4) and some content.
  bits = 72 if syntax.is_compressed else rows * columns * int(header.BitsAllocated)
  if not syntax.is_deflated and frames * bits // 8 > file_bytes:
    raise RefusalError(f'truncated: {frames * bits // 8} bytes of pixels in {file_bytes}')
  return frames


def _value(ds: pydicom.Dataset, frame: int, keyword: str) -> Any:
  """An attribute of one frame: its own functional group, else the shared one, else the top."""
  own = ds.get('PerFrameFunctionalGroupsSequence')
  shared = ds.get('SharedFunctionalGroupsSequence')
  for groups in (own[frame] if own else None, shared[0] if shared else None):
    macro = groups.get(_MACROS[keyword]) if groups is not None else None
    if macro and keyword in macro[0]:
      return macro[0].get(keyword)
  return ds.get(keyword)


def check_frame(header: pydicom.Dataset, frame: int, max_pixels: int) -> None:
  """Raises `RefusalError` where the header rules the frame out: localizer, units, spacing."""
  types = header.get('ImageType'), _value(header, frame, 'FrameType')
  if any('LOCALIZER' in np.atleast_1d(kind) for kind in types if kind):
    raise RefusalError('a localizer (Image Type), need an axial slice')
  _unit(header, frame)
  rows, columns = _square_shape(header, _spacing_mm(header, frame))
  if rows * columns > max_pixels:
    raise RefusalError(
      f'with square pixels {rows} x {columns} is above data.max_pixels = {max_pixels}'
    )


def _spacing_mm(ds: pydicom.Dataset, frame: int) -> tuple[float, float]:
  """(0028,0030) Pixel Spacing: between rows, between columns (10.7.1.3)."""
  value = _value(ds, frame, 'PixelSpacing')
  if not value:
    raise RefusalError('Pixel Spacing is missing; scale is unknown without it')
  spacing = tuple(float(v) for v in np.atleast_1d(value))
  if len(spacing) != 2 or not all(MIN_SPACING_MM <= v <= MAX_SPACING_MM for v in spacing):
    shown = ' x '.join(f'{v:g}' for v in spacing)
    raise RefusalError(
      f'Pixel Spacing {shown} mm, need two values from {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g}'
    )
  return spacing[0], spacing[1]


def _square_shape(ds: pydicom.Dataset, spacing_mm: tuple[float, float]) -> tuple[int, int]:
  side = min(spacing_mm)
  return round(ds.Rows * spacing_mm[0] / side), round(ds.Columns * spacing_mm[1] / side)


def position_mm(ds: pydicom.Dataset, frame: int) -> float | None:
  """Distance from the origin along the slice normal (C.7.6.2.1.1), None where not given."""
  try:
    axes = np.array(_value(ds, frame, 'ImageOrientationPatient'), float).reshape(2, 3)
    corner = np.array(_value(ds, frame, 'ImagePositionPatient'), float).reshape(3)
  except (TypeError, ValueError):
    return None
  position = float(np.cross(axes[0], axes[1]) @ corner)
  return position if math.isfinite(position) else None


def _unit(ds: pydicom.Dataset, frame: int) -> Unit:
  """What the values mean after the modality transformation."""
  if ds.get('ModalityLUTSequence'):
    kind = ds.ModalityLUTSequence[0].get('ModalityLUTType')
  else:
    slope, intercept = _value(ds, frame, 'RescaleSlope'), _value(ds, frame, 'RescaleIntercept')
    if slope is None and intercept is None:
      return 'grey'
    if slope is None or intercept is None or not (math.isfinite(slope * intercept) and slope):
      raise RefusalError(f'Rescale Slope {slope} with Intercept {intercept}')
    # Rescale Type is required of a CT image only if it is not HU (C.8.2.1).
    kind = _value(ds, frame, 'RescaleType') or 'HU'
  if kind not in ('HU', 'US'):
    raise RefusalError(f'Rescale Type {kind}, need HU')
  return 'HU' if kind == 'HU' else 'grey'


def decode(ds: pydicom.Dataset, frame: int) -> Slice:
  """The pixels of a frame whose header has passed `check_file` and `check_frame`.

  Raises `RefusalError`, and whatever a decoder raises on damaged data.
  """
  _check_codestream(ds, frame)
  stored = pixel_array(ds, index=frame, raw=True)
  if stored.shape != (ds.Rows, ds.Columns):
    raise RefusalError(f'decodes to {stored.shape}, header says {ds.Rows} x {ds.Columns}')
  unit = _unit(ds, frame)
  # What does not fit a float32 becomes infinite, which the next check names.
  with np.errstate(over='ignore', invalid='ignore'):
    values = (_hu(ds, frame, stored) if unit == 'HU' else _grey(ds, stored)).astype(np.float32)
  values[_padding(ds, stored)] = AIR_HU if unit == 'HU' else 0
  if not np.isfinite(values).all():
    raise RefusalError('holds NaN or infinite values')
  spacing = _spacing_mm(ds, frame)
  shape = _square_shape(ds, spacing)
  if shape != values.shape:  # only ever enlarged, so there is nothing to alias
    values = resize(values, shape, order=1, mode='edge', anti_aliasing=False, preserve_range=True)
  return Slice(values.astype(np.float32), unit, min(spacing))


def _hu(ds: pydicom.Dataset, frame: int, stored: np.ndarray) -> np.ndarray:
  if ds.get('ModalityLUTSequence'):
    return apply_modality_lut(stored, ds)
  slope, intercept = _value(ds, frame, 'RescaleSlope'), _value(ds, frame, 'RescaleIntercept')
  return stored.astype(np.float64) * float(slope) + float(intercept)


def _grey(ds: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
  low = -(2 ** (ds.BitsStored - 1)) if ds.PixelRepresentation else 0
  grey = np.clip((stored.astype(np.float64) - low) / (2**ds.BitsStored - 1), 0, 1)
  return 1 - grey if ds.PhotometricInterpretation == 'MONOCHROME1' else grey


def _padding(ds: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
  """Mask of stored values that are Pixel Padding Value, or between it and the Range Limit.

  Lossy compression moves padding off its value; what is missed stays as far below air as it was
  stored, and any window cuts it off.
  """
  value = ds.get('PixelPaddingValue')
  if value is None:
    return np.zeros(stored.shape, bool)
  limit = ds.get('PixelPaddingRangeLimit')
  # Writers confuse US and SS: 63536 means -2000 where the pixels are signed, and the reverse.
  ends = np.array([value, value if limit is None else limit], np.int64).astype(stored.dtype)
  return (stored >= ends.min()) & (stored <= ends.max())


def _check_codestream(ds: pydicom.Dataset, frame: int) -> None:
  """Refuses a JPEG that is larger than the header says: decoders allocate by the JPEG."""
  syntax = ds.file_meta.TransferSyntaxUID
  if not syntax.is_compressed or syntax.is_deflated or syntax == uid.RLELossless:
    return
  offsets = None
  if 'ExtendedOffsetTable' in ds:
    offsets = ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths
  count = int(ds.get('NumberOfFrames', 1) or 1)
  coded = get_frame(ds.PixelData, frame, number_of_frames=count, extended_offsets=offsets)
  size = _coded_size(coded)
  if size != (ds.Rows, ds.Columns):
    raise RefusalError(
      f'compressed image of {size[0]} x {size[1]} pixels, header says {ds.Rows} x {ds.Columns}'
    )


def _coded_size(coded: bytes) -> tuple[int, int]:
  """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 codestream declares.

  JPEG 2000: the SIZ segment follows SOC at once (ISO/IEC 15444-1, A.5.1). JPEG and JPEG-LS: the
  first frame header, SOF0 to SOF15 or SOF55 (ISO/IEC 10918-1, B.2.2; 14495-1, C.2.2).
  """
  siz = coded.find(b'\xff\x4f\xff\x51')
  if not coded.startswith(b'\xff\xd8') and siz >= 0:
    right, bottom, left, top = struct.unpack_from('>4I', coded, siz + 8)
    return bottom - top, right - left
  at = 2
  while True:
    mark, code, length = struct.unpack_from('>BBH', coded, at)
    if mark != 0xFF:
      raise RefusalError('compressed image without a frame header')
    if code == 0xF7 or (0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC)):
      rows, columns = struct.unpack_from('>HH', coded, at + 5)
      return rows, columns
    at += 1 if code == 0xFF else 2 + length  # markers may be preceded by fill bytes
