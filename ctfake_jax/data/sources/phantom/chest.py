"""A chest in three dimensions: tapering lungs, branching vessels and airways, ribs, heart, nodules.

It is made of solids, which `paint` puts into a `Slab` plane by plane, so that any number of slices
of any thickness shows one and the same patient; `chest_drawing` draws one at random. Coordinates as
in `solids`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from ctfake_jax.data.sources.phantom.anatomy import FAT, MUSCLE
from ctfake_jax.data.sources.phantom.solids import Points, Slab, inside

BODY_POWER = 2.4  # of the superellipse of the body's outline
WALL_MM = 1.2  # of airways
TEXTURE_MM, TEXTURE_HU = 3.0, 30.0  # of parenchyma: what is too small to be drawn
VERTEBRA_MM = 25.0


@dataclasses.dataclass(frozen=True)
class Tubes:
  """n tapering tubes of one HU."""

  starts: Points
  ends: Points
  radii: Float[np.ndarray, 'n 2']
  hu: float

  def wider(self, mm: float, hu: float) -> 'Tubes':
    """The same with a wall round them."""
    return Tubes(self.starts, self.ends, self.radii + mm, hu)

  def scaled(self, factors: Float[np.ndarray, ' 3']) -> 'Tubes':
    """With places, not radii, in another body."""
    return Tubes(self.starts * factors, self.ends * factors, self.radii, self.hu)


@dataclasses.dataclass(frozen=True)
class Ellipsoid:
  """Semi-axes along x, y (turned by `tilt`) and depth."""

  centre: tuple[float, float, float]
  axes: tuple[float, float, float]
  tilt: float
  hu: float

  def scale(self, depth: float) -> float:
    """Of its section at a depth; 0 above and below it."""
    return float(np.sqrt(max(0.0, 1 - ((depth - self.centre[2]) / self.axes[2]) ** 2)))

  def holds(self, points: Points) -> Bool[np.ndarray, ' n']:
    """Which points lie inside."""
    x, y, z = (points - np.array(self.centre)).T
    cos, sin = np.cos(self.tilt), np.sin(self.tilt)
    turned = np.stack([x * cos + y * sin, y * cos - x * sin, z], 1)
    return ((turned / np.array(self.axes)) ** 2).sum(1) < 1

  def paint(self, slab: Slab) -> None:
    """Into every plane that it meets."""
    for plane, depth in enumerate(slab.depths.tolist()):
      if scale := self.scale(depth):
        axes = self.axes[0] * scale, self.axes[1] * scale
        slab.paint(plane, *slab.ellipse(plane, self.centre[:2], axes, self.tilt), self.hu)


@dataclasses.dataclass(frozen=True)
class Lung:
  """Elliptic in each plane, narrow at the apex, hollowed from below by the diaphragm.

  `side` is -1 for the patient's right, shown on the left.
  """

  side: int
  centre: tuple[float, float]
  axes: tuple[float, float]
  tilt: float
  length: float
  dome: Ellipsoid
  hu: float

  def scale(self, depths: Float[np.ndarray, ' n']) -> Float[np.ndarray, ' n']:
    """Of its sections."""
    level = depths / self.length
    apex = np.sqrt(np.clip(1 - (1 - np.clip(level / 0.45, 0, 1)) ** 2, 0, 1))
    base = np.sqrt(np.clip(1 - (np.clip(level - 0.9, 0, 0.1) / 0.1) ** 2, 0, 1))
    return apex * base

  def level(self, points: Points) -> Float[np.ndarray, ' n']:
    """0 in the middle of a section, 1 on the pleura, above 1 outside and in the dome."""
    x, y = points[:, 0] - self.centre[0], points[:, 1] - self.centre[1]
    cos, sin = np.cos(self.tilt), np.sin(self.tilt)
    scale = np.maximum(self.scale(points[:, 2]), 1e-3)
    along, across = (x * cos + y * sin) / self.axes[0], (y * cos - x * sin) / self.axes[1]
    found = np.hypot(along, across) / scale
    return np.where(self.dome.holds(points), 2.0, found)

  @property
  def hilum(self) -> Float[np.ndarray, ' 3']:
    """Where vessels and airways enter."""
    x = self.centre[0] - self.side * 0.8 * self.axes[0]
    return np.array([x, self.centre[1], 0.46 * self.length])

  def points(self, rng: np.random.Generator, count: int, most: float, free: Callable) -> Points:
    """So many places inside, no farther out than `most`, where `free` says so."""
    found = np.zeros((0, 3))
    while len(found) < count:
      size = self.axes[0], self.axes[1], self.length / 2
      middle = np.array([*self.centre, self.length / 2])
      tried = middle + rng.uniform(-1, 1, (8 * count, 3)) * size
      found = np.concatenate([found, tried[(self.level(tried) < most) & free(tried)]])
    return found[:count]


@dataclasses.dataclass(frozen=True)
class Nodule:
  """A lesion with lobes: its radius in direction d is that of a sphere times 1 + lobes . (d . u)^3.

  Attributes:
    centre: mm.
    diameter_mm: of the sphere.
    hu: of its middle.
    directions: unit vectors u.
    lobes: height of each, of the radius.
  """

  centre: Float[np.ndarray, ' 3']
  diameter_mm: float
  hu: float
  directions: Float[np.ndarray, 'k 3']
  lobes: Float[np.ndarray, ' k']

  @classmethod
  def draw(cls, rng: np.random.Generator, centre: Float[np.ndarray, ' 3']) -> 'Nodule':
    """6 to 30 mm, solid or of ground glass."""
    directions = rng.normal(size=(8, 3))
    diameter = float(np.clip(np.exp(rng.normal(np.log(11), 0.45)), 6, 30))
    hu = rng.uniform(-30, 80) if rng.uniform() < 0.8 else rng.uniform(-650, -450)
    return cls(
      centre,
      diameter,
      float(hu),
      directions / np.linalg.norm(directions, axis=1, keepdims=True),
      rng.uniform(0, 0.35, 8),
    )

  def paint(self, slab: Slab) -> None:
    """Into every plane that it meets; what is denser stays."""
    reach = self.diameter_mm / 2 * (1 + self.lobes.sum()) + slab.pixel_mm
    rows, columns = (slab.pixels_near(float(c), reach) for c in self.centre[1::-1])
    grid = slab.columns()
    for plane, depth in enumerate(slab.depths.tolist()):
      if abs(depth - self.centre[2]) > reach:
        continue
      y, x = np.meshgrid(grid[rows] - self.centre[1], grid[columns] - self.centre[0], indexing='ij')
      offsets = np.stack([x, y, np.full_like(x, depth - self.centre[2])], -1)
      distance = np.linalg.norm(offsets, axis=-1)
      towards = np.clip(offsets @ self.directions.T / np.maximum(distance, 1e-6)[..., None], 0, 1)
      radius = self.diameter_mm / 2 * (1 + towards**3 @ self.lobes - self.lobes.sum() / 4)
      share = inside(distance - radius, slab.pixel_mm)
      own = slab.hu[plane, rows, columns]
      slab.paint(plane, (rows, columns), share * (own < self.hu), self.hu)


@dataclasses.dataclass(frozen=True)
class Chest:
  """A patient's chest.

  Attributes:
    body: semi-axes of its outline.
    fat_mm, wall_mm: thickness of what lies round the cavity.
    lungs: right, left.
    organs: heart and domes of the diaphragm.
    vessels: great ones, arteries and veins.
    airways: lumens.
    bones: what is denser than what it lies in, cortex first.
    spine: y of its middle, and the radius of a vertebra.
    nodules: of the lungs.
    texture: f32[z, y, x], standard normal, a cell of `TEXTURE_MM` each.
    table_mm: y of the couch's top.
  """

  body: tuple[float, float]
  fat_mm: float
  wall_mm: float
  lungs: tuple[Lung, Lung]
  organs: tuple[Ellipsoid, ...]
  vessels: tuple[Tubes, ...]
  airways: tuple[Tubes, ...]
  bones: tuple[Tubes, ...]
  spine: tuple[float, float]
  nodules: tuple[Nodule, ...]
  texture: Float[np.ndarray, 'z y x']
  table_mm: float

  @property
  def cavity(self) -> tuple[float, float]:
    """Its semi-axes."""
    wall = self.fat_mm + self.wall_mm
    return self.body[0] - wall, self.body[1] - wall

  def paint(self, slab: Slab) -> None:
    """All of it into the planes of a slab of air."""
    scales = [lung.scale(slab.depths).tolist() for lung in self.lungs]
    for plane, own_scales in enumerate(zip(*scales)):
      self._paint_body(slab, plane)
      for lung, scale in zip(self.lungs, own_scales):
        if scale:
          axes = lung.axes[0] * scale, lung.axes[1] * scale
          where, share = slab.ellipse(plane, lung.centre, axes, lung.tilt)
          # Blood sinks to the back: denser there.
          down = (slab.columns()[where[0]] / lung.axes[1])[:, None]
          slab.paint(plane, where, share, lung.hu + 35 * down, parenchyma=True)
    for organ in self.organs:
      organ.paint(slab)
    self._paint_texture(slab)
    for tubes in self.vessels:
      slab.paint_share(slab.tubes(tubes.starts, tubes.ends, tubes.radii), tubes.hu)
    for walled in (True, False):
      for tubes in self.airways:
        own = tubes.wider(WALL_MM, -50.0) if walled else tubes
        slab.paint_share(slab.tubes(own.starts, own.ends, own.radii), own.hu)
    for nodule in self.nodules:
      nodule.paint(slab)
    for tubes in self.bones:
      slab.paint_share(slab.tubes(tubes.starts, tubes.ends, tubes.radii), tubes.hu)

  def _paint_body(self, slab: Slab, plane: int) -> None:
    for half, thick, hu in ((215.0, 22.0, -700.0), (211.0, 18.0, -940.0)):
      slab.paint(plane, *slab.ellipse(plane, (0.0, self.table_mm), (half, thick)), hu)
    for inwards, hu in ((0.0, FAT), (self.fat_mm, MUSCLE), (self.fat_mm + self.wall_mm, -10.0)):
      axes = self.body[0] - inwards, self.body[1] - inwards
      slab.paint(plane, *slab.ellipse(plane, (0.0, 0.0), axes, power=BODY_POWER), hu)
    y, radius = self.spine
    waist = 1 - 0.08 * np.cos(2 * np.pi * slab.depths[plane] / VERTEBRA_MM)
    for part, hu in ((1.0, 420.0), (0.88, 190.0)):
      axes = radius * part * waist, radius * 0.85 * part * waist
      slab.paint(plane, *slab.ellipse(plane, (0.0, y), axes), hu)
    slab.paint(plane, *slab.ellipse(plane, (0.0, y + 1.4 * radius), (9.0, 8.0)), 20.0)

  def _paint_texture(self, slab: Slab) -> None:
    half = np.array(self.texture.shape[1:]) / 2
    across = slab.columns() / TEXTURE_MM
    rows, columns = (across + h - 0.5 for h in half)
    for plane, depth in enumerate(slab.depths.tolist()):
      z = np.clip(depth / TEXTURE_MM, 0, len(self.texture) - 1.001)
      low, part = int(z), z - int(z)
      cells = (1 - part) * self.texture[low] + part * self.texture[low + 1]
      fine = _bilinear(cells, rows, columns)
      slab.hu[plane] += TEXTURE_HU * fine * slab.lung[plane]


def _bilinear(
  cells: Float[np.ndarray, 'r c'], rows: Float[np.ndarray, ' h'], columns: Float[np.ndarray, ' w']
) -> Float[np.ndarray, 'h w']:
  """Values between cells; at the border as the nearest."""
  down, across = (_weights(n, p) for n, p in zip(cells.shape, (rows, columns)))
  return (down @ cells.astype(np.float32) @ across.T).astype(np.float32)


def _weights(cells: int, positions: Float[np.ndarray, ' n']) -> Float[np.ndarray, 'n cells']:
  at = np.clip(positions, 0, cells - 1.001)
  low = at.astype(int)
  weights = np.zeros((len(at), cells), np.float32)
  weights[np.arange(len(at)), low] = 1 - (at - low)
  weights[np.arange(len(at)), low + 1] = at - low
  return weights
