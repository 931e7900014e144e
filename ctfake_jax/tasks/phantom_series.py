"""The task `phantom_series`: whole simulated chest CT series as DICOM, with the nodules' places.

Leaves, for each of `phantom.patients`, `series/<patient>/0001.dcm` ... by ascending position, and
`lung.npz` with the voxels of parenchyma; for all together `nodules.csv` and `manifest.json`.
"""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ctfake_jax import __version__
from ctfake_jax.config.keys import Config
from ctfake_jax.data.sources.dicom import statements
from ctfake_jax.data.sources.dicom.writer import write_ct
from ctfake_jax.data.sources.phantom import volume
from ctfake_jax.data.sources.phantom.chest import Nodule
from ctfake_jax.data.sources.phantom.source import refuse_bad_phantom
from ctfake_jax.runtime import progress_bar
from ctfake_jax.types import Plane
from ctfake_jax.workdir import files as workdir_lib

COLUMNS = ('series', 'z', 'y', 'x', 'x_mm', 'y_mm', 'z_mm', 'diameter_mm', 'hu')


def run(config: Config, workdir: Path) -> dict:
  """Writes the series of `config.phantom`; returns the manifest."""
  c, size = config.phantom, config.phantom.size or config.data.image_size
  refuse_bad_phantom(c.patients, c.slices_per_patient, size, c.seed, c.scanners)
  workdir_lib.check_same_command(workdir, config)
  rows, listed = [], []
  for patient in range(c.patients):
    series = volume.series(
      seed=c.seed,
      patient=patient,
      slices=c.slices_per_patient,
      size=size,
      thickness_mm=c.thickness_mm,
      scanners=c.scanners,
    )
    name = f'phantom-{c.seed}-{patient:04d}'
    folder = workdir / 'series' / name
    digests = write(series, folder, name)
    rows += list(_nodule_rows(series, name))
    listed.append({
      'series': name,
      'scanner': series.scanner,
      'kernel': series.kernel,
      'dose_mgy': series.dose_mgy,
      'thickness_mm': series.thickness_mm,
      'nodules': len(series.nodules),
      'sha256': digests,
    })  # fmt: skip
  workdir_lib.record_command(workdir, config)
  with open(workdir / 'nodules.csv', 'w', newline='', encoding='utf-8') as handle:
    writer = csv.writer(handle)
    writer.writerow(COLUMNS)
    writer.writerows(rows)
  manifest = {'version': __version__, 'seed': c.seed, 'size': size, 'series': listed}
  workdir_lib.write_json(workdir / 'manifest.json', manifest)
  return manifest


def write(series: volume.Series, folder: Path, name: str) -> dict[str, str]:
  """A series as CT Image Storage, and its lung mask; the hash of each image by its file's name."""
  folder.mkdir(parents=True, exist_ok=True)
  recipe = '/'.join(map(str, (name, series.hu.shape, series.thickness_mm, series.scanner)))
  statement = statements.simulated(
    version=__version__,
    patient=name,
    recipe=recipe,
    thickness_mm=series.thickness_mm,
    kernel=series.kernel,
  )
  digests = {}
  slices = list(zip(series.hu, series.planes))[::-1]
  for number, (hu, plane) in enumerate(progress_bar.bar('writing DICOM', slices), 1):
    path = folder / f'{number:04d}.dcm'
    write_ct(path, hu.astype(np.float32), plane=plane, statement=statement, instance_number=number)
    digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
  np.savez_compressed(folder / 'lung.npz', allow_pickle=False, mask=series.lung[::-1])
  return digests


def _nodule_rows(series: volume.Series, name: str) -> Iterator[tuple]:
  """Of nodules whose middle lies in the series: where in its files, and where in the patient."""
  for nodule in series.nodules:
    place = _nearest(series.planes, nodule)
    if place is not None:
      x, y, depth = nodule.centre.tolist()
      where = (round(x, 2), round(y, 2), round(-depth, 2))
      yield name, *place, *where, round(nodule.diameter_mm, 2), round(nodule.hu)


def _nearest(planes: tuple[Plane, ...], nodule: Nodule) -> tuple[int, int, int] | None:
  """Slice by ascending position, row and column of a nodule's middle, from 0; None outside."""
  heights = np.array([plane.height_mm for plane in planes], float)
  x, y, depth = nodule.centre.tolist()
  number = int(np.argmin(np.abs(heights + depth)))
  if not heights.min() <= -depth <= heights.max():
    return None
  plane = planes[number]
  assert plane.corner_mm is not None
  column = round((x - plane.corner_mm[0]) / plane.spacing_mm[1])
  row = round((y - plane.corner_mm[1]) / plane.spacing_mm[0])
  return len(planes) - 1 - number, row, column
