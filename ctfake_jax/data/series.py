"""Whole CT series as they are stored: values, rescale and place of every slice, nothing resampled.

Enters a folder of DICOM, of NIfTI or MetaImage volumes, or a phantom's series; leaves `CtSeries`,
whose voxels are the files' own, so that what is not changed can be written again bit by bit.
"""

import collections
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32

from ctfake_jax import __version__
from ctfake_jax.config.keys import Config
from ctfake_jax.data.sources import walker
from ctfake_jax.data.sources.dicom import statements
from ctfake_jax.data.sources.dicom.frame import StoredFrame
from ctfake_jax.data.sources.dicom.kind import MAX_TILT_DEGREES
from ctfake_jax.data.sources.dicom.source import DicomSource
from ctfake_jax.data.sources.dicom.writer import Statement, StoredPixels, write_ct
from ctfake_jax.data.sources.phantom import volume
from ctfake_jax.runtime import progress_bar
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
HEADER_BYTES = 2**16  # of a MetaImage, which are text
VOLUME_SUFFIXES = ('.nii', '.nii.gz', '.mha', '.mhd')
MOST_SLICES = 5000  # of a volume; more are refused unread
LEAST_HU = -1024  # below it lies padding
AIRY_HU, TISSUE_HU = -500.0, 0.0  # a chest has both
ALONE_MM = 5.0  # taken for the thickness of a slice without neighbours
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
    simulated: what its own files say, where it is a phantom's.
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
  simulated: Statement | None = None

  @property
  def hu(self) -> Float32[np.ndarray, 'n h w']:
    """Values in HU."""
    scaled = self.stored * self.slope[:, None, None] + self.intercept[:, None, None]
    return scaled.astype(np.float32)

  @functools.cached_property
  def heights_mm(self) -> Float[np.ndarray, ' n']:
    """Positions along the normal, ascending."""
    return np.array([plane.height_mm for plane in self.planes], float)

  @property
  def spacing_mm(self) -> tuple[float, float, float]:
    """Between slices (the median step; of one alone `ALONE_MM`), rows and columns."""
    steps = np.diff(self.heights_mm)
    return float(np.median(steps)) if steps.size else ALONE_MM, *self.planes[0].spacing_mm

  @property
  def remarks(self) -> list[str]:
    """What a reader should know of how its slices lie."""
    steps = np.diff(self.heights_mm)
    odd = np.abs(steps - np.median(steps)) > UNEVEN * np.median(steps)
    return [f'{int(odd.sum())} of {len(steps)} steps between slices differ'] if odd.any() else []

  def voxel_of(self, point: Float[np.ndarray, ' 3']) -> tuple[float, float, float]:
    """Slice, row and column of a point (x, y, z) of the patient, mm; a slice of -1 lies outside."""
    axes, corner = self.planes[0].axes, self.planes[0].corner_mm
    assert axes is not None
    assert corner is not None
    height = float(np.cross(*axes) @ point)
    place = float(np.interp(height, self.heights_mm, np.arange(len(self.planes)), -1, -1))
    along, down = (float(np.array(axis) @ (point - np.array(corner))) for axis in axes)
    row_mm, column_mm = self.planes[0].spacing_mm
    return place, down / row_mm, along / column_mm

  def changed(self, hu: Float32[np.ndarray, 'n h w']) -> 'CtSeries':
    """With the nearest storable values where HU differ from its own; padding stays."""
    exact = (hu - self.intercept[:, None, None]) / self.slope[:, None, None]
    low = -(2 ** (self.bits_stored - 1)) if self.signed else 0
    nearest = np.clip(np.rint(exact), low, low + 2**self.bits_stored - 1).astype(np.int32)
    stays = self.padding | (hu == self.hu)
    return dataclasses.replace(self, stored=np.where(stays, self.stored, nearest))

  def pixels(self, row: int) -> StoredPixels:
    """Of a slice, as a file holds them."""
    return StoredPixels(
      self.stored[row],
      float(self.slope[row]),
      float(self.intercept[row]),
      self.bits_stored,
      self.signed,
    )


