"""Whole CT series as they are stored: values, rescale and place of every slice, nothing resampled.

Enters a folder of DICOM, of NIfTI or MetaImage volumes, or a phantom's series; leaves `CtSeries`,
whose voxels are the files' own, so that what is not changed can be written again bit by bit.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32

from ctfake_jax.data.sources import walker
from ctfake_jax.data.sources.dicom.source import DicomSource
from ctfake_jax.data.sources.dicom.writer import StoredPixels
from ctfake_jax.data.sources.phantom.volume import Series
from ctfake_jax.types import (
  UNKNOWN_LABEL,
  Plane,
  Record,
  UnreadableImageError,
  UserError,
  Vector,
  tilt_degrees,
)

STORED_ZERO_HU = -1024  # of a phantom's series
VOLUME_SUFFIXES = ('.nii', '.nii.gz', '.mha', '.mhd')
MOST_TILT_DEGREES = 30.0
LEAST_HU = -1024  # below it lies padding
AIRY_HU, TISSUE_HU = -500.0, 0.0  # a chest has both
UNEVEN = 0.1  # of the step between slices; more is said


@dataclasses.dataclass(frozen=True)
class CtSeries:
  """n slices by ascending position along their normal, of a supine patient from the feet up.

  Attributes:
    name: of the series, safe as a folder.
    stored: values as stored, rows and columns as in the files.
    slope, intercept: from them to HU, of each slice.
    padding: where there is none.
    planes: where the pixels lie.
    records: what each is an image of.
    bits_stored: of a value.
    signed: whether values are.
  """

  name: str
  stored: Int32[np.ndarray, 'n h w']
  slope: Float[np.ndarray, ' n']
  intercept: Float[np.ndarray, ' n']
  padding: Bool[np.ndarray, 'n h w']
  planes: tuple[Plane, ...]
  records: tuple[Record, ...]
  bits_stored: int
  signed: bool

  @property
  def hu(self) -> Float32[np.ndarray, 'n h w']:
    """Values in HU."""
    scaled = self.stored * self.slope[:, None, None] + self.intercept[:, None, None]
    return scaled.astype(np.float32)

  @property
  def spacing_mm(self) -> tuple[float, float, float]:
    """Between slices (the median step), rows and columns."""
    heights = np.array([plane.height_mm for plane in self.planes], float)
    return float(np.median(np.abs(np.diff(heights)))), *self.planes[0].spacing_mm

  @property
  def remarks(self) -> list[str]:
    """What a reader should know of how its slices lie."""
    steps = np.abs(np.diff(np.array([plane.height_mm for plane in self.planes], float)))
    odd = np.abs(steps - np.median(steps)) > UNEVEN * np.median(steps)
    return [f'{int(odd.sum())} of {len(steps)} steps between slices differ'] if odd.any() else []

  def changed(self, hu: Float32[np.ndarray, 'n h w']) -> 'CtSeries':
    """With the nearest storable values where HU differ from its own; padding stays."""
    exact = (hu - self.intercept[:, None, None]) / self.slope[:, None, None]
    low = -(2 ** (self.bits_stored - 1)) if self.signed else 0
    nearest = np.clip(np.rint(exact), low, low + 2**self.bits_stored - 1).astype(np.int32)
    return dataclasses.replace(self, stored=np.where(self.padding, self.stored, nearest))

  def pixels(self, row: int) -> StoredPixels:
    """Of a slice, as a file holds them."""
    return StoredPixels(
      self.stored[row],
      float(self.slope[row]),
      float(self.intercept[row]),
      self.bits_stored,
      self.signed,
    )


def of_phantom(scanned: Series, name: str) -> CtSeries:
  """A simulated series; nobody was scanned."""
  count, planes = len(scanned.hu), scanned.planes[::-1]
  return CtSeries(
    name=name,
    stored=scanned.hu[::-1].astype(np.int32) - STORED_ZERO_HU,
    slope=np.ones(count),
    intercept=np.full(count, float(STORED_ZERO_HU)),
    padding=np.zeros(scanned.hu.shape, bool),
    planes=planes,
    records=tuple(
      Record(0, name, f'{name}/{row + 1:04d}', plane=plane, simulated=True)
      for row, plane in enumerate(planes)
    ),
    bits_stored=16,
    signed=True,
  )


def of_dicom(
  root: pathlib.Path, max_pixels: int, synthetic_ok: bool, left_out: list[UnreadableImageError]
) -> Iterator[CtSeries]:
  """Every series of axial CT in HU below a folder; what is none is added to `left_out`.

  Raises:
    UserError: there is no CT at all.
  """
  source = DicomSource(
    root,
    labels_csv=None,
    max_pixels=max_pixels,
    unlabelled_ok=True,
    synthetic_ok=synthetic_ok,
  )
  left_out.extend(source.unreadable)
  members: dict[str, list[int]] = collections.defaultdict(list)
  for row, key in enumerate(source.series):
    members[key].append(row)
  for number, rows in enumerate(members.values()):
    try:
      yield _read(source, rows, f'{number:04d}')
    except UnreadableImageError as error:
      left_out.append(error)


def of_volumes(
  root: pathlib.Path, max_pixels: int, left_out: list[UnreadableImageError]
) -> Iterator[CtSeries]:
  """Every NIfTI or MetaImage volume of axial CT in HU below a folder, or the one file.

  What is none is added to `left_out`.

  Raises:
    UserError: there is no such file, or SimpleITK is not installed.
  """
  if not root.exists():
    raise UserError(f'config.data.path = {root}: no such file or folder')
  try:
    import SimpleITK
  except ImportError:
    raise UserError(
      "config.data.source = 'volumes': needs SimpleITK; pip install 'ctfake-jax[volumes]'"
    ) from None
  base, number = walker.base(root), 0
  for entry in walker.walk(root):
    if not entry.path.lower().endswith(VOLUME_SUFFIXES):
      continue
    try:
      yield _of_volume(SimpleITK, base / entry.path, entry.path, f'{number:04d}', max_pixels)
      number += 1
    except UnreadableImageError as error:
      left_out.append(error)


def _of_volume(itk, path: pathlib.Path, shown: str, name: str, max_pixels: int) -> CtSeries:
  """Raises UnreadableImageError where a file is no axial CT in HU."""
  reader = itk.ImageFileReader()
  reader.SetFileName(str(path))
  try:
    reader.ReadImageInformation()
    if reader.GetDimension() != 3 or min(reader.GetSize()) < 2:
      raise UnreadableImageError(shown, 'has no three dimensions')
    if reader.GetSize()[0] * reader.GetSize()[1] > max_pixels:
      raise UnreadableImageError(shown, f'a slice is above data.max_pixels = {max_pixels}')
    image = reader.Execute()
  except RuntimeError as error:
    reason = str(error).strip().splitlines()[-1]
    raise UnreadableImageError(shown, f'cannot be read ({reason})') from None
  direction = np.array(image.GetDirection()).reshape(3, 3)
  along, down, normal = (_vector(direction[:, i]) for i in range(3))
  if tilt_degrees((along, down)) > MOST_TILT_DEGREES:
    raise UnreadableImageError(shown, 'its slices are not axial')
  values = itk.GetArrayFromImage(image)
  if not _whole_hu(values):
    raise UnreadableImageError(
      shown, 'its values are no whole HU of a chest (air, tissue, 16 bits)'
    )
  column_mm, row_mm, step_mm = image.GetSpacing()
  corners = np.array(image.GetOrigin()) + step_mm * np.arange(len(values))[:, None] * normal
  planes = tuple(
    Plane(values.shape[1:], (row_mm, column_mm), (along, down), _vector(corner))
    for corner in corners
  )
  count = len(values)
  if planes[0].height_mm > planes[-1].height_mm:  # type: ignore[operator]
    values, planes = values[::-1], planes[::-1]
  return CtSeries(
    name=name,
    stored=values.astype(np.int32),
    slope=np.ones(count),
    intercept=np.zeros(count),
    padding=values < LEAST_HU,
    planes=planes,
    records=tuple(
      Record(UNKNOWN_LABEL, shown, f'{shown}#{row + 1}', path=shown, plane=plane)
      for row, plane in enumerate(planes)
    ),
    bits_stored=16,
    signed=True,
  )


def _vector(values: np.ndarray) -> Vector:
  x, y, z = values.tolist()
  return x, y, z


def _whole_hu(values: np.ndarray) -> bool:
  """Whether they can be HU of a chest and fit 16 bits."""
  if values.dtype.kind == 'f' and not (values == np.rint(values)).all():
    return False
  low, high = float(values.min()), float(values.max())
  return -(2**15) <= low < AIRY_HU < TISSUE_HU < high < 2**15


def _read(source: DicomSource, rows: list[int], name: str) -> CtSeries:
  """Raises UnreadableImageError naming the first slice that does not fit."""
  slices = [source.stored(row) for row in rows]
  records = tuple(source.records[row] for row in rows)
  for one, record in zip(slices, records):
    reason = _misfit(one, slices[0], record)
    if reason:
      raise UnreadableImageError(record.provenance, reason)
  if len(rows) < 2:
    raise UnreadableImageError(records[0].provenance, 'is a slice without neighbours, no series')
  planes = tuple(record.plane for record in records if record.plane is not None)
  return CtSeries(
    name=name,
    stored=np.stack([one.pixels.values for one in slices]).astype(np.int32),
    slope=np.array([one.pixels.slope for one in slices]),
    intercept=np.array([one.pixels.intercept for one in slices]),
    padding=np.stack([one.padding for one in slices]),
    planes=planes,
    records=records,
    bits_stored=slices[0].pixels.bits_stored,
    signed=slices[0].pixels.signed,
  )


def _misfit(one, first, record: Record) -> str:
  """Why a slice is no part of a series that can be changed; '' where it is."""
  if one.unit != 'HU':
    return 'its values are no HU'
  if record.plane is None or record.plane.height_mm is None:
    return 'its position in space is not known'
  if one.pixels.values.shape != first.pixels.values.shape:
    return 'its size differs from the others of its series'
  kinds = [(s.pixels.bits_stored, s.pixels.signed) for s in (one, first)]
  if kinds[0] != kinds[1]:
    return 'its bits differ from the others of its series'
  return ''
