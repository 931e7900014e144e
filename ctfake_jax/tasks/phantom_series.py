"""The task `phantom_series`: whole simulated chest CT series as DICOM, with the nodules' places.

Leaves, for each of `phantom.patients`, `series/<patient>/0001.dcm` ... by ascending position, and
`lung.npz` with the voxels of parenchyma; for all together `nodules.csv` and `manifest.json`.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ctfake_jax import __version__
from ctfake_jax.config.keys import Config
from ctfake_jax.data import series as series_lib
from ctfake_jax.data.series import CtSeries
from ctfake_jax.data.sources.phantom.chest import Nodule
from ctfake_jax.workdir import files as workdir_lib

COLUMNS = ('series', 'z', 'y', 'x', 'x_mm', 'y_mm', 'z_mm', 'diameter_mm', 'hu')


def run(config: Config, workdir: Path) -> dict:
  """Writes the series of `config.phantom`; returns the manifest."""
  workdir_lib.check_same_command(workdir, config)
  rows, listed = [], []
  for series, scanned in series_lib.of_phantom(config):
    folder = workdir / 'series' / series.name
    digests = series_lib.write_simulated(series, folder)
    np.savez_compressed(folder / 'lung.npz', allow_pickle=False, mask=scanned.lung[::-1])
    rows += list(_nodule_rows(series, scanned.nodules))
    listed.append({
      'series': series.name,
      'scanner': scanned.scanner,
      'kernel': scanned.kernel,
      'dose_mgy': scanned.dose_mgy,
      'thickness_mm': scanned.thickness_mm,
      'nodules': len(scanned.nodules),
      'sha256': digests,
    })  # fmt: skip
  workdir_lib.record_command(workdir, config)
  with open(workdir / 'nodules.csv', 'w', newline='', encoding='utf-8') as handle:
    writer = csv.writer(handle)
    writer.writerow(COLUMNS)
    writer.writerows(rows)
  manifest = {'version': __version__, 'seed': config.phantom.seed, 'series': listed}
  workdir_lib.write_json(workdir / 'manifest.json', manifest)
  return manifest


def _nodule_rows(series: CtSeries, nodules: tuple[Nodule, ...]) -> Iterator[tuple]:
  """Of nodules whose middle lies in the series: where in its files, and where in the patient."""
  for nodule in nodules:
    x, y, depth = nodule.centre.tolist()
    voxel = series.voxel_of(np.array([x, y, -depth]))
    if voxel[0] >= 0:
      places = (round(value, 2) for value in (*voxel, x, y, -depth))
      yield series.name, *places, round(nodule.diameter_mm, 2), round(nodule.hu)
