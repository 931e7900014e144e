"""The embedded phantom: simulated chest CT of patients who never were.

Enters: how many patients and slices, a size and a seed. Leaves: slices in HU, float32[size, size],
through the same interface as every other source, with four classes, one for each patient.

Anatomy is painted with ellipses, then scanned (`scanner.py`). Each structure is given the HU that
it shows; what is added is the difference to whatever lies under its centre, so nested structures
come out right. Lungs carry coordinates of their own (a unit disc: u outwards from the midline, v
towards the back), and vessels and lesions placed in them follow the lung through the slices.

Sources: D. M. Hansell et al., Fleischner Society: Glossary of Terms for Thoracic Imaging,
Radiology 246:697, 2008 (a mass is over 30 mm; ground glass keeps vessels visible; consolidation
hides them, with air bronchograms); J. T. Bushberg et al., The Essential Physics of Medical
Imaging (HU of lung, fat, soft tissue, blood and bone).
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np
import tqdm

from ctfake_jax import types
from ctfake_jax.data import scanner as scanner_lib

CLASS_NAMES = ('normal', 'mass', 'ground_glass', 'consolidation')
DEFAULT_SCANNERS = ('A', 'B', 'C')
CHEST_MM = 160.0  # from the aortic arch down to the dome of the diaphragm
SPAN_MM = 24.0  # a patient's slices lie within this: one lesion is seen in all of them
AIR, FAT, MUSCLE, BLOOD = -1000.0, -100.0, 50.0, 40.0
PIXELS_PER_CHUNK = 2**17
SLOW_PIXELS = 2**23
# What the random streams of one patient are for: scanning anew must not redraw the anatomy.
ANATOMY, LESION, POSE, SCAN, LABEL = range(5)


class Canvas:
  """The ellipses painted so far: float64[k, s, 6] over s slices, columns as in `scanner.py`."""

  def __init__(self, slices: int):
    self.ellipses = np.zeros((0, slices, 6))

  def hu(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """HU at the points [n, s] as painted so far."""
    cx, cy, a, b, angle, hu = (self.ellipses[:, None, :, i] for i in range(6))
    along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    return AIR + np.sum(hu * ((along / a) ** 2 + (across / b) ** 2 < 1), axis=0)

  def add(self, x, y, a, b, angle, hu):
    """Adds ellipses that raise the HU under them by `hu`; all arguments broadcast to [n, s]."""
    parts = np.broadcast_arrays(x, y, a, b, angle, hu, np.zeros((1, self.ellipses.shape[1])))
    self.ellipses = np.concatenate([self.ellipses, np.stack(parts[:6], axis=-1)])

  def paint(self, x, y, a, b, angle, hu):
    """Adds ellipses that show `hu` at their centres."""
    x, y, hu, _ = np.broadcast_arrays(x, y, hu, np.zeros((1, self.ellipses.shape[1])))
    self.add(x, y, a, b, angle, hu - self.hu(x, y))

  def paint_over_air(self, x, y, a, b, angle, hu):
    """As `paint`, but what is denser stays: a vessel that runs into a mass leaves no hole."""
    x, y, hu, _ = np.broadcast_arrays(x, y, hu, np.zeros((1, self.ellipses.shape[1])))
    self.add(x, y, a, b, angle, np.maximum(0.0, hu - self.hu(x, y)))


class Lung:
  """An elliptic lung over s slices; `side` is -1 for the patient's right, shown on the left.

  `taken` lists discs (u, v, radius) of the unit disc where something large already lies.
  """

  def __init__(self, side: int, x, y, a, b, tilt):
    self.side, self.x, self.y, self.a, self.b = side, x, y, a, b
    self.angle = tilt * side
    self.taken: list[tuple[float, float, float]] = []

  def at(self, u, v):
    """Position in mm of points (u, v) of the unit disc, [n, 1] or [n, s]."""
    dx, dy = self.side * self.a * u, self.b * v
    cos, sin = np.cos(self.angle), np.sin(self.angle)
    return self.x + dx * cos - dy * sin, self.y + dx * sin + dy * cos

  def outwards(self, turn):
    """Angle in the image of the direction `turn` of the unit disc."""
    return self.angle + (turn if self.side > 0 else np.pi - turn)

  def patch(self, u, v, turn, radial, along):
    """x, y, a, b, angle of an ellipse of the unit disc, semi-axis `radial` in direction `turn`.

    Args:
      u, v, turn: floats.
      radial, along: semi-axes, floats or [s]. The ellipse stays in the unit disc while its
        centre is no farther out than 1 - radial and along^2 <= radial.
    """
    zero = np.zeros_like(self.a)
    axes = _matrix(
      np.cos(turn) * radial,
      -np.sin(turn) * along,
      np.sin(turn) * radial,
      np.cos(turn) * along,
      zero,
    )
    cos, sin = np.cos(self.angle), np.sin(self.angle)
    frame = _matrix(
      self.side * self.a * cos, -self.b * sin, self.side * self.a * sin, self.b * cos, zero
    )
    basis, semi, _ = np.linalg.svd(frame @ axes)
    return *self.at(u, v), semi[:, 0], semi[:, 1], np.arctan2(basis[:, 1, 0], basis[:, 0, 0])

  def rim(self, turn, radial, along, gap=0.03):
    """A patch that hugs the lung's edge at `turn`; notes the place as taken."""
    distance = 1 - gap - np.max(radial)
    u, v = distance * np.cos(turn), distance * np.sin(turn)
    for part in (-0.6, 0.0, 0.6):
      shift = part * np.max(along)
      disc = (u - shift * np.sin(turn), v + shift * np.cos(turn), float(np.max(radial)))
      self.taken.append(disc)
    return self.patch(u, v, turn, radial, along)

  def free(self, u, v, radius) -> np.ndarray:
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


