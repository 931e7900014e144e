"""What passes between the rooms: slices and where they lie in the patient, image sets, errors.

Shape letters used in every docstring: b batch, n images, h height, w width,
c channels or classes, z slices of a series.
Coordinates are DICOM's (PS3.3 C.7.6.2.1.1): mm, x to the patient's left, y to posterior, z to the
head. A pixel is named by row and column from 0, its centre.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped

Unit = Literal['HU', 'grey']
UNKNOWN_LABEL = -1
Own = TypeVar('Own', bound='Images')  # the class that a method is called on


class UserError(ValueError):
  """A mistake in what the user gave: shown as one message, without a traceback."""


class PreemptedError(BaseException):
  """The run was asked to stop; the same command goes on where it stopped.

  No `Exception`: it may be raised in the middle of a decoder, whose errors are the file's.
  """


class UnreadableImageError(UserError):
  """One image that cannot be decoded; listed in the result, never silently dropped."""

  def __init__(self, path: str, reason: str):
    super().__init__(f'{path}: {reason}')
    self.path, self.reason = path, reason


Vector = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class DisplayOrientation:
  """What is done to stored rows and columns to display them: first transposed, then flipped.

  Displayed rows run to the patient's left and displayed columns to posterior, so that a prone, a
  mirrored or a turned slice looks as a supine one does.
  """

  transpose: bool = False
  flip_rows: bool = False
  flip_columns: bool = False

  @classmethod
  def of(cls, axes: tuple[Vector, Vector] | None) -> 'DisplayOrientation':
    """For an axial slice with these directions of its rows and columns; none known: as stored."""
    if axes is None:
      return cls()
    transpose = abs(axes[0][0]) < abs(axes[0][1])
    row, column = axes[::-1] if transpose else axes
    return cls(transpose, flip_rows=column[1] < 0, flip_columns=row[0] < 0)

  def __call__(self, pixels: np.ndarray) -> np.ndarray:
    """Stored pixels [h, w] as displayed."""
    pixels = pixels.T if self.transpose else pixels
    pixels = pixels[::-1] if self.flip_rows else pixels
    return pixels[:, ::-1] if self.flip_columns else pixels

  @property
  def inverse(self) -> 'DisplayOrientation':
    """What brings displayed pixels back to stored rows and columns."""
    flips = self.flip_rows, self.flip_columns
    return DisplayOrientation(self.transpose, *(flips[::-1] if self.transpose else flips))

  def stored_pixel(
    self, row: float, column: float, displayed_shape: tuple[int, int]
  ) -> tuple[float, float]:
    """Stored row and column of a displayed pixel of an image of `displayed_shape`."""
    height, width = displayed_shape
    row = height - 1 - row if self.flip_rows else row
    column = width - 1 - column if self.flip_columns else column
    return (column, row) if self.transpose else (row, column)


AS_STORED = DisplayOrientation()


@dataclasses.dataclass(frozen=True)
class Plane:
  """A grid of pixels in the patient.

  Attributes:
    shape: rows, columns.
    spacing_mm: between rows, between columns.
    axes: directions (unit vectors) in which a row and a column run, None where unknown.
    corner_mm: centre of the first pixel, None where unknown.
  """

  shape: tuple[int, int]
  spacing_mm: tuple[float, float]
  axes: tuple[Vector, Vector] | None = None
  corner_mm: Vector | None = None

  @property
  def display(self) -> DisplayOrientation:
    """How its pixels are turned for display."""
    return DisplayOrientation.of(self.axes)

  @property
  def square_shape(self) -> tuple[int, int]:
    """Its shape with square pixels of the smaller spacing."""
    side = min(self.spacing_mm)
    rows, columns = (round(n * mm / side) for n, mm in zip(self.shape, self.spacing_mm))
    return rows, columns

  @property
  def height_mm(self) -> float | None:
    """Distance from the origin along the normal of the plane, None where unknown."""
    if self.axes is None or self.corner_mm is None:
      return None
    return float(np.cross(*self.axes) @ np.array(self.corner_mm))

  def turned(self, turn: DisplayOrientation) -> 'Plane':
    """The same pixels, their rows and columns turned."""
    shape, spacing, axes = self.shape, self.spacing_mm, self.axes
    if turn.transpose:
      shape, spacing, axes = shape[::-1], spacing[::-1], axes and axes[::-1]
    if axes is None:
      return Plane(shape, spacing)
    last = [n - 1 if flip else 0 for n, flip in zip(shape, (turn.flip_rows, turn.flip_columns))]
    whole = Plane(shape, spacing, axes, self.corner_mm)
    row, column = axes
    return Plane(
      shape,
      spacing,
      (
        _negative(row) if turn.flip_columns else row,
        _negative(column) if turn.flip_rows else column,
      ),
      whole.place(*last),
    )

  def cut(
    self, top: float, left: float, height: float, width: float, shape: tuple[int, int]
  ) -> 'Plane':
    """The rectangle of its pixels [top, top + height) x [left, left + width), sampled anew.

    It may reach over the border. Edges stay where they are, as when an image is resized.
    """
    steps = height / shape[0], width / shape[1]
    # The centre of a first new pixel lies half a new pixel from the edge, which lies half an old
    # pixel before the centre of the old one.
    corner = self.place(top + (steps[0] - 1) / 2, left + (steps[1] - 1) / 2)
    spacing = self.spacing_mm[0] * steps[0], self.spacing_mm[1] * steps[1]
    return Plane(shape, spacing, self.axes, corner)

  def place(self, row: float | np.integer, column: float | np.integer) -> Vector | None:
    """Where a pixel lies, None where unknown."""
    if self.axes is None or self.corner_mm is None:
      return None
    along, down = (np.array(axis) for axis in self.axes)
    x, y, z = (
      np.array(self.corner_mm)
      + along * column * self.spacing_mm[1]
      + down * row * self.spacing_mm[0]
    )
    return float(x), float(y), float(z)


def centred(shape: tuple[int, int], spacing_mm: tuple[float, float], z_mm: float = 0.0) -> Plane:
  """An axial plane in display orientation, the origin in its middle."""
  corner = tuple(-mm * (n - 1) / 2 for n, mm in zip(shape, spacing_mm))
  return Plane(shape, spacing_mm, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), (corner[1], corner[0], z_mm))


def tilt_degrees(axes: tuple[Vector, Vector]) -> float:
  """Angle between the plane and an axial one, 0 to 90."""
  return math.degrees(math.acos(min(1.0, abs(float(np.cross(*axes)[2])))))


def _negative(axis: Vector) -> Vector:
  x, y, z = (0.0 - v for v in axis)  # 0.0 - 0.0 is no -0
  return x, y, z


@dataclasses.dataclass(frozen=True)
class Instance:
  """The DICOM object that an image is of. Its UIDs name an image of a patient: only hashed they
  may go into a file.

  Attributes:
    frame: its number from 1 where the object has several, else 0.
    synthetic: whether it says that it is.
  """

  sop_class_uid: str
  sop_instance_uid: str = dataclasses.field(repr=False)
  frame_of_reference_uid: str = dataclasses.field(repr=False)
  frame: int
  synthetic: bool


@dataclasses.dataclass(frozen=True)
class Record:
  """What a source knows of an image before decoding it.

  Attributes:
    label: index into the source's `class_names`, `UNKNOWN_LABEL` where none is given.
    patient_id: who was scanned, None where the source cannot know.
    provenance: path relative to the source's root as it is shown, with `#frame` where a file holds
      several; or the phantom's recipe.
    split: 'train', 'val' or 'test' where the source prescribes it, else None.
    path: of the file, relative to the source's root, as the file system spells it; '' of none.
    plane: where its pixels lie as they are stored, None where unknown.
    instance: the DICOM object that it is of, None where it is of none.
    simulated: whether a phantom was scanned, nobody else.
    remarks: of the slice, once it was decoded.
  """

  label: int
  patient_id: str | None
  provenance: str
  split: str | None = None
  path: str = dataclasses.field(default='', compare=False)
  plane: Plane | None = None
  instance: Instance | None = None
  simulated: bool = False
  remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Slice:
  """One decoded image.

  Attributes:
    pixels: HU, or grey in [0, 1] as stored (0 black, 1 the type's maximum).
    unit: 'HU' or 'grey'.
    spacing_mm: side of a (square) pixel in mm, None where unknown.
    white: the stored value that grey 1 stands for, the type's maximum; 1 of floats and where it is
      not known.
    significant_bits: of a stored value, where a PNG says so (sBIT).
    remarks: what had to be supposed or is hard to believe, each in a few words that are the same
      for all slices of its kind.
    orientation: how stored rows and columns were turned.
    synthetic: whether the file itself says so; the first remark says where.
  """

  pixels: Float[np.ndarray, 'h w']
  unit: Unit
  spacing_mm: float | None
  white: int = 1
  significant_bits: int | None = None
  remarks: tuple[str, ...] = ()
  orientation: DisplayOrientation = AS_STORED
  synthetic: bool = False


@runtime_checkable
class Source(Protocol):
  """Random access to images with their facts; index i of `records` is index i of `[]`.

  `source[i]` raises `UnreadableImageError`; `unreadable` lists what could not even be indexed.
  Sources that walk folders also have `skipped`: how many files they did not read, by kind.
  """

  @property
  def class_names(self) -> tuple[str, ...]:
    """What a label means; () where nothing is labelled."""

  @property
  def records(self) -> Sequence[Record]:
    """Facts of every image, known before decoding."""

  @property
  def unreadable(self) -> Sequence[UnreadableImageError]:
    """Files that could not be indexed."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Slice: ...


@runtime_checkable
class ImagesOnDisk(Protocol):
  """What stands for an array of images that are read when they are indexed."""

  @property
  def shape(self) -> tuple[int, ...]:
    """n, h, w, 1."""

  def __len__(self) -> int: ...

  def __getitem__(self, key: Any) -> np.ndarray: ...

  @property
  def fingerprints(self) -> Any:
    """What `data.fingerprints.Fingerprints.of` finds in them."""

  def subset(self, rows: Int[np.ndarray, ' m']) -> 'ImagesOnDisk':
    """The images at `rows`, unread."""


def _of_all(**options: Any) -> Any:
  """A field of a set that says something of all its images; every other has an entry for each."""
  return dataclasses.field(metadata={'of_all': True}, **options)


@dataclasses.dataclass(frozen=True, repr=False)
class Images:
  """n images and their classes, in host memory or read when they are indexed.

  A subclass adds columns, each with an entry for every image: `take` and `join` take them along.

  Attributes:
    images: float32[n, h, w, 1] in [-1, 1].
  """

  images: Any  # Float[np.ndarray, 'n h w c'] or ImagesOnDisk
  labels: Int[np.ndarray, ' n']

  def __len__(self) -> int:
    return len(self.labels)

  def __repr__(self) -> str:
    sizes = 'x'.join(map(str, self.images.shape[1:]))
    counts = ', '.join(map(str, np.bincount(self.labels.clip(0)).tolist()))
    return f'<{type(self).__name__}: {len(self)} images {sizes}, by label {counts}>'

  @classmethod
  def _columns(cls) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if not f.metadata.get('of_all')]

  def take(self: Own, rows: Shaped[np.ndarray, ' m']) -> Own:
    """The images at `rows`, indices in their order or bool[n]; what is on disk stays there."""
    indices = np.arange(len(self))[rows]
    parts = {name: _entries(getattr(self, name), indices) for name in self._columns()}
    return dataclasses.replace(self, **parts)

  @classmethod
  def join(cls: type[Own], sets: Sequence[Own]) -> Own:
    """One set after the other; what is said of all images is the first's."""
    parts = {name: _joined([getattr(s, name) for s in sets]) for name in cls._columns()}
    return dataclasses.replace(sets[0], **parts)


