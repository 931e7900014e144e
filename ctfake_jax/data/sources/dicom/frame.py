"""The pixels of one frame of a DICOM CT object in HU.

Enters a file whose header was accepted (`header`); leaves a `types.Slice`, float32[h, w] in
HU with the side of a square pixel in mm.
What a frame becomes (sections of DICOM PS3.3):
  bits outside of Bits Stored are no part of a value (PS3.5 8.1.1); a codestream whose sign
    contradicts the header is refused where that makes a difference;
  stored values go through Rescale Slope and Intercept, or the Modality LUT, to HU before anything
    else (C.11.1), per frame where there are functional groups (C.7.6.16); where Slope or Intercept
    is missing, values are HU only if one way alone makes a plausible CT of them, which is remarked;
    what could be either goes the way of its series, and a file that plainly goes another is named;
  padding (C.7.5.1.1.2, compared with stored values) and whatever lies below -1024 HU become
    -1024 HU, as air around the patient: scanners differ in what they put there;
  MONOCHROME1 says that a display shows low values bright (C.7.6.3.1.2). That step comes after the
    rescale, so HU stay as they are: bone is 1000 HU in either;
  values without a meaning in HU (Rescale Type US) become grey in [0, 1] over the range of Bits
    Stored, unit 'grey'; here MONOCHROME1 is inverted, so that high is bright;
  unequal Pixel Spacing is resampled to the smaller of the two;
  rows and columns are turned to run to the patient's left and to posterior (C.7.6.2.1.1).
"""

import collections
import dataclasses
import struct
from collections.abc import Iterable, Sequence

import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, pixel_array
from skimage.transform import resize

from ctfake_jax.data.sources.dicom import header as dicom_header
from ctfake_jax.data.sources.dicom.header import RefusalError
from ctfake_jax.data.sources.dicom.writer import StoredPixels
from ctfake_jax.types import Slice, Unit

NO_ORIENTATION = 'no Image Orientation (Patient): rows and columns taken as they lie'

AIR_HU = -1024.0  # the lowest value of a 12-bit CT with intercept -1024
# 16 bits hold no more, and no tissue or metal is as dense: sign or rescale are wrong.
MOST_HU = 32767.0
USUAL_MOST_HU = 4095.0  # 12 bits, from air on; metal on an extended scale goes beyond
# Air and lung lie below, soft tissue and bone above.
MOST_OF_AIR_HU, LEAST_OF_TISSUE_HU = -500.0, -200.0
_HARDLY_ANY = 0.01  # share of the pixels
# Where the values of a chest lie: air about -1000 HU, soft tissue about 0 HU, bone and metal above.
_AIR_RANGE_HU, _TISSUE_RANGE_HU, _DENSE_HU = (-1050, -850), (-200, 200), 300
_LEAST_SHARE = 0.05  # of air and of soft tissue, where nothing but the values tells what they are
# Ways to HU that a missing rescale may have had: HU as they are, or raised to be positive.
_USUAL_INTERCEPTS = (0.0, AIR_HU)


@dataclasses.dataclass(frozen=True)
class _Codestream:
  """What a compressed frame says of itself; `signed` is None where its kind has no say in that."""

  shape: tuple[int, int]
  precision: int
  signed: bool | None


def decode(ds: pydicom.Dataset, frame: int, intercept: float | None = None) -> Slice:
  """The pixels of a frame whose header has passed `check_file` and `check_axial`.

  `intercept` is what a series without Rescale Intercept was found to need (`intercept_of_series`).
  Raises `RefusalError`, and whatever a decoder raises on damaged data.
  """
  stored, padding = _stored(ds, frame)
  unit = dicom_header.unit(ds, frame)
  remarks: list[str] = []
  # What does not fit a float32 becomes infinite, which the next check names.
  with np.errstate(over='ignore', invalid='ignore'):
    if unit == 'HU':
      values, remarks = _hu(ds, frame, stored, padding, intercept)
    else:
      values = _grey(ds, stored)
    values = values.astype(np.float32)
  if not np.isfinite(values).all():
    raise RefusalError('holds NaN or infinite values')
  values[padding] = AIR_HU if unit == 'HU' else 0
  if unit == 'HU':
    values = np.maximum(values, AIR_HU)
    remarks += _doubts(values)
  plane = dicom_header.plane(ds, frame)
  if plane.axes is None:
    remarks.append(NO_ORIENTATION)
  if plane.square_shape != values.shape:  # only ever enlarged, so there is nothing to alias
    values = resize(
      values, plane.square_shape, order=1, mode='edge', anti_aliasing=False, preserve_range=True
    )
  displayed = np.ascontiguousarray(plane.display(values), np.float32)
  return Slice(
    displayed,
    unit,
    min(plane.spacing_mm),
    remarks=tuple(remarks),
    orientation=plane.display,
  )


