"""The phantom's anatomy: ellipses in HU that make a chest, and the lesions in its lungs.

Enters: a random stream and the heights of a patient's slices. Leaves: the ellipses of a `Canvas`,
float64[k, s, 6], which `scanner.py` scans. Each structure is given the HU that it shows; what is
added is the difference to whatever lies under its centre, so nested structures come out right.
Lungs carry coordinates of their own (a unit disc: u outwards from the midline, v towards the
back), and vessels and lesions placed in them follow the lung through the slices.

Sources: D. M. Hansell et al., Fleischner Society: Glossary of Terms for Thoracic Imaging,
Radiology 246:697, 2008 (a mass is over 30 mm; ground glass keeps vessels visible; consolidation
hides them, with air bronchograms); J. T. Bushberg et al., The Essential Physics of Medical
Imaging (HU of lung, fat, soft tissue, blood and bone).
"""

import numpy as np
from jaxtyping import Float, Float64

Values = Float[np.ndarray, '...'] | float
PerSlice = Float64[np.ndarray, ' s']
Ellipses = tuple[PerSlice, PerSlice, PerSlice, PerSlice, PerSlice]
CHEST_MM = 160.0  # from the aortic arch down to the dome of the diaphragm
AIR, FAT, MUSCLE, BLOOD = -1000.0, -100.0, 50.0, 40.0


class Canvas:
  """The ellipses painted so far, float64[k, s, 6], over s slices, columns as in `scanner.py`.

  What the methods are given broadcasts to [n, s]: n ellipses in s slices.
  """

  def __init__(self, slices: int):
    self.ellipses = np.zeros((0, slices, 6))

  def hu(self, x: Values, y: Values) -> Float64[np.ndarray, 'n s']:
    """HU at points as painted so far."""
    cx, cy, a, b, angle, hu = (self.ellipses[:, None, :, i] for i in range(6))
    along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    return AIR + np.sum(hu * ((along / a) ** 2 + (across / b) ** 2 < 1), axis=0)

  def add(self, x: Values, y: Values, a: Values, b: Values, angle: Values, hu: Values) -> None:
    """Adds ellipses that raise whatever lies under them by `hu`."""
    every_slice = np.zeros((1, self.ellipses.shape[1]))
    new = np.broadcast_arrays(x, y, a, b, angle, hu, every_slice)[:6]
    self.ellipses = np.concatenate([self.ellipses, np.stack(new, axis=-1)])

  def paint(self, x: Values, y: Values, a: Values, b: Values, angle: Values, hu: Values) -> None:
    """Adds ellipses that show `hu` at their centres."""
    self.add(x, y, a, b, angle, hu - self.hu(x, y))

  def overlay(self, x: Values, y: Values, a: Values, b: Values, angle: Values, hu: Values) -> None:
    """As `paint`, but what is denser stays: a vessel that runs into a mass leaves no hole."""
    self.add(x, y, a, b, angle, np.maximum(0.0, hu - self.hu(x, y)))