def _entries(column: Any, indices: np.ndarray) -> Any:
  if isinstance(column, ImagesOnDisk):
    return column.subset(indices)
  if isinstance(column, tuple):
    return tuple(column[i] for i in indices.tolist())
  return None if column is None else column[indices]


def _joined(columns: list) -> Any:
  if isinstance(columns[0], tuple):
    return tuple(itertools.chain.from_iterable(columns))
  return None if columns[0] is None else np.concatenate(columns)


@dataclasses.dataclass(frozen=True, repr=False)
class GroupedImages(Images):
  """Images of which it is known what belongs together.

  Attributes:
    groups: patient or set of near-duplicates; one naming for all sets of a study.
  """

  groups: Shaped[np.ndarray, ' n']


@dataclasses.dataclass(frozen=True, repr=False)
class ImageSet(Images):
  """Preprocessed images of a source.

  Attributes:
    records: one per image, in order.
    native_sizes: height and width before resizing.
    class_names: what a label means.
    unit: of the pixels before the window.
    unreadable: what was left out and why.
    skipped: how many files were not read, by kind.
    grey_range: that the stored values of grey pictures use, LOW-HIGH/MAXIMUM; '' not known.
  """

  records: tuple[Record, ...]
  native_sizes: Int[np.ndarray, 'n 2']
  class_names: tuple[str, ...] = _of_all()
  unit: Unit = _of_all()  # noqa: RUF009
  unreadable: tuple[UnreadableImageError, ...] = _of_all(default=())
  skipped: Mapping[str, int] = _of_all(default_factory=dict)
  grey_range: str = _of_all(default='')

  def preceded_by(self, generated: Images, kind: str) -> 'ImageSet':
    """A set with generated images of the same side first, their provenance named `kind`."""
    made = dataclasses.replace(
      self,
      images=generated.images,
      labels=generated.labels.astype(np.int32),
      records=tuple(Record(int(k), None, f'{kind} {i}') for i, k in enumerate(generated.labels)),
      native_sizes=np.tile(np.array(generated.images.shape[1:3], np.int32), (len(generated), 1)),
    )
    return ImageSet.join([made, self])
