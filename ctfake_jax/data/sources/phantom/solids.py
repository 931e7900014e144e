"""Solids as voxels: how much of each voxel lies inside, and painting with that.

A `Slab` is a stack of parallel planes, float32[z, h, w] HU. Coordinates are mm: x to the image's
right, y down, both from the middle of the image; depth from the apex of the lungs towards the feet.
What a voxel holds is mixed by volume, as a scanner averages attenuation, so that edges and
partial volume come out right; a solid painted over another replaces it.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float32

SOFT_EDGE = 0.5  # pixels on each side of a border over which a voxel goes from outside to inside
Points = Float[np.ndarray, 'n 3']  # x, y, depth


@dataclasses.dataclass(frozen=True)
class Slab:
  """Planes that are being painted.

  Attributes:
    hu: values.
    lung: share of each voxel that is parenchyma.
    depths: of the planes, mm.
    pixel_mm: side of a pixel.
  """

  hu: Float32[np.ndarray, 'z h w']
  lung: Float32[np.ndarray, 'z h w']
  depths: Float[np.ndarray, ' z']
  pixel_mm: float

  @classmethod
  def empty(cls, depths: Float[np.ndarray, ' z'], size: int, pixel_mm: float, hu: float) -> 'Slab':
    """All of one value."""
    shape = (len(depths), size, size)
    return cls(np.full(shape, hu, np.float32), np.zeros(shape, np.float32), depths, pixel_mm)

  def columns(self) -> Float32[np.ndarray, ' w']:
    """X of the pixels, and y as well, mm."""
    size = self.hu.shape[-1]
    return ((np.arange(size) - (size - 1) / 2) * self.pixel_mm).astype(np.float32)

  def ellipse(
    self,
    plane: int,
    centre: tuple[float, float],
    axes: tuple[float, float],
    tilt: float = 0.0,
    power: float = 2.0,
  ) -> tuple[tuple[slice, slice], Float32[np.ndarray, 'r c']]:
    """Where an ellipse of a plane lies, and how much of each pixel there is inside.

    `power` above 2 makes it squarer (a superellipse).
    """
    reach = float(np.hypot(*axes)) + 2 * self.pixel_mm
    rows, columns = (self.pixels_near(c, reach) for c in centre[::-1])
    grid = self.columns()
    x, y = grid[columns][None, :] - centre[0], grid[rows][:, None] - centre[1]
    cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    along, across = np.abs((x * cos + y * sin) / axes[0]), np.abs((y * cos - x * sin) / axes[1])
    level = (along**power + across**power) ** (1 / power)
    steep = np.hypot(along ** (power - 1) / axes[0], across ** (power - 1) / axes[1])
    slope = steep / np.maximum(level, 1e-6) ** (power - 1)
    distance = (level - 1) / np.maximum(slope, 1e-6)  # mm outwards, right near the border
    return (rows, columns), inside(distance, self.pixel_mm)

  def paint(
    self,
    plane: int,
    where: tuple[slice, slice],
    share: Float32[np.ndarray, 'r c'],
    hu: Float[np.ndarray, 'r _'] | float,
    parenchyma: bool = False,
  ) -> None:
    """Replaces what lies there by `hu`, in the share of each pixel that is inside."""
    own = self.hu[(plane, *where)]
    own += share * (hu - own)
    lung = self.lung[(plane, *where)]
    lung += share * (float(parenchyma) - lung)

  def tubes(
    self, starts: Points, ends: Points, radii: Float[np.ndarray, 'n 2']
  ) -> Float32[np.ndarray, 'z h w']:
    """Share of each voxel inside any of n tapering tubes with round ends, radii in mm."""
    share = np.zeros(self.hu.shape, np.float32)
    for number in self._near(starts, ends, radii.max(1)):
      self._tube(share, starts[number], ends[number], radii[number])
    return share

  def _near(self, starts: Points, ends: Points, radii: Float[np.ndarray, ' n']) -> Iterator[int]:
    """Of tubes, those that reach a plane of the slab."""
    reach = radii + self.pixel_mm
    low = np.minimum(starts[:, 2], ends[:, 2]) - reach
    high = np.maximum(starts[:, 2], ends[:, 2]) + reach
    yield from np.nonzero((high >= self.depths[0]) & (low <= self.depths[-1]))[0].tolist()

  def _tube(self, share: np.ndarray, start: np.ndarray, end: np.ndarray, radii: np.ndarray) -> None:
    reach = float(radii.max()) + 2 * self.pixel_mm
    low, high = np.minimum(start, end) - reach, np.maximum(start, end) + reach
    columns, rows = (
      self.pixels_near((low[i] + high[i]) / 2, (high[i] - low[i]) / 2) for i in (0, 1)
    )
    first, last = np.searchsorted(self.depths, [low[2], high[2]])
    grid, axis = self.columns(), (end - start).astype(np.float32)
    square = max(float(axis @ axis), 1e-6)
    x = grid[columns][None, None, :] - np.float32(start[0])
    y = grid[rows][None, :, None] - np.float32(start[1])
    z = (self.depths[first:last] - start[2]).astype(np.float32)[:, None, None]
    part = np.clip((x * axis[0] + y * axis[1] + z * axis[2]) / square, 0, 1)
    distance = np.sqrt(
      (x - part * axis[0]) ** 2 + (y - part * axis[1]) ** 2 + (z - part * axis[2]) ** 2
    )
    radius = radii[0] + part * (radii[1] - radii[0])
    own = share[first:last, rows, columns]
    np.maximum(own, inside(distance - radius, self.pixel_mm), out=own)

  def paint_share(
    self, share: Float32[np.ndarray, 'z h w'], hu: Float32[np.ndarray, 'z h w'] | float
  ) -> None:
    """Replaces what lies in the share of each voxel by `hu`."""
    self.hu[...] += share * (hu - self.hu)
    self.lung[...] *= 1 - share

  def pixels_near(self, centre: float, reach: float) -> slice:
    """Pixels within `reach` of a coordinate."""
    middle = (self.hu.shape[-1] - 1) / 2
    low, high = ((centre + side * reach) / self.pixel_mm + middle for side in (-1, 1))
    return slice(max(0, int(np.floor(low))), max(0, int(np.ceil(high)) + 1))


def inside(distance: Float[np.ndarray, '*shape'], pixel_mm: float) -> Float32[np.ndarray, '*shape']:
  """Share of a pixel whose centre lies so far outside a border, mm."""
  return np.clip(SOFT_EDGE - distance / pixel_mm, 0, 1).astype(np.float32)