def _matrix(p, q, r, t, zero) -> np.ndarray:
  """[[p, q], [r, t]] over s slices, [s, 2, 2]."""
  return np.moveaxis(np.array([[p + zero, q + zero], [r + zero, t + zero]]), -1, 0)


def column(values) -> np.ndarray:
  """[n] to [n, 1]: n structures, the same in every slice."""
  return np.atleast_1d(values)[:, None]


def paint_body(canvas: Canvas, rng: np.random.Generator, width: float, height: float):
  """Fat and muscle; returns the semi-axes of the chest cavity in mm."""
  a, b = width / 2, height / 2
  fat, wall = rng.uniform(5, 20), rng.uniform(12, 18)
  canvas.paint(0, 0, a, b, 0, FAT + rng.uniform(-15, 15))
  canvas.paint(0, 0, a - fat, b - fat, 0, MUSCLE + rng.uniform(-10, 10))
  return a - fat - wall, b - fat - wall


def paint_lungs(canvas: Canvas, rng: np.random.Generator, a: float, b: float, level: np.ndarray):
  """Both lungs with their denser dependent parts; `level` [s] runs from 0 (top) to 1."""
  scale = 0.88 + 0.12 * np.clip(level / 0.5, 0, 1)
  hu = rng.uniform(-870, -810)
  lungs = []
  for side in (-1, 1):
    lung = Lung(
      side,
      x=side * a * rng.uniform(0.53, 0.57) * np.ones_like(level),
      y=b * rng.uniform(-0.05, 0.05) * np.ones_like(level),
      a=a * rng.uniform(0.42, 0.47) * scale,
      b=b * rng.uniform(0.84, 0.95) * scale,
      tilt=rng.uniform(-0.02, 0.16),
    )
    canvas.paint(lung.x, lung.y, lung.a, lung.b, lung.angle, hu + rng.uniform(-12, 12))
    canvas.add(*lung.patch(0.0, 0.4, 0.0, 0.55, 0.55), rng.uniform(0, 40))
    lungs.append(lung)
  return lungs


def paint_mediastinum(canvas, rng, lungs: list[Lung], b: float, level: np.ndarray):
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
  for side in (-1, 1):
    radius = trachea * (1 - 0.35 * split)
    canvas.add(
      side * split * 14, -0.12 * b, radius, radius, 0, (AIR - MUSCLE) * (0.5 + 0.5 * (split > 0))
    )


