"""CT that no scanner made: what its files say."""

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dicom import dciodvfy_errors

from ctfake_jax.data.sources.dicom import statements as dicom_statements
from ctfake_jax.data.sources.dicom.pseudonyms import KEY_FILE, Pseudonyms
from ctfake_jax.data.sources.dicom.source import DicomSource
from ctfake_jax.data.sources.dicom.writer import Statement, write_ct
from ctfake_jax.types import Instance, Plane, Record, UserError, centred

HU = np.linspace(-1024, 3000, 20 * 18, dtype=np.float32).reshape(20, 18)


def _generated(seed='7', label='mass', made_by='ctfake_jax DCGAN') -> Statement:
  return dicom_statements.generated(label=label, made_by=made_by, version='0.1', seed=seed)


def _write(path, hu=HU, spacing_mm=10.9375, statement=None, number=1):
  plane = centred(hu.shape[:2], (spacing_mm, spacing_mm))
  write_ct(path, hu, plane=plane, statement=statement or _generated(), instance_number=number)
  return path


def _read(path):
  return DicomSource(path, labels_csv=None, max_pixels=2**20, synthetic_ok=True)[0]


def test_round_trip(tmp_path):
  image = _read(_write(tmp_path / 'a.dcm'))
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
  image = _read(_write(tmp_path_factory.mktemp('range') / 'a.dcm', hu, spacing))
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
  assert _generated(None).series != _generated(None).series
  assert _generated('7').series != _generated('8').series
  same = [_write(tmp_path / name).read_bytes() for name in ('a', 'b')]
  assert same[0] == same[1]
  paths = [
    _write(tmp_path / 'c'),
    _write(tmp_path / 'd', number=2),
    _write(tmp_path / 'e', HU + 1),
    _write(tmp_path / 'f', statement=_generated('8')),
  ]
  headers = [pydicom.dcmread(path) for path in paths]
  assert len({ds.SOPInstanceUID for ds in headers}) == 4
  assert len({ds.SeriesInstanceUID for ds in headers}) == 2
  ds = headers[0]
  used = {ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID}
  assert len(used) == 4


def test_any_label_can_be_written(tmp_path):
  path = _write(tmp_path / 'a.dcm', statement=_generated(label='größer\\als 5 mm'))
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


@pytest.mark.parametrize('made_by', ['', 'x' * 65, 'a\\b', 'a\nb'])
def test_refuses_a_bad_generator_name(made_by):
  with pytest.raises(UserError, match='made_by'):
    _generated(made_by=made_by)


def test_dciodvfy_finds_no_error(tmp_path):
  assert dciodvfy_errors(_write(tmp_path / 'a.dcm')) == []


PLANE = Plane((20, 18), (0.75, 1.25), ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)), (120.5, 80.25, -300.0))
INSTANCE = Instance(pydicom.uid.CTImageStorage, '1.2.3.4.5', '1.2.3.9', 0, False)


def _edited(tmp_path, record=None, *, resampled=True, number='0') -> pydicom.Dataset:
  source = record or Record(0, 'pseudonym of Doe', 'p/Doe.dcm', plane=PLANE, instance=INSTANCE)
  statement = dicom_statements.edited(
    source,
    dicom_statements.Change('A part was replaced', 0.0325, resampled, (-1350.0, 150.0)),
    made_by='ctfake_jax edit, blended',
    version='0.1',
    label='mass',
    number=number,
    pseudonyms=Pseudonyms.of(tmp_path),
  )
  path = tmp_path / f'{number}.dcm'
  write_ct(path, HU, plane=PLANE, statement=statement, instance_number=1)
  return pydicom.dcmread(path)


