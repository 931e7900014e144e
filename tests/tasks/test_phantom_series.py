"""Simulated series as DICOM: valid, the same at every run, nodules where the table has them."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.data.sources.dicom.source import DicomSource
from ctfake_jax.tasks import phantom_series
from ctfake_jax.types import UserError


def made(folder, **keys):
  config = config_lib.defaults()
  config.task, config.phantom.patients = 'phantom_series', 2
  config.phantom.slices_per_patient, config.phantom.size = 10, 48
  config.phantom.thickness_mm, config.phantom.seed = 10.0, 3
  config.phantom.update(keys)
  config_lib.validate(resolve(config))
  folder.mkdir()
  return phantom_series.run(resolve(config), folder)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('phantom') / 'one'
  made(folder)
  return folder


def test_files_are_valid_and_say_what_they_are(folder):
  path = folder / 'series' / 'phantom-3-0000' / '0001.dcm'
  checker = Path(sys.executable).parent / 'dciodvfy'
  done = subprocess.run([str(checker), str(path)], capture_output=True, text=True)
  assert not [line for line in done.stderr.splitlines() if line.startswith('Error')]
  ds = pydicom.dcmread(path)
  assert (ds.SyntheticData, ds.ImageType[0], ds.SliceThickness) == ('YES', 'DERIVED', 10)


def test_a_series_is_one_object_in_space(folder):
  source = DicomSource(
    folder / 'series', labels_csv=None, max_pixels=2**20, unlabelled_ok=True, synthetic_ok=True
  )
  assert len(source) == 20
  assert not source.unreadable
  files = [pydicom.dcmread(p) for p in sorted(folder.rglob('phantom-3-0001/*.dcm'))]
  assert len({ds.SeriesInstanceUID for ds in files}) == len({ds.PatientID for ds in files}) == 1
  assert len({ds.SOPInstanceUID for ds in files}) == 10
  np.testing.assert_allclose(np.diff([ds.ImagePositionPatient[2] for ds in files]), 10)
  mask = np.load(folder / 'series' / 'phantom-3-0001' / 'lung.npz')['mask']
  assert 0.05 < mask.mean() < 0.5


@pytest.mark.slow
def test_the_same_command_makes_the_same_files(folder, tmp_path):
  again = made(tmp_path / 'again')
  table = 'nodules.csv'
  assert (tmp_path / 'again' / table).read_text() == (folder / table).read_text()
  for path in folder.rglob('*.dcm'):
    assert path.read_bytes() == (tmp_path / 'again' / path.relative_to(folder)).read_bytes()
  other = made(tmp_path / 'other', seed=4)
  assert other['series'][0]['sha256'] != again['series'][0]['sha256']


@pytest.mark.slow
def test_nodules_lie_where_the_table_has_them(tmp_path):
  """Solid ones are denser than lung where the file has them."""
  made(tmp_path / 'thin', thickness_mm=2.0, slices_per_patient=110, size=64, patients=1, seed=0)
  with open(tmp_path / 'thin' / 'nodules.csv', newline='') as handle:
    rows = [row for row in csv.DictReader(handle) if float(row['diameter_mm']) > 9]
  assert rows
  for row in rows:
    path = tmp_path / 'thin' / 'series' / row['series'] / f'{round(float(row["z"])) + 1:04d}.dcm'
    ds = pydicom.dcmread(path)
    hu = ds.pixel_array + ds.RescaleIntercept
    assert hu[round(float(row['y'])), round(float(row['x']))] > -500
    assert ds.ImagePositionPatient[2] == pytest.approx(float(row['z_mm']), abs=1.01)


def test_a_phantom_that_cannot_be_is_refused(tmp_path):
  with pytest.raises(UserError, match='scanners'):
    made(tmp_path / 'x', scanners=())
  config = config_lib.defaults()
  config.phantom.patients = 4
  with pytest.raises(UserError, match=r'phantom\.patients = 4: must be at least 8'):
    config_lib.validate(resolve(config))