def paint_bones(canvas, rng, cavity: tuple[float, float], level: np.ndarray):
  """Vertebra with its canal and process, sternum, ribs, and shoulder blades in upper slices."""
  a, b = cavity
  y, size = b * rng.uniform(0.66, 0.76), rng.uniform(15, 20)
  canvas.paint(0, y, size, size * 0.85, 0, rng.uniform(180, 350))
  canvas.paint(0, y + size * 1.35, 8, 8, 0, 20)
  canvas.paint(0, y + size * 1.35 + 18, 4, 11, 0, rng.uniform(250, 450))
  canvas.paint(0, -b - 6, rng.uniform(14, 22), 6, 0, rng.uniform(150, 300))
  ribs = int(rng.integers(9, 14))
  turn = np.linspace(0, 2 * np.pi, ribs, endpoint=False) + rng.uniform(0, 2 * np.pi)
  turn = column(turn + rng.uniform(-0.1, 0.1, ribs)) + rng.uniform(1.0, 2.0) * level
  x, y = (a + 9) * np.cos(turn), (b + 9) * np.sin(turn)
  tangent = np.arctan2(b * np.cos(turn), -a * np.sin(turn))
  length = column(rng.uniform(8, 20, ribs))
  canvas.add(x, y, length, rng.uniform(4, 5.5), tangent, column(rng.uniform(250, 550, ribs)))
  fade = np.clip(1 - level / 0.5, 0, 1)
  for side in (-1, 1):
    angle = side * rng.uniform(-0.9, -0.5)
    canvas.add(side * 0.8 * a, b * 0.9, 26, 4, angle, rng.uniform(300, 500) * fade)


def paint_vessels(canvas, rng, lungs: list[Lung], level: np.ndarray):
  """Branches that thin out from the hilum, a few dilated, and plates of atelectasis."""
  middle = level.mean()
  for lung in lungs:
    n, v_hilum = int(rng.integers(18, 34)), rng.uniform(-0.1, 0.2)
    distance = np.sqrt(rng.uniform(0.01, 1, n))
    turn = rng.uniform(-1.35, 1.35, n)
    u = -0.8 + 1.5 * distance * np.cos(turn)
    v = v_hilum + 1.0 * distance * np.sin(turn)
    u, v = column(np.clip(u, -0.85, 0.85)), column(v)
    drift = column(rng.uniform(-0.6, 0.6, n)) * (level - middle)
    v = np.clip(v + drift, -1, 1) * np.sqrt(0.92 - u**2)
    radius = column(rng.uniform(0.8, 1.6, n) + 2.5 * (1 - distance) * rng.uniform(0.2, 1, n))
    aspect = column(rng.uniform(1, 5, n))
    angle = column(np.where(rng.uniform(size=n) < 0.7, lung.outwards(turn), turn))
    canvas.paint_over_air(*lung.at(u, v), radius * aspect, radius, angle, BLOOD)
  for _ in range(int(rng.integers(0, 4))):
    lung = lungs[rng.integers(2)]
    spot = lung.at(*(column(value) for value in lung.room(rng, 0.3)))
    radius = rng.uniform(4, 7)
    canvas.paint_over_air(*spot, radius * rng.uniform(1, 1.4), radius, rng.uniform(0, 3), BLOOD)
  for _ in range(int(rng.integers(0, 4))):
    lung = lungs[rng.integers(2)]
    spot = lung.at(*(column(value) for value in lung.room(rng, 0.45)))
    length, angle = rng.uniform(12, 24), rng.uniform(0, np.pi)
    canvas.paint_over_air(*spot, length, rng.uniform(1.5, 3), angle, rng.uniform(-300, 0))


def paint_normal(canvas, rng, lungs: list[Lung], swell: np.ndarray):
  """Nothing: dilated vessels and plates of atelectasis are in every class."""