def write(
  series: CtSeries, folder: pathlib.Path, statement: Callable[[int], Statement]
) -> dict[str, str]:
  """CT Image Storage, a file a slice by ascending position; the hash of each by its name.

  Args:
    series: what is written.
    folder: where to; made.
    statement: what is said of the slice of a number.
  """
  folder.mkdir(parents=True, exist_ok=True)
  digests = {}
  for row in progress_bar.bar('writing DICOM', range(len(series.stored))):
    path, plane = folder / f'{row + 1:04d}.dcm', series.planes[row]
    number, said = row + 1, statement(row)
    write_ct(path, series.pixels(row), plane=plane, statement=said, instance_number=number)
    digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
  return digests


def write_simulated(series: CtSeries, folder: pathlib.Path) -> dict[str, str]:
  """As `write`, a phantom's own series."""
  statement = series.simulated
  assert statement is not None
  return write(series, folder, lambda _: statement)


def of_phantom(config: Config) -> Iterator[tuple[CtSeries, volume.Series]]:
  """Every patient of `config.phantom`, as a series and as the phantom has it."""
  c = config.phantom
  for patient in range(c.patients):
    scanned = volume.series(
      seed=c.seed,
      patient=patient,
      slices=c.slices_per_patient,
      size=c.size or config.data.image_size,
      thickness_mm=c.thickness_mm,
      scanners=c.scanners,
    )
    yield of_simulated(scanned, f'phantom-{c.seed}-{patient:04d}'), scanned


def of_simulated(scanned: volume.Series, name: str) -> CtSeries:
  """A simulated series; nobody was scanned."""
  count, planes = len(scanned.hu), scanned.planes[::-1]
  parts = (name, scanned.hu.shape, scanned.thickness_mm, scanned.scanner)
  statement = statements.simulated(
    version=__version__,
    patient=name,
    recipe='/'.join(map(str, parts)),
    thickness_mm=scanned.thickness_mm,
    kernel=scanned.kernel,
  )
  return CtSeries(
    name=name,
    stored=scanned.hu[::-1].astype(np.int32) - STORED_ZERO_HU,
    slope=np.ones(count),
    intercept=np.full(count, float(STORED_ZERO_HU)),
    padding=np.zeros(scanned.hu.shape, bool),
    planes=planes,
    records=tuple(
      Record(UNKNOWN_LABEL, name, f'{name}/{row + 1:04d}.dcm', plane=plane, simulated=True)
      for row, plane in enumerate(planes)
    ),
    bits_stored=16,
    signed=True,
    simulated=statement,
  )


def of_dicom(
  root: pathlib.Path,
  max_pixels: int,
  synthetic_ok: bool,
  left_out: list[UnreadableImageError],
  *,
  alone_ok: bool = False,
  leave_out: Sequence[str] = (),
) -> Iterator[CtSeries]:
  """Every series of axial CT in HU below a folder; what is none is added to `left_out`.

  A slice without neighbours is one where it is `alone_ok`. Files and folders of `leave_out`,
  relative to the root, are not read.

  Raises:
    UserError: there is no CT at all.
  """
  source = DicomSource(
    root,
    labels_csv=None,
    max_pixels=max_pixels,
    unlabelled_ok=True,
    synthetic_ok=synthetic_ok,
    files=_others(root, leave_out) if leave_out else None,
  )
  left_out.extend(source.unreadable)
  members: dict[str, list[int]] = collections.defaultdict(list)
  for row, key in enumerate(source.series):
    members[key].append(row)
  for number, rows in enumerate(members.values()):
    try:
      yield _read(source, rows, f'{number:04d}', alone_ok)
    except UnreadableImageError as error:
      left_out.append(error)