class Lung:
  """An elliptic lung over s slices; `side` is -1 for the patient's right, shown on the left.

  `taken` lists discs (u, v, radius) of the unit disc where something large already lies.
  """

  def __init__(self, side: int, x: Values, y: Values, a: PerSlice, b: PerSlice, tilt: float):
    self.side, self.x, self.y, self.a, self.b = side, x, y, a, b
    self.angle = tilt * side
    self.taken: list[tuple[float, float, float]] = []

  def at(
    self, u: Values, v: Values
  ) -> tuple[Float64[np.ndarray, '*n s'], Float64[np.ndarray, '*n s']]:
    """Position in mm of points (u, v) of the unit disc, floats or [n, 1] or [n, s]."""
    dx, dy = self.side * self.a * u, self.b * v
    cos, sin = np.cos(self.angle), np.sin(self.angle)
    return self.x + dx * cos - dy * sin, self.y + dx * sin + dy * cos

  def outwards(self, turn: Values) -> Values:
    """Angle in the image of the direction `turn` of the unit disc."""
    return self.angle + (turn if self.side > 0 else np.pi - turn)

  def patch(self, u: float, v: float, turn: float, radial: Values, along: Values) -> Ellipses:
    """An ellipse of the unit disc, centred on (u, v), in mm.

    As a complex number it runs through p e^{it} + q e^{-it}, a form that the map from disc to
    lung keeps; its semi-axes are then |p| + |q| and ||p| - |q||.

    Args:
      u: centre, outwards from the midline.
      v: centre, towards the back.
      turn: direction of the semi-axis `radial`, radians from u towards v.
      radial: semi-axis, float or [s].
      along: the other semi-axis. The ellipse stays inside the disc while its centre is no
        farther out than 1 - radial, in the direction `turn`, and along^2 <= radial.

    Returns:
      x, y, a, b, angle.
    """
    mean, half = (self.side * self.a + self.b) / 2, (self.side * self.a - self.b) / 2
    direction = np.exp(1j * turn)
    p, q = direction * (radial + along) / 2, direction * (radial - along) / 2
    p, q = mean * p + half * q.conj(), mean * q + half * p.conj()
    angle = self.angle + (np.angle(p) + np.angle(q)) / 2
    return *self.at(u, v), abs(p) + abs(q), abs(abs(p) - abs(q)), angle

  def rim(self, turn: float, radial: Values, along: Values) -> Ellipses:
    """A patch that hugs the lung's edge at `turn`; notes the place as taken."""
    distance = 0.97 - np.max(radial)
    u, v = distance * np.cos(turn), distance * np.sin(turn)
    for part in (-0.6, 0.0, 0.6):
      shift = part * np.max(along)
      disc = (u - shift * np.sin(turn), v + shift * np.cos(turn), float(np.max(radial)))
      self.taken.append(disc)
    return self.patch(u, v, turn, radial, along)

  def free(
    self, u: Float64[np.ndarray, ' n'], v: Float64[np.ndarray, ' n'], radius: float
  ) -> Float64[np.ndarray, ' n']:
    """How far discs of this radius are off all that is taken, at most 0 (room enough)."""
    gaps = [np.hypot(u - cu, v - cv) - r - radius for cu, cv, r in self.taken]
    return np.minimum(0.0, np.min([np.zeros_like(u), *gaps], axis=0))

  def room(self, rng: np.random.Generator, radius: float) -> tuple[float, float]:
    """Centre of a disc inside the lung, clear of what is taken as far as there is room."""
    distance = (0.97 - radius) * np.sqrt(rng.uniform(size=256))
    turn = rng.uniform(0, 2 * np.pi, 256)
    u, v = distance * np.cos(turn), distance * np.sin(turn)
    best = int(np.argmax(self.free(u, v, radius)))
    return float(u[best]), float(v[best])


def column(values: float | Float[np.ndarray, ' n']) -> Float64[np.ndarray, 'n 1']:
  """Of n structures, the same in every slice."""
  return np.atleast_1d(values)[:, None]


def paint_body(
  canvas: Canvas, rng: np.random.Generator, width: float, height: float
) -> tuple[float, float]:
  """Fat and muscle; returns the semi-axes of the chest cavity in mm."""
  a, b = width / 2, height / 2
  fat, wall = rng.uniform(5, 20), rng.uniform(12, 18)
  canvas.paint(0, 0, a, b, 0, FAT + rng.uniform(-15, 15))
  canvas.paint(0, 0, a - fat, b - fat, 0, MUSCLE + rng.uniform(-10, 10))
  return a - fat - wall, b - fat - wall


def paint_lungs(
  canvas: Canvas, rng: np.random.Generator, cavity: tuple[float, float], level: PerSlice
) -> list[Lung]:
  """Both lungs with their denser dependent parts; `level` runs from 0 (top) to 1."""
  a, b = cavity
  scale = 0.88 + 0.12 * np.clip(level / 0.5, 0, 1)
  hu = rng.uniform(-870, -810)
  lungs = []
  for side in (-1, 1):
    lung = Lung(
      side,
      x=side * a * rng.uniform(0.55, 0.59) * np.ones_like(level),
      y=b * rng.uniform(-0.05, 0.05) * np.ones_like(level),
      a=a * rng.uniform(0.41, 0.45) * scale,
      b=b * rng.uniform(0.83, 0.92) * scale,
      tilt=rng.uniform(-0.02, 0.16),
    )
    canvas.paint(lung.x, lung.y, lung.a, lung.b, lung.angle, hu + rng.uniform(-12, 12))
    canvas.add(*lung.patch(0.0, 0.4, 0.0, 0.55, 0.55), rng.uniform(0, 40))
    lungs.append(lung)
  return lungs