def paint_mass(canvas, rng, lungs: list[Lung], swell: np.ndarray):
  """One dense, rounded, lobulated and spiculated mass of 48 to 70 mm."""
  lung = lungs[rng.integers(2)]
  semi, shape = rng.uniform(24, 35), rng.uniform(0.85, 1.15)
  unit = min(semi / lung.a.mean(), 0.55)
  u, v = lung.room(rng, unit + 0.12)  # a rim of air all round, or 32 pixels merge it with the wall
  x, y = lung.at(column(u), column(v))
  a = unit * lung.a.mean() * swell
  b, tilt = a * shape, rng.uniform(0, np.pi)
  canvas.paint(x, y, a, b, tilt, rng.uniform(20, 60))
  turn = column(np.arange(7) * 2 * np.pi / 7 + rng.uniform(-0.3, 0.3, 7))

  def beyond(reach):
    """Points on the ellipse's axis directions, `reach` times as far out as its edge."""
    along, across = reach * a * np.cos(turn), reach * b * np.sin(turn)
    return x + along * np.cos(tilt) - across * np.sin(tilt), y + along * np.sin(
      tilt
    ) + across * np.cos(tilt)

  depth = column(rng.uniform(0.06, 0.16, 7))
  canvas.add(*beyond(0.98 - depth), depth * a, depth * a, 0, -700)
  canvas.paint_over_air(*beyond(1 + 5 / a), 5, rng.uniform(0.8, 1.6), turn + tilt, -50)
  lung.taken.append((u, v, unit))


def paint_ground_glass(canvas, rng, lungs: list[Lung], swell: np.ndarray):
  """Several hazy patches in both lungs: lung of -830 becomes -540 to -430, vessels stay visible."""
  for lung in lungs:
    for _ in range(int(rng.integers(3, 5))):
      radius, rise = rng.uniform(0.36, 0.48), rng.uniform(300, 400)
      u, v = lung.room(rng, radius)
      for part in np.linspace(1, 0.7, 4):  # an ill-defined edge
        size = part * radius * swell
        shape, shift = rng.uniform(0.75, 1), rng.uniform(-0.1, 0.1, 2) * radius
        turn = rng.uniform(0, np.pi)
        canvas.add(*lung.patch(u + shift[0], v + shift[1], turn, size, shape * size), rise / 4)
      lung.taken.append((u, v, radius))


def paint_consolidation(canvas, rng, lungs: list[Lung], swell: np.ndarray):
  """Dense patches along the pleura with air bronchograms, in one lung or in both."""
  first, both = rng.integers(2), rng.uniform() < 0.5
  for lung in (lungs[first], lungs[1 - first])[: 2 if both else 1]:
    radial, start = rng.uniform(0.24, 0.32), rng.uniform(-0.9, 0.9)
    along = rng.uniform(0.4, 0.5)
    for turn in (start - along, start + along):
      hu = rng.uniform(-80, 50)
      canvas.paint(*lung.rim(turn, radial * swell, along * swell), hu)
      for part in rng.uniform(-0.7, 0.7, 2):
        spot = lung.at(
          *((1 - radial) * np.array([np.cos(turn + part * along), np.sin(turn + part * along)]))
        )
        angle = lung.outwards(turn) + rng.uniform(-0.4, 0.4)
        canvas.add(*spot, 0.6 * radial * lung.a, rng.uniform(1.2, 2.5), angle, -850)


LESIONS = dict(
  zip(CLASS_NAMES, (paint_normal, paint_mass, paint_ground_glass, paint_consolidation))
)


def stream(seed: int, index: int, purpose: int) -> np.random.Generator:
  """A stream of its own for each patient and purpose, whoever else is drawn."""
  return np.random.default_rng((seed, index, purpose))


def draw_label(seed: int, patient: int) -> int:
  """Class of a patient; each run of four patients has every class once."""
  block, place = divmod(patient, len(CLASS_NAMES))
  return int(stream(seed, block, LABEL).permutation(len(CLASS_NAMES))[place])


