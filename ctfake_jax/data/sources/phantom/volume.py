"""A simulated patient's whole series: slices that lie side by side, with the nodules' places.

Enters seed, patient and how he is scanned; leaves int16[z, h, w] HU, head first, with the plane of
each. The chest (`chest.py`) depends on seed and patient alone: another thickness, kernel or dose
shows the same one.
"""

import concurrent.futures
import dataclasses

import numpy as np
from jaxtyping import Bool, Int16

from ctfake_jax.data.sources.phantom import chest as chest_lib
from ctfake_jax.data.sources.phantom import chest_drawing, scanner, volume_scanner
from ctfake_jax.data.sources.phantom.anatomy import AIR
from ctfake_jax.data.sources.phantom.solids import Slab
from ctfake_jax.data.sources.phantom.source import draw_pose, draw_scan, stream
from ctfake_jax.runtime import processors, progress_bar
from ctfake_jax.types import Plane, centred

# Purposes of a patient's random streams, beside those of `source`.
CHEST, NOISE = 5, 6
SUB_PLANES_MM, MOST_SUB_PLANES = 1.0, 3  # in which a slice's thickness is painted
MOST_NODULES = 3
AT_ONCE = 4  # slices that a thread paints


@dataclasses.dataclass(frozen=True)
class Series:
  """One series as scanned.

  Attributes:
    hu: slices from the head down.
    lung: where at least half of a voxel is parenchyma.
    planes: of the slices.
    thickness_mm: of each, and the step between two.
    nodules: of the lungs, places and sizes as the phantom has them.
    scanner: a key of `scanner.SCANNERS`.
    kernel: its reconstruction kernel.
    dose_mgy: CTDIvol.
  """

  hu: Int16[np.ndarray, 'z h w']
  lung: Bool[np.ndarray, 'z h w']
  planes: tuple[Plane, ...]
  thickness_mm: float
  nodules: tuple[chest_lib.Nodule, ...]
  scanner: str
  kernel: str
  dose_mgy: float


def series(
  *,
  seed: int,
  patient: int,
  slices: int,
  size: int,
  thickness_mm: float,
  scanners: tuple[str, ...],
) -> Series:
  """Scans a patient from near the apex of the lungs down.

  Args:
    seed: of all patients.
    patient: its number.
    slices: how many.
    size: pixels on a side.
    thickness_mm: of a slice, and the step to the next.
    scanners: keys of `scanner.SCANNERS`; the patient gets one at random.
  """
  name, dose, field_of_view = draw_scan(seed, patient, scanners)
  setting = scanner.SCANNERS[name]
  chest = draw_chest(seed, patient)
  length = chest.lungs[0].length
  first = max(0.08 * length, (length - slices * thickness_mm) / 2)
  depths = first + thickness_mm * np.arange(slices)
  hu = np.empty((slices, size, size), np.int16)
  lung = np.empty((slices, size, size), bool)

  def scan(start: int) -> None:
    """`AT_ONCE` slices, into `hu` and `lung`."""
    rows = range(start, min(start + AT_ONCE, slices))
    own = depths[rows.start : rows.stop]
    slab = _painted(chest, own, thickness_mm, size, field_of_view / size)
    for place, row in enumerate(rows):
      seen = volume_scanner.scan(
        slab.hu[place],
        field_of_view_mm=field_of_view,
        dose_mgy=dose,
        kernel=setting.kernel,
        thickness_mm=thickness_mm,
        rng=stream(seed, patient, NOISE, row),
      )
      hu[row], lung[row] = np.rint(seen), slab.lung[place] >= 0.5

  starts = range(0, slices, AT_ONCE)
  with concurrent.futures.ThreadPoolExecutor(processors.count()) as threads:
    done = threads.map(scan, starts)
    for _ in progress_bar.bar('scanning', done, total=len(starts), patience=progress_bar.PATIENCE):
      pass
  spacing = field_of_view / size
  planes = tuple(centred((size, size), (spacing, spacing), -depth) for depth in depths.tolist())
  return Series(hu, lung, planes, thickness_mm, chest.nodules, name, setting.kernel, float(dose))


def draw_chest(seed: int, patient: int) -> chest_lib.Chest:
  """The chest of a patient, who is as large as in `source`."""
  pose = draw_pose(seed, patient, 1)
  rng = stream(seed, patient, CHEST)
  width, height = (float(pose[f'patient_{side}_mm'][0]) for side in ('width', 'height'))
  return chest_drawing.draw(rng, width, height, int(rng.integers(0, MOST_NODULES + 1)))


def _painted(
  chest: chest_lib.Chest, depths: np.ndarray, thickness_mm: float, size: int, pixel_mm: float
) -> Slab:
  """Slices as means over their thickness."""
  count = int(np.clip(round(thickness_mm / SUB_PLANES_MM), 1, MOST_SUB_PLANES))
  inner = thickness_mm * ((np.arange(count) + 0.5) / count - 0.5)
  fine = Slab.empty((depths[:, None] + inner).ravel(), size, pixel_mm, AIR)
  chest.paint(fine)
  hu, lung = (
    values.reshape(len(depths), count, size, size).mean(1) for values in (fine.hu, fine.lung)
  )
  return Slab(hu, lung, depths, pixel_mm)
