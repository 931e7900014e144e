"""Where the pixels of a slice lie in the patient, and how they are turned for display.

Coordinates are DICOM's (PS3.3 C.7.6.2.1.1): mm, x to the patient's left, y to posterior, z to the
head. A pixel is named by row and column from 0, its centre.
"""

import dataclasses
import math

import numpy as np

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

  def place(self, row: float, column: float) -> Vector | None:
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