def paint_mediastinum(
  canvas: Canvas, rng: np.random.Generator, lungs: list[Lung], level: PerSlice
) -> None:
  """What bulges into the lungs from the midline (heart, aorta), and the airways."""
  right, left = lungs
  blood = BLOOD + rng.choice([0.0, rng.uniform(80, 220)])  # without or with contrast agent
  growth = 0.6 + 0.4 * np.clip(level / 0.6, 0, 1)
  for lung, low, high in ((right, 0.08, 0.14), (left, 0.18, 0.28)):
    radial, turn = rng.uniform(low, high), np.pi + rng.uniform(0.1, 0.5)
    canvas.paint(*lung.rim(turn, radial * growth, 1.5 * radial * growth), blood)
  radial = rng.uniform(0.11, 0.16)
  canvas.paint(*left.rim(rng.uniform(2.3, 2.7), radial, radial), blood)
  trachea = rng.uniform(7, 10)
  split = np.clip((level - 0.35) / 0.3, 0, 1)  # below the carina the main bronchi diverge
  radius = trachea * np.where(split > 0, 0.6, 1.0)
  for side in (-1, 1):  # above it both are one and the same: the second adds nothing
    canvas.paint(
      side * np.sign(split) * (radius + 1 + 4 * split), -0.1 * left.b, radius, radius, 0, AIR
    )


def paint_bones(
  canvas: Canvas, rng: np.random.Generator, cavity: tuple[float, float], level: PerSlice
) -> None:
  """Vertebra with its canal and process, sternum, ribs, and shoulder blades in upper slices."""
  a, b = cavity
  depth, size = b * rng.uniform(0.66, 0.76), rng.uniform(15, 20)
  canvas.paint(0, depth, size, size * 0.85, 0, rng.uniform(180, 350))
  canvas.paint(0, depth + size * 1.35, 8, 8, 0, 20)
  canvas.paint(0, depth + size * 1.35 + 18, 4, 11, 0, rng.uniform(250, 450))
  canvas.paint(0, -b - 6, rng.uniform(14, 22), 6, 0, rng.uniform(150, 300))
  ribs = int(rng.integers(9, 14))
  turn = np.linspace(0, 2 * np.pi, ribs, endpoint=False) + rng.uniform(0, 2 * np.pi)
  around = column(turn + rng.uniform(-0.1, 0.1, ribs)) + rng.uniform(1.0, 2.0) * level
  x, y = (a + 9) * np.cos(around), (b + 9) * np.sin(around)
  tangent = np.arctan2(b * np.cos(around), -a * np.sin(around))
  length = column(rng.uniform(8, 20, ribs))
  canvas.add(x, y, length, rng.uniform(4, 5.5), tangent, column(rng.uniform(250, 550, ribs)))
  fade = np.clip(1 - level / 0.5, 0, 1)
  for side in (-1, 1):
    angle = side * rng.uniform(-0.9, -0.5)
    canvas.add(side * 0.8 * a, b * 0.9, 26, 4, angle, rng.uniform(300, 500) * fade)


def paint_vessels(
  canvas: Canvas, rng: np.random.Generator, lungs: list[Lung], level: PerSlice
) -> None:
  """Branches that thin out from the hilum and drift from slice to slice."""
  for lung in lungs:
    n, v_hilum = int(rng.integers(18, 34)), rng.uniform(-0.1, 0.2)
    distance = np.sqrt(rng.uniform(0.01, 1, n))
    turn = rng.uniform(-1.35, 1.35, n)
    u = column(np.clip(-0.8 + 1.5 * distance * np.cos(turn), -0.85, 0.85))
    drift = column(rng.uniform(-0.6, 0.6, n)) * (level - level.mean())
    v = np.clip(v_hilum + column(distance * np.sin(turn)) + drift, -1, 1) * np.sqrt(0.92 - u**2)
    radius = column(rng.uniform(0.8, 1.6, n) + 2.5 * (1 - distance) * rng.uniform(0.2, 1, n))
    angle = column(np.where(rng.uniform(size=n) < 0.7, lung.outwards(turn), turn))
    canvas.overlay(*lung.at(u, v), radius * column(rng.uniform(1, 5, n)), radius, angle, BLOOD)