def draw_pose(seed: int, patient: int, slices: int) -> dict[str, np.ndarray]:
  """Size of the body, place on the couch, and heights of the slices, each [s]."""
  rng = stream(seed, patient, POSE)
  width = rng.uniform(315, 395)
  scalars = {
    'patient_width_mm': width,
    'patient_height_mm': width * rng.uniform(0.62, 0.76),
    'shift_x_mm': rng.uniform(-15, 15),
    'shift_y_mm': rng.uniform(-12, 12),
    'rotation_rad': rng.uniform(-0.1, 0.1),
  }
  centre = rng.uniform(SPAN_MM / 2, CHEST_MM - SPAN_MM / 2)
  z = centre + SPAN_MM * ((np.arange(slices) + 0.5) / slices - 0.5)
  return {'z': z, **{name: np.full(slices, value) for name, value in scalars.items()}}


def draw_scan(seed: int, patient: int, scanners: Sequence[str]) -> tuple[str, float, float]:
  """Scanner of a patient, dose in mGy and field of view in mm as set for this patient."""
  rng = stream(seed, patient, SCAN)
  name = scanners[int(rng.uniform() * len(scanners))]
  setting = scanner_lib.SCANNERS[name]
  dose = setting.dose_mgy * np.exp(rng.uniform(-0.3, 0.3))
  return name, dose, setting.field_of_view_mm * rng.uniform(0.95, 1.05)


def draw_ellipses(seed: int, patient: int, pose: dict[str, np.ndarray]) -> np.ndarray:
  """Ellipses of a patient's slices on the couch, float64[k, s, 6]."""
  anatomy, lesion = (stream(seed, patient, purpose) for purpose in (ANATOMY, LESION))
  z = pose['z']
  level = z / CHEST_MM
  canvas = Canvas(len(z))
  cavity = paint_body(canvas, anatomy, pose['patient_width_mm'][0], pose['patient_height_mm'][0])
  lungs = paint_lungs(canvas, anatomy, *cavity, level)
  paint_mediastinum(canvas, anatomy, lungs, cavity[1], level)
  paint_bones(canvas, anatomy, cavity, level)
  # A lesion is an ellipsoid cut off its middle, and longer than the slices lie apart.
  middle = z.mean() + lesion.uniform(-0.25, 0.25) * SPAN_MM
  swell = np.sqrt(1 - ((z - middle) / (1.5 * SPAN_MM)) ** 2)
  LESIONS[CLASS_NAMES[draw_label(seed, patient)]](canvas, lesion, lungs, swell)
  paint_vessels(canvas, anatomy, lungs, level)
  return place_on_couch(canvas.ellipses, pose)


def place_on_couch(ellipses: np.ndarray, pose: dict[str, np.ndarray]) -> np.ndarray:
  """Turns and shifts a patient's ellipses [k, s, 6], and lays the table beneath."""
  x, y, a, b, angle, hu = np.moveaxis(ellipses, -1, 0)
  turn = pose['rotation_rad']
  moved_x = x * np.cos(turn) - y * np.sin(turn)
  moved_y = x * np.sin(turn) + y * np.cos(turn)
  patient = np.stack([moved_x, moved_y, a, b, angle + turn, hu], axis=-1)
  table = Canvas(ellipses.shape[1])
  top = pose['patient_height_mm'] / 2 + 30
  table.add(0, top, 215, 22, 0, 300)
  table.add(0, top, 211, 18, 0, -240)
  placed = np.concatenate([patient, table.ellipses])
  placed[..., 0] += pose['shift_x_mm']
  placed[..., 1] += pose['shift_y_mm']
  return placed


