"""A chest in three dimensions: tapering lungs, branching vessels and airways, ribs, heart, nodules.

Enters a random stream; leaves solids, which `paint` puts into a `Slab` plane by plane, so that
any number of slices of any thickness shows one and the same patient. Coordinates as in `solids`.

Vessels and airways grow as trees: ends are spread over the lung and, the nearest first, each joins
the tree where its way to the hilum is short; a branch that feeds n ends has the radius of one end
times n^(1/3) (C. D. Murray, Proc Natl Acad Sci 12:207, 1926). HU as in `anatomy`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from ctfake_jax.data.sources.phantom.anatomy import AIR, BLOOD, FAT, MUSCLE
from ctfake_jax.data.sources.phantom.solids import Points, Slab, inside

CAVITY_MM = (125.0, 85.0)  # semi-axes of the chest cavity that positions below are given for
BODY_POWER = 2.4  # of the superellipse of the body's outline
VESSEL_ENDS, AIRWAY_ENDS = 240, 90  # of each tree; a lung has arteries, veins and airways
END_MM = {'vessel': 0.45, 'airway': 0.8}  # radius of a last branch
DETOUR = 0.4  # weight of the way along the tree to the hilum, beside that to the tree
WALL_MM, CORTEX_MM = 1.2, 2.0  # of airways, of bones
TEXTURE_MM, TEXTURE_HU = 3.0, 30.0  # of parenchyma: what is too small to be drawn
RIBS, RIB_STEP_MM = 12, 21.0
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


def grow(
  rng: np.random.Generator, root: Float[np.ndarray, ' 3'], ends: Points, end_mm: float, hu: float
) -> Tubes:
  """A tree from the root to all ends; see the module's head."""
  order = np.argsort(np.linalg.norm(ends - root, axis=1))
  nodes = np.concatenate([root[None], ends[order]])
  parent, way = np.zeros(len(nodes), int), np.zeros(len(nodes))
  for new in range(1, len(nodes)):
    gaps = np.linalg.norm(nodes[:new] - nodes[new], axis=1)
    parent[new] = np.argmin(gaps + DETOUR * way[:new])
    way[new] = way[parent[new]] + gaps[parent[new]]
  fed = np.ones(len(nodes))
  for node in range(len(nodes) - 1, 0, -1):
    fed[parent[node]] += fed[node]
  radius = end_mm * np.cbrt(fed)
  radius[0] = np.max(radius[1:])
  return Tubes(nodes[parent[1:]], nodes[1:], np.stack([radius[parent[1:]], radius[1:]], 1), hu)


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


def draw(rng: np.random.Generator, width: float, height: float, nodules: int) -> Chest:
  """A chest of a body of this width and height, mm, with so many nodules."""
  body, fat, wall = (width / 2, height / 2), rng.uniform(5, 20), rng.uniform(12, 18)
  cavity = body[0] - fat - wall, body[1] - fat - wall
  length = rng.uniform(200, 245)
  right, left = (_lung(rng, side, cavity, length) for side in (-1, 1))
  lungs = right, left
  heart = _placed(
    Ellipsoid((20.0, -18.0, 0.7 * length), (58.0, 44.0, 0.27 * length), 0.5, BLOOD), cavity
  )
  organs = (heart, *(lung.dome for lung in lungs))
  blood = BLOOD + float(rng.choice([0.0, rng.uniform(80, 220)]))  # without or with contrast agent
  great = _tubes(_great_vessels(length), blood).scaled(_scale(cavity))
  airway = _tubes(_great_airways(length, lungs), AIR).scaled(_scale(cavity))
  vessels, airways = [great], [airway]

  def free(points):
    return ~heart.holds(points)

  for lung in lungs:
    for hu in (BLOOD, blood):
      ends = lung.points(rng, VESSEL_ENDS, 0.95, free)
      root = lung.hilum + rng.normal(0, 4, 3)
      vessels.append(grow(rng, root, ends, END_MM['vessel'], hu))
    ends = lung.points(rng, AIRWAY_ENDS, 0.65, free)
    airways.append(grow(rng, lung.hilum, ends, END_MM['airway'], AIR))
  places = [lungs[rng.integers(2)].points(rng, 1, 0.8, free)[0] for _ in range(nodules)]
  cells = np.ceil(np.array([length, 2 * body[1], 2 * body[0]]) / TEXTURE_MM).astype(int) + 2
  texture = ndimage.gaussian_filter(rng.standard_normal(cells), 0.7)
  return Chest(
    body=body,
    fat_mm=fat,
    wall_mm=wall,
    lungs=lungs,
    organs=organs,
    vessels=tuple(vessels),
    airways=tuple(airways),
    bones=_bones(rng, cavity, length),
    spine=(cavity[1] * rng.uniform(0.72, 0.8), rng.uniform(15, 20)),
    nodules=tuple(Nodule.draw(rng, place) for place in places),
    texture=(texture / texture.std()).astype(np.float32),
    table_mm=body[1] + 30,
  )