def _others(root: pathlib.Path, leave_out: Sequence[str]) -> list[str]:
  """DICOM files below a folder but for these, and those in folders of such a name."""
  out = tuple(name.rstrip('/') for name in leave_out)
  if absent := [name for name in out if not (root / name).exists()]:
    raise UserError(f'config.forensics.leave_out: {root / absent[0]} does not exist')
  return [
    entry.path
    for entry in walker.walk(root)
    if entry.kind == 'dicom'
    and not any(entry.path == name or entry.path.startswith(f'{name}/') for name in out)
  ]


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
  if _lies_elsewhere(path):
    raise UnreadableImageError(shown, 'its pixels lie in another folder')
  reader = itk.ImageFileReader()
  reader.SetFileName(str(path))
  try:
    reader.ReadImageInformation()
    if reader.GetDimension() != 3 or min(reader.GetSize()) < 2:
      raise UnreadableImageError(shown, 'has no three dimensions')
    if reader.GetSize()[2] > MOST_SLICES:
      raise UnreadableImageError(shown, f'has more than {MOST_SLICES} slices')
    if reader.GetSize()[0] * reader.GetSize()[1] > max_pixels:
      raise UnreadableImageError(shown, f'a slice is above data.max_pixels = {max_pixels}')
    image = reader.Execute()
  except RuntimeError as error:
    reason = str(error).strip().splitlines()[-1]
    raise UnreadableImageError(shown, f'cannot be read ({reason})') from None
  direction = np.array(image.GetDirection()).reshape(3, 3)
  along, down, normal = (_vector(direction[:, i]) for i in range(3))
  if tilt_degrees((along, down)) > MAX_TILT_DEGREES:
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
  if np.dot(np.cross(along, down), normal) < 0:  # stored from the head down
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


def _lies_elsewhere(path: pathlib.Path) -> bool:
  """Whether a MetaImage header names pixels outside of its own folder."""
  if path.suffix.lower() not in ('.mha', '.mhd'):
    return False
  with path.open('rb') as file:
    head = file.read(HEADER_BYTES)
  _, _, named = head.partition(b'ElementDataFile')
  line = named.partition(b'\n')[0]
  return b'/' in line or b'\\' in line or b'..' in line


def _vector(values: np.ndarray) -> Vector:
  x, y, z = values.tolist()
  return x, y, z


def _whole_hu(values: np.ndarray) -> bool:
  """Whether they can be HU of a chest and fit 16 bits."""
  if values.dtype.kind == 'f' and not (values == np.rint(values)).all():
    return False
  low, high = float(values.min()), float(values.max())
  return -(2**15) <= low < AIRY_HU < TISSUE_HU < high < 2**15


def _read(source: DicomSource, rows: list[int], name: str, alone_ok: bool) -> CtSeries:
  """Raises UnreadableImageError naming the first slice that does not fit."""
  slices = [source.stored(row) for row in rows]
  records = tuple(source.records[row] for row in rows)
  for one, record in zip(slices, records):
    if reason := _misfit(one, slices[0], record, records[0]):
      raise UnreadableImageError(record.provenance, reason)
  heights = [record.plane.height_mm for record in records if record.plane is not None]
  if len(set(heights)) < len(heights):
    raise UnreadableImageError(
      records[0].provenance, 'several slices of its series lie at one place'
    )
  if len(rows) < 2 and not alone_ok:
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


def _misfit(one: StoredFrame, first: StoredFrame, record: Record, first_record: Record) -> str:
  """Why a slice is no part of a series that can be changed; '' where it is."""
  if one.unit != 'HU':
    return 'its values are no HU'
  if record.plane is None or record.plane.height_mm is None:
    return 'its position in space is not known'
  lie = [(r.plane.axes, r.plane.spacing_mm) for r in (record, first_record) if r.plane is not None]
  if lie[0] != lie[-1]:
    return 'its orientation or spacing differs from the others of its series'
  if one.pixels.values.shape != first.pixels.values.shape:
    return 'its size differs from the others of its series'
  kinds = [(s.pixels.bits_stored, s.pixels.signed) for s in (one, first)]
  if kinds[0] != kinds[1]:
    return 'its bits differ from the others of its series'
  return ''
