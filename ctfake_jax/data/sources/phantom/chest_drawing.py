"""A random chest: sizes, places and trees.

Enters a random stream; leaves a `Chest`. Vessels and airways grow as trees: ends are spread over
the lung and, the nearest first, each joins the tree where its way to the hilum is short; a branch
that feeds n ends has the radius of one end times n^(1/3) (C. D. Murray, Proc Natl Acad Sci 12:207,
1926). HU as in `anatomy`.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from ctfake_jax.data.sources.phantom.anatomy import AIR, BLOOD
from ctfake_jax.data.sources.phantom.chest import TEXTURE_MM, Chest, Ellipsoid, Lung, Nodule, Tubes
from ctfake_jax.data.sources.phantom.solids import Points

CAVITY_MM = (125.0, 85.0)  # semi-axes of the chest cavity that positions below are given for
VESSEL_ENDS, AIRWAY_ENDS = 240, 90  # of each tree; a lung has arteries, veins and airways
END_MM = {'vessel': 0.45, 'airway': 0.8}  # radius of a last branch
DETOUR = 0.4  # weight of the way along the tree to the hilum, beside that to the tree
RIBS, RIB_STEP_MM = 12, 21.0
CORTEX_MM = 2.0  # of bones


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