def _lung(rng: np.random.Generator, side: int, cavity: tuple[float, float], length: float) -> Lung:
  a, b = cavity
  centre = side * a * rng.uniform(0.54, 0.58), b * rng.uniform(-0.05, 0.05)
  axes = a * rng.uniform(0.4, 0.44), b * rng.uniform(0.82, 0.9)
  high = 0.3 if side < 0 else 0.25  # the liver lifts the right dome
  dome = Ellipsoid(
    (*centre, length * 1.02), (0.93 * axes[0], 0.93 * axes[1], high * length), 0.0, 55.0
  )
  tilt = side * rng.uniform(-0.02, 0.12)
  return Lung(side, centre, axes, tilt, length, dome, rng.uniform(-870, -820))


def _placed(solid: Ellipsoid, cavity: tuple[float, float]) -> Ellipsoid:
  """Of a cavity of `CAVITY_MM`, in another one."""
  x, y, _ = _scale(cavity).tolist()
  centre, axes = solid.centre, solid.axes
  return dataclasses.replace(
    solid,
    centre=(centre[0] * x, centre[1] * y, centre[2]),
    axes=(axes[0] * x, axes[1] * y, axes[2]),
  )


def _great_vessels(length: float) -> list[tuple]:
  """Paths of points (x, y, depth) with a radius each."""
  arch = 0.27 * length
  return [
    ([(0, -14, 0.6 * length), (-10, -18, arch + 12), (4, -4, arch - 4), (22, 34, arch + 8)], 13.0),
    ([(22, 34, arch + 8), (18, 44, 0.6 * length), (10, 46, length)], 11.5),
    ([(-28, -10, -30), (-26, -12, 0.55 * length)], 8.0),
    ([(14, -24, 0.56 * length), (10, -6, 0.44 * length)], 13.0),
    ([(10, -6, 0.44 * length), (40, 4, 0.46 * length)], 9.0),
    ([(10, -6, 0.44 * length), (-40, 4, 0.46 * length)], 9.0),
  ]


def _great_airways(length: float, lungs: tuple[Lung, ...]) -> list[tuple]:
  carina = (0, 4, 0.38 * length)
  trunk: list[tuple] = [([(0, 0, -40), carina], 8.5)]
  return trunk + [([carina, (36 * lung.side, 4, 0.46 * length)], 6.0) for lung in lungs]


def _scale(cavity: tuple[float, float]) -> Float[np.ndarray, ' 3']:
  """From positions in a cavity of `CAVITY_MM` to those in another one."""
  return np.array([cavity[0] / CAVITY_MM[0], cavity[1] / CAVITY_MM[1], 1.0])


def _tubes(paths: list[tuple], hu: float) -> Tubes:
  """Paths of points, each with a radius."""
  points = [np.array(path, float) for path, _ in paths]
  radii = [np.full((len(path) - 1, 2), radius) for path, radius in paths]
  starts, ends = ([p[:-1] for p in points], [p[1:] for p in points])
  return Tubes(np.concatenate(starts), np.concatenate(ends), np.concatenate(radii), hu)


def _bones(
  rng: np.random.Generator, cavity: tuple[float, float], length: float
) -> tuple[Tubes, ...]:
  """Ribs, which sink as they run forwards, sternum and shoulder blades: cortex, then marrow."""
  paths = []
  drop, first = rng.uniform(55, 75), rng.uniform(-20, -5)
  turn = np.linspace(np.radians(16), np.radians(148), 18)
  for number in range(RIBS):
    top = first + RIB_STEP_MM * number
    for side in (-1, 1):
      depth = top + drop * turn / turn[-1]
      scale = 0.78 + 0.22 * np.clip(depth / (0.45 * length), 0, 1)
      x = side * (cavity[0] + 7) * scale * np.sin(turn)
      y = (cavity[1] + 7) * scale * np.cos(turn)
      paths.append((np.stack([x, y, depth], 1), 5.5))
  front = -(cavity[1] + 6)
  paths += [
    (np.array([[x, front, 0.12 * length], [x, front, 0.75 * length]]), 6.0) for x in (-8, 0, 8)
  ]
  for side in (-1, 1):
    blade = [(0.86, 0.78), (0.66, 0.98), (0.5, 1.08)]
    points = [(side * cavity[0] * u, cavity[1] * v + 4, d) for u, v in blade for d in (10.0, 90.0)]
    paths += [(np.array([points[i], points[i + 2]]), 4.0) for i in range(4)]
  cortex = _tubes(paths, rng.uniform(350, 550))
  return cortex, cortex.wider(-CORTEX_MM, rng.uniform(130, 220))