@dataclasses.dataclass(frozen=True)
class StoredFrame:
  """A frame as its file holds it.

  Attributes:
    pixels: values with their way to HU.
    padding: bool[h, w], where there are none.
    unit: what they become.
  """

  pixels: StoredPixels
  padding: np.ndarray
  unit: Unit


def stored(ds: pydicom.Dataset, frame: int) -> StoredFrame:
  """The values of a frame whose header has passed, rows and columns as stored.

  Raises `RefusalError` where no slope and intercept tell what they are, and as `decode`.
  """
  values, padding = _stored(ds, frame)
  slope, intercept = dicom_header.rescale(ds, frame)
  if slope is None or intercept is None or ds.get('ModalityLUTSequence'):
    raise RefusalError('has no Rescale Slope and Intercept')
  if values.dtype.kind == 'f' or ds.BitsStored > 16:
    raise RefusalError('its values are no whole numbers of at most 16 bits')
  pixels = StoredPixels(
    values.astype(np.int32), slope, intercept, int(ds.BitsStored), bool(ds.PixelRepresentation)
  )
  return StoredFrame(pixels, padding, dicom_header.unit(ds, frame))


def intercept_of_series(votes: Iterable[Sequence[float]]) -> float | None:
  """The intercept that most slices need, of `plausible_intercepts` of each; None for no majority.

  A slice that several intercepts or none would suit (an apex with hardly any air) has no vote.
  """
  counts = collections.Counter(plain[0] for plain in votes if len(plain) == 1)
  most, count = counts.most_common(1)[0] if counts else (None, 0)
  return most if 2 * count > counts.total() else None


def plausible_intercepts(ds: pydicom.Dataset, frame: int) -> list[float]:
  """The intercepts by which the values of a frame without Rescale Intercept can be HU."""
  stored, padding = _stored(ds, frame)
  slope, _ = dicom_header.rescale(ds, frame)
  return _plausible(stored[~padding] * (1.0 if slope is None else slope), _USUAL_INTERCEPTS)


def _stored(ds: pydicom.Dataset, frame: int) -> tuple[np.ndarray, np.ndarray]:
  """Stored values [h, w] and the mask of those that are padding."""
  cells = _cells(ds, frame)
  stored = _read_bits(ds, cells, ds.BitsStored, shifted=True)
  return stored, _padding(ds, cells, stored)


def _cells(ds: pydicom.Dataset, frame: int) -> np.ndarray:
  """[h, w] as decoded, with whatever is in unused bits."""
  stream = _codestream(ds, frame)
  if stream and stream.shape != (ds.Rows, ds.Columns):  # decoders allocate by the JPEG
    raise RefusalError(
      f'compressed image of {stream.shape[0]} x {stream.shape[1]} pixels, '
      f'header says {ds.Rows} x {ds.Columns}'
    )
  cells = pixel_array(
    ds,
    index=frame,
    raw=True,
    correct_unused_bits=False,
    apply_j2k_sign_correction=False,
    apply_jls_sign_correction=False,
  )
  if cells.shape != (ds.Rows, ds.Columns):
    raise RefusalError(f'decodes to {cells.shape}, header says {ds.Rows} x {ds.Columns}')
  if stream:
    _check_sign(ds, stream, cells)
  return cells


