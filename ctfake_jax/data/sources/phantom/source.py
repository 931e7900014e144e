"""The embedded phantom: simulated chest CT of patients who never were.

Enters: how many patients and slices, a size and a seed. Leaves: slices in HU, float32[size, size],
through the same interface as every other source, with four classes, one for each patient. Anatomy
is painted with ellipses (`anatomy.py`), then scanned (`scanner.py`).
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float64, Shaped

from ctfake_jax import types
from ctfake_jax.data.sources.phantom import anatomy as anatomy_lib
from ctfake_jax.data.sources.phantom import scanner as scanner_lib
from ctfake_jax.data.sources.phantom.anatomy import CHEST_MM, CLASS_NAMES
from ctfake_jax.runtime import progress_bar

DEFAULT_SCANNERS = ('A', 'B', 'C')
SPAN_MM = 24.0  # a patient's slices lie within this: one lesion is seen in all of them
PIXELS_PER_CHUNK = 2**17
SLOW_PIXELS = 2**23
# What the random streams of one patient are for: scanning anew must not redraw the anatomy.
ANATOMY, LESION, POSE, SCAN, LABEL = range(5)


def stream(seed: int, index: int, *purpose: int) -> np.random.Generator:
  """A stream of its own for each patient and purpose, whoever else is drawn."""
  return np.random.default_rng((seed, index, *purpose))


def draw_label(seed: int, patient: int) -> int:
  """Class of a patient; each run of four patients has every class once."""
  block, place = divmod(patient, len(CLASS_NAMES))
  return int(stream(seed, block, LABEL).permutation(len(CLASS_NAMES))[place])


def draw_pose(seed: int, patient: int, slices: int) -> dict[str, Float64[np.ndarray, ' s']]:
  """Size of the body, place on the couch, and heights of the slices."""
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


def draw_ellipses(
  seed: int, patient: int, pose: dict[str, Float64[np.ndarray, ' s']]
) -> Float64[np.ndarray, 'k s 6']:
  """Ellipses of a patient's slices on the couch."""
  anatomy, lesion = (stream(seed, patient, purpose) for purpose in (ANATOMY, LESION))
  z = pose['z']
  level = z / CHEST_MM
  canvas = anatomy_lib.Canvas(len(z))
  cavity = anatomy_lib.paint_body(
    canvas, anatomy, pose['patient_width_mm'][0], pose['patient_height_mm'][0]
  )
  lungs = anatomy_lib.paint_lungs(canvas, anatomy, cavity, level)
  anatomy_lib.paint_mediastinum(canvas, anatomy, lungs, level)
  anatomy_lib.paint_bones(canvas, anatomy, cavity, level)
  # A lesion is an ellipsoid cut off its middle, and longer than the slices lie apart.
  middle = z.mean() + lesion.uniform(-0.25, 0.25) * SPAN_MM
  swell = np.sqrt(1 - ((z - middle) / (1.5 * SPAN_MM)) ** 2)
  anatomy_lib.LESIONS[CLASS_NAMES[draw_label(seed, patient)]](canvas, lesion, lungs, swell)
  anatomy_lib.paint_vessels(canvas, anatomy, lungs, level)
  anatomy_lib.paint_distractors(canvas, anatomy, lungs)
  return place_on_couch(canvas.ellipses, pose)


def place_on_couch(
  ellipses: Float64[np.ndarray, 'k s 6'], pose: dict[str, Float64[np.ndarray, ' s']]
) -> Float64[np.ndarray, 'k+2 s 6']:
  """Turns and shifts a patient's ellipses, and lays the table beneath."""
  x, y, a, b, angle, hu = np.moveaxis(ellipses, -1, 0)
  turn = pose['rotation_rad']
  moved_x = x * np.cos(turn) - y * np.sin(turn)
  moved_y = x * np.sin(turn) + y * np.cos(turn)
  patient = np.stack([moved_x, moved_y, a, b, angle + turn, hu], axis=-1)
  table = anatomy_lib.Canvas(ellipses.shape[1])
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
    self.facts: dict[str, Shaped[np.ndarray, ' n']] = {
      'scanner': names,
      'field_of_view_mm': fov,
      **posed,
    }
    self.records = [
      types.Record(
        label=draw_label(seed, patient),
        patient_id=f'phantom-{patient:06d}',
        provenance=f'phantom/seed={seed}/patient={patient}/slice={i}/scanner={scans[patient][0]}',
        plane=self._plane(patient * slices_per_patient + i),
        simulated=True,
      )
      for patient in range(patients)
      for i in range(slices_per_patient)
    ]

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> types.Slice:
    return types.Slice(pixels=self._pixels[index], unit='HU', spacing_mm=self._spacing_mm(index))

  def _spacing_mm(self, index: int) -> float:
    return float(self.facts['field_of_view_mm'][index]) / self._size

  def _plane(self, index: int) -> types.Plane:
    shape, spacing = (self._size, self._size), self._spacing_mm(index)
    depth = float(self.facts['z'][index])  # from the top
    return types.centred(shape, (spacing, spacing), -depth)

  @functools.cached_property
  def _pixels(self) -> np.ndarray:
    """All slices, float32[n, size, size] HU."""
    n, size = len(self), self._size
    inputs = (self._keys(), self._ellipses(), *self._settings())
    chunk = max(1, PIXELS_PER_CHUNK // size**2)
    starts = range(0, n, chunk)
    pixels = np.empty((n, size, size), np.float32)
    for start in progress_bar.bar('phantom', starts, hidden=n * size**2 < SLOW_PIXELS):
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