def test_an_edited_image_says_that_it_shows_a_patient_changed(tmp_path):
  ds = _edited(tmp_path)
  assert ds.SyntheticData == 'YES'
  assert list(ds.ImageType)[:2] == ['DERIVED', 'SECONDARY']
  assert ds.DerivationDescription.startswith('Derived from a CT image of a patient. A part was')
  assert 'HU limited to -1350 to 150' in ds.DerivationDescription
  (code,) = ds.DerivationCodeSequence  # PS3.16, CID 7203
  assert (code.CodeValue, code.CodeMeaning) == ('113085', 'Spatial resampling')
  (equipment,) = ds.ContributingEquipmentSequence
  assert '3.25% of the pixels were changed' in equipment.ContributionDescription
  assert equipment.ManufacturerModelName == 'ctfake_jax edit, blended'
  assert list(ds.PixelSpacing) == [0.75, 1.25]
  assert list(ds.ImageOrientationPatient) == [-1, 0, 0, 0, -1, 0]
  assert list(ds.ImagePositionPatient) == [120.5, 80.25, -300]
  for keyword in ('PatientIdentityRemoved', 'DeidentificationMethod', 'BodyPartExamined'):
    assert keyword not in ds  # none of them is known to hold
  text = (tmp_path / '0.dcm').read_bytes()
  for secret in (b'Doe', b'1.2.3.4.5', b'1.2.3.9', b'no patient', b'All pixels'):
    assert secret not in text
  assert dciodvfy_errors(tmp_path / '0.dcm') == []
  assert 'DerivationCodeSequence' not in _edited(tmp_path, resampled=False, number='1')


def test_what_an_edited_image_refers_to_follows_the_key(tmp_path):
  (source,) = _edited(tmp_path).SourceImageSequence
  assert source.ReferencedSOPClassUID == pydicom.uid.CTImageStorage
  (purpose,) = source.PurposeOfReferenceCodeSequence  # PS3.16, CID 7202
  assert purpose.CodeValue == '121322'
  assert source.ReferencedSOPInstanceUID.is_valid
  again, other = _edited(tmp_path, number='1'), tmp_path / 'other'
  other.mkdir()
  for ds, same in ((again, True), (_edited(other), False)):
    (referenced,) = ds.SourceImageSequence
    for mine, theirs in (
      (referenced.ReferencedSOPInstanceUID, source.ReferencedSOPInstanceUID),
      (ds.PatientID, _edited(tmp_path).PatientID),
      (ds.StudyInstanceUID, _edited(tmp_path).StudyInstanceUID),
      (ds.FrameOfReferenceUID, _edited(tmp_path).FrameOfReferenceUID),
    ):
      assert (mine == theirs) == same
    assert ds.SeriesInstanceUID != _edited(tmp_path).SeriesInstanceUID


def test_a_frame_is_referred_to_by_its_number(tmp_path):
  frame = Instance(pydicom.uid.EnhancedCTImageStorage, '1.2', '', 3, False)
  (source,) = _edited(tmp_path, Record(0, None, 'a#3', instance=frame)).SourceImageSequence
  assert source.ReferencedFrameNumber == 3
  assert dciodvfy_errors(tmp_path / '0.dcm') == []


@pytest.mark.parametrize(
  ('record', 'shown'),
  [
    (Record(0, 'p', 'phantom', simulated=True), 'a simulated image, no patient'),
    (Record(0, 'p', 'x'), 'a CT image.'),
    (Record(0, 'p', 'x', instance=Instance('1.2', '1.3', '', 0, True)), 'says that it is synth'),
  ],
)
def test_the_source_is_called_what_it_is(tmp_path, record, shown):
  ds = _edited(tmp_path, record)
  assert shown in ds.DerivationDescription
  assert 'of a patient' not in ds.DerivationDescription
  assert 'position in space not known' in ds.ImageComments


def test_the_key_is_made_once_for_its_owner_only(tmp_path):
  name = Pseudonyms.of(tmp_path).name('patient', 'x')
  assert Pseudonyms.of(tmp_path).name('patient', 'x') == name
  assert Pseudonyms.of(tmp_path).name('patientx', '') != name
  key = tmp_path / KEY_FILE
  assert key.stat().st_mode & 0o777 == 0o600
  assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]
  key.unlink()
  assert Pseudonyms.of(tmp_path).name('patient', 'x') != name
  key.write_bytes(b'short')
  with pytest.raises(UserError, match='is damaged'):
    Pseudonyms.of(tmp_path)