def _check_sign(ds: pydicom.Dataset, stream: _Codestream, cells: np.ndarray) -> None:
  """Refuses values that are negative to the codestream or the header only (PS3.5 8.2.1, 8.2.4).

  Where a codestream has no sign, header and codestream agree as long as they have as many bits.
  """
  signed = bool(ds.PixelRepresentation)
  differ = (
    signed and stream.precision < ds.BitsStored
    if stream.signed is None
    else signed != stream.signed
  )
  if differ and (_whole(cells) >> (stream.precision - 1) & 1).any():
    names = {True: 'signed', False: 'unsigned', None: f'{stream.precision}-bit'}
    raise RefusalError(
      f'the compressed image is {names[stream.signed]}, the header says {names[signed]} of '
      f'{ds.BitsStored} bits: which values are negative is unknown'
    )


def _read_bits(
  ds: pydicom.Dataset, cells: np.ndarray, bits: int, *, shifted: bool = False
) -> np.ndarray:
  """Values of `bits` bits, signed as the pixels are; `shifted` up to High Bit or not.

  Pixels stored as floating point have no unused bits and are returned as they are.
  """
  if cells.dtype.kind == 'f':
    return cells
  up = ds.HighBit + 1 - bits if shifted else 0
  values = (_whole(cells) >> up) & (2**bits - 1)
  return values - ((values >> (bits - 1)) << bits) if ds.PixelRepresentation else values


def _whole(cells: np.ndarray) -> np.ndarray:
  """Whole numbers with room for a sign."""
  return cells.astype(np.int32 if cells.dtype.itemsize <= 2 else np.int64)


def _padding(ds: pydicom.Dataset, cells: np.ndarray, stored: np.ndarray) -> np.ndarray:
  """Mask of what is Pixel Padding Value, or between it and the Range Limit.

  It is read as a stored value. One that needs more than Bits Stored speaks of whole cells, if any
  cell has it, for its lower bits alone may be those of bone. Writers confuse US and SS: 63536 means
  -2000 where the pixels are signed, and the reverse. Lossy compression moves padding off its value.
  """
  value = ds.get('PixelPaddingValue')
  if value is None or cells.dtype.kind == 'f':
    return np.zeros(stored.shape, bool)
  limit = ds.get('PixelPaddingRangeLimit')
  ends = np.array([value, value if limit is None else limit], np.int64)
  own, whole = (_read_bits(ds, ends, bits) for bits in (ds.BitsStored, ds.BitsAllocated))
  if (own != whole).any():
    in_cells = _between(_read_bits(ds, cells, ds.BitsAllocated), whole)
    if in_cells.any():
      return in_cells
  return _between(stored, own)