class PhantomSource:
  """Simulated patients as a source of slices in HU; see `types.Source`.

  A patient depends on seed and index alone: more patients, other scanners or another size leave
  the anatomy and the lesion as they were. Slices are rendered, all of them, at the first look.

  Attributes:
    facts: per slice, what a model could cheat by: scanner, field_of_view_mm, shift_x_mm,
      shift_y_mm, rotation_rad, patient_width_mm, patient_height_mm, z (mm from the top).
  """

  class_names: tuple[str, ...] = CLASS_NAMES
  unreadable: Sequence[types.UnreadableImageError] = ()

  def __init__(
    self,
    *,
    patients: int,
    slices_per_patient: int,
    size: int,
    seed: int,
    scanners: tuple[str, ...] = DEFAULT_SCANNERS,
  ):
    """Draws who is scanned and how; see the class.

    Args:
      patients: at least 1; a multiple of 4 has every class equally often.
      slices_per_patient: at least 1.
      size: pixels on a side, at least 16.
      seed: not negative.
      scanners: keys of `scanner.SCANNERS`, each patient gets one at random.

    Raises:
      UserError: an argument is out of its range, or a scanner unknown.
    """
    least = {'patients': 1, 'slices_per_patient': 1, 'size': 16, 'seed': 0}
    given = {'patients': patients, 'slices_per_patient': slices_per_patient}
    for name, value in {**given, 'size': size, 'seed': seed}.items():
      if value < least[name]:
        raise types.UserError(f'phantom: {name} is {value}; give at least {least[name]}.')
    unknown = sorted(set(scanners) - set(scanner_lib.SCANNERS))
    if unknown or not scanners:
      have = ', '.join(scanner_lib.SCANNERS)
      raise types.UserError(f'phantom: scanners are {scanners}; give one or more of {have}.')
    self._seed, self._size = seed, size
    self._poses = [draw_pose(seed, patient, slices_per_patient) for patient in range(patients)]
    scans = [draw_scan(seed, patient, tuple(scanners)) for patient in range(patients)]
    names, self._dose, fov = (np.repeat(v, slices_per_patient) for v in zip(*scans))
    posed = {name: np.concatenate([p[name] for p in self._poses]) for name in self._poses[0]}
    self.facts: dict[str, np.ndarray] = {'scanner': names, 'field_of_view_mm': fov, **posed}
    self.records = [
      types.Record(
        label=draw_label(seed, patient),
        patient_id=f'phantom-{patient:06d}',
        provenance=f'phantom/seed={seed}/patient={patient}/slice={i}/scanner={scans[patient][0]}',
      )
      for patient in range(patients)
      for i in range(slices_per_patient)
    ]

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> types.Slice:
    spacing = float(self.facts['field_of_view_mm'][index]) / self._size
    return types.Slice(pixels=self._pixels[index], unit='HU', spacing_mm=spacing)

  @functools.cached_property
  def _pixels(self) -> np.ndarray:
    """All slices, float32[n, size, size] HU."""
    n, size = len(self), self._size
    inputs = (self._keys(), self._ellipses(), *self._settings())
    chunk = max(1, PIXELS_PER_CHUNK // size**2)
    starts = range(0, n, chunk)
    pixels = np.empty((n, size, size), np.float32)
    for start in tqdm.tqdm(starts, 'phantom', disable=n * size**2 < SLOW_PIXELS):
      # Always full chunks, the last one repeating its last slice: one shape, one compilation.
      rows = np.minimum(np.arange(start, start + chunk), n - 1)
      image = scanner_lib.scan(*(value[rows] for value in inputs), size=size)
      pixels[start : start + chunk] = image[: n - start]
    return pixels

  def _ellipses(self) -> np.ndarray:
    """float32[n, k, 6], filled up with ellipses that add nothing."""
    drawn = [draw_ellipses(self._seed, i, pose) for i, pose in enumerate(self._poses)]
    most = -(-max(len(ellipses) for ellipses in drawn) // 32) * 32
    nothing = np.array([0, 0, 1, 1, 0, 0], np.float32)
    slices = drawn[0].shape[1]
    filled = np.tile(nothing, (len(drawn), slices, most, 1))
    for patient, ellipses in enumerate(drawn):
      filled[patient, :, : len(ellipses)] = ellipses.swapaxes(0, 1)
    return filled.reshape(-1, most, 6)

  def _settings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Field of view, dose and kernel of each slice."""
    order = list(scanner_lib.KERNELS)
    kernels = [order.index(scanner_lib.SCANNERS[name].kernel) for name in self.facts['scanner']]
    fov = self.facts['field_of_view_mm'].astype(np.float32)
    return fov, self._dose.astype(np.float32), np.array(kernels, np.int32)

  def _keys(self) -> jax.Array:
    """A key for the noise of each slice, whatever the number of patients."""
    slices = len(self) // len(self._poses)
    patient, i = np.divmod(np.arange(len(self)), slices)
    key = jax.random.key(self._seed)
    fold = jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(key, p), s))
    return fold(patient, i)