def paint_distractors(canvas: Canvas, rng: np.random.Generator, lungs: list[Lung]) -> None:
  """Dilated vessels and plates of atelectasis, up to three of each, whatever the class."""
  for _ in range(int(rng.integers(0, 4))):
    lung, radius = lungs[rng.integers(2)], rng.uniform(4, 7)
    spot = lung.at(*lung.room(rng, 0.3))
    canvas.overlay(*spot, radius * rng.uniform(1, 1.4), radius, rng.uniform(0, 3), BLOOD)
  for _ in range(int(rng.integers(0, 4))):
    lung, length = lungs[rng.integers(2)], rng.uniform(12, 24)
    spot = lung.at(*lung.room(rng, 0.45))
    angle = rng.uniform(0, np.pi)
    canvas.overlay(*spot, length, rng.uniform(1.5, 3), angle, rng.uniform(-300, 0))


def paint_normal(
  canvas: Canvas, rng: np.random.Generator, lungs: list[Lung], swell: PerSlice
) -> None:
  """Nothing but what every class has."""


def paint_mass(
  canvas: Canvas, rng: np.random.Generator, lungs: list[Lung], swell: PerSlice
) -> None:
  """One dense, rounded, lobulated and spiculated mass of 35 to 80 mm."""
  lung = lungs[rng.integers(2)]
  unit = min(rng.uniform(24, 35) / lung.a.mean(), 0.55)
  # Air all round it: at 32 pixels it would otherwise merge with heart or wall.
  u, v = lung.room(rng, unit + 0.12)
  x, y = lung.at(u, v)
  a = unit * lung.a.mean() * swell
  b, tilt = a * rng.uniform(0.85, 1.15), rng.uniform(0, np.pi)
  canvas.paint(x, y, a, b, tilt, rng.uniform(20, 60))
  turn = column(np.arange(7) * 2 * np.pi / 7 + rng.uniform(-0.3, 0.3, 7))
  edge = np.exp(1j * tilt) * (a * np.cos(turn) + 1j * b * np.sin(turn))
  depth = column(rng.uniform(0.06, 0.16, 7))
  notch, spike = (0.98 - depth) * edge, (1 + 5 / a) * edge
  canvas.add(x + notch.real, y + notch.imag, depth * a, depth * a, 0, -700)
  thin = rng.uniform(0.8, 1.6)
  canvas.overlay(x + spike.real, y + spike.imag, 5, thin, np.angle(spike), -50)
  lung.taken.append((u, v, unit))


def paint_ground_glass(
  canvas: Canvas, rng: np.random.Generator, lungs: list[Lung], swell: PerSlice
) -> None:
  """Several hazy patches in both lungs: lung of -830 becomes -540 to -430, vessels stay visible."""
  for lung in lungs:
    for _ in range(int(rng.integers(3, 5))):
      radius, rise = rng.uniform(0.36, 0.48), rng.uniform(300, 400)
      u, v = lung.room(rng, radius)
      for part in np.linspace(1, 0.7, 4):  # an ill-defined edge
        size = part * radius * swell
        shift = rng.uniform(-0.1, 0.1, 2) * radius
        shape, turn = rng.uniform(0.75, 1), rng.uniform(0, np.pi)
        canvas.add(*lung.patch(u + shift[0], v + shift[1], turn, size, shape * size), rise / 4)
      lung.taken.append((u, v, radius))


def paint_consolidation(
  canvas: Canvas, rng: np.random.Generator, lungs: list[Lung], swell: PerSlice
) -> None:
  """Dense patches along the pleura with air bronchograms, in one lung or in both."""
  first, both = int(rng.integers(2)), rng.uniform() < 0.5
  for lung in (lungs[first], lungs[1 - first])[: 2 if both else 1]:
    radial, start = rng.uniform(0.24, 0.32), rng.uniform(-0.7, 0.7)
    along = rng.uniform(0.36, 0.46)
    # The turn at which the two ellipses touch: overlapping, they would add up to bone.
    apart = np.arctan(along / np.sqrt((0.97 - radial) ** 2 - radial**2))
    for turn in (start - apart, start + apart):
      hu = rng.uniform(-80, 50)
      canvas.paint(*lung.rim(turn, radial * swell, along * swell), hu)
      for aside in turn + along * rng.uniform(-0.7, 0.7, 2):
        spot = lung.at((1 - radial) * np.cos(aside), (1 - radial) * np.sin(aside))
        angle = lung.outwards(turn) + rng.uniform(-0.4, 0.4)
        canvas.add(*spot, 0.6 * radial * lung.a, rng.uniform(1.2, 2.5), angle, -850)


LESIONS = {
  'normal': paint_normal,
  'mass': paint_mass,
  'ground_glass': paint_ground_glass,
  'consolidation': paint_consolidation,
}
CLASS_NAMES = tuple(LESIONS)