def _between(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
  return (values >= ends.min()) & (values <= ends.max())


def _hu(
  ds: pydicom.Dataset,
  frame: int,
  stored: np.ndarray,
  padding: np.ndarray,
  of_series: float | None,
) -> tuple[np.ndarray, list[str]]:
  """HU, and what had to be supposed."""
  if ds.get('ModalityLUTSequence'):
    return apply_modality_lut(stored, ds), []
  slope, intercept = dicom_header.rescale(ds, frame)
  if slope is not None and intercept is not None:
    return stored * slope + intercept, []
  missing = {'Slope': slope, 'Intercept': intercept}
  names = 'no Rescale ' + ' and '.join(name for name, given in missing.items() if given is None)
  slope = 1.0 if slope is None else slope
  scaled = stored * slope
  found = _plausible(scaled[~padding], _USUAL_INTERCEPTS if intercept is None else (intercept,))
  if intercept is None and of_series is not None and len(found) != 1:
    found = [of_series]
  if len(found) != 1:
    raise RefusalError(f'{names}, and the values are not plainly HU')
  taken = f'{names}; values taken as {_way(slope, found[0])}'
  if of_series is not None and of_series != found[0]:
    taken += f' in a series of {_way(slope, of_series)}'
  return scaled + found[0], [taken]


def _way(slope: float, intercept: float) -> str:
  """What stored values are where these make HU of them."""
  way = 'HU' if slope == 1 else f'HU / {slope:g}'
  return f'{way} + {-intercept:g}' if intercept else way


def _plausible(scaled: np.ndarray, intercepts: Sequence[float]) -> list[float]:
  return [intercept for intercept in intercepts if _only_hu(scaled + intercept)]


def _only_hu(hu: np.ndarray) -> bool:
  """Whether values of no declared meaning can only be HU of a chest.

  Much air and much soft tissue, little that is denser, nothing above what 12 bits hold: a picture
  spread over grey levels fills its range otherwise.
  """
  air, tissue = (
    float(((hu >= low) & (hu <= high)).mean()) if hu.size else 0.0
    for low, high in (_AIR_RANGE_HU, _TISSUE_RANGE_HU)
  )
  dense = float((hu > _DENSE_HU).mean()) if hu.size else 1.0
  return min(air, tissue) >= _LEAST_SHARE and dense < tissue and bool(hu.max() < 4096)


def _doubts(hu: np.ndarray) -> list[str]:
  """What makes HU hard to believe; raises `RefusalError` for what they cannot be."""
  high = float(hu.max())
  if high > MOST_HU:
    raise RefusalError(f'values up to {high:g} HU: sign or rescale are wrong')
  if hu.min() == high:
    return []
  if high > USUAL_MOST_HU:
    return [f'values above {USUAL_MOST_HU:g} HU: metal, or a wrong rescale slope?']
  for share, words in (
    ((hu < MOST_OF_AIR_HU).mean(), f'below {MOST_OF_AIR_HU:g} HU, but a chest has air'),
    ((hu > LEAST_OF_TISSUE_HU).mean(), f'above {LEAST_OF_TISSUE_HU:g} HU, but a chest has tissue'),
  ):
    if share < _HARDLY_ANY:
      return [f'hardly any value {words}: is the rescale right?']
  return []


def _grey(ds: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
  low = -(2 ** (ds.BitsStored - 1)) if ds.PixelRepresentation else 0
  grey = np.clip((stored.astype(np.float64) - low) / (2**ds.BitsStored - 1), 0, 1)
  return 1 - grey if ds.PhotometricInterpretation == 'MONOCHROME1' else grey


def _codestream(ds: pydicom.Dataset, frame: int) -> _Codestream | None:
  """Of a frame compressed as JPEG, JPEG-LS or JPEG 2000; None for others."""
  syntax = ds.file_meta.TransferSyntaxUID
  if not syntax.is_compressed or syntax.is_deflated or syntax == uid.RLELossless:
    return None
  offsets = None
  if 'ExtendedOffsetTable' in ds:
    offsets = ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths
  count = int(ds.get('NumberOfFrames', 1) or 1)
  return _parsed(get_frame(ds.PixelData, frame, number_of_frames=count, extended_offsets=offsets))


def _parsed(coded: bytes) -> _Codestream:
  """What a codestream declares.

  JPEG 2000: the SIZ segment follows SOC at once; its Ssiz has the sign in the highest bit and the
  precision less one below (ISO/IEC 15444-1, A.5.1). JPEG and JPEG-LS: the first frame header, SOF0
  to SOF15 or SOF55 (ISO/IEC 10918-1, B.2.2; 14495-1, C.2.2).
  """
  siz = coded.find(b'\xff\x4f\xff\x51')
  if not coded.startswith(b'\xff\xd8') and siz >= 0:
    right, bottom, left, top = struct.unpack_from('>4I', coded, siz + 8)
    (sample,) = struct.unpack_from('>B', coded, siz + 42)
    return _Codestream((bottom - top, right - left), (sample & 0x7F) + 1, bool(sample & 0x80))
  at = 2
  while True:
    mark, code, length = struct.unpack_from('>BBH', coded, at)
    if mark != 0xFF:
      raise RefusalError('compressed image without a frame header')
    if code == 0xF7 or (0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC)):
      precision, rows, columns = struct.unpack_from('>BHH', coded, at + 4)
      return _Codestream((rows, columns), precision, None)
    at += 1 if code == 0xFF else 2 + length  # markers may be preceded by fill bytes
