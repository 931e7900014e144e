"""What `generate` writes of edits and samples."""

import hashlib

import numpy as np
import pydicom
import pytest
from made_dicom import chest_hu, ct, dciodvfy_errors, save
from PIL import Image

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.data.dataset import load
from ctfake_jax.data.fingerprints import identity
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.data.sources.dicom.pseudonyms import KEY_FILE
from ctfake_jax.data.sources.dicom.source import DicomSource
from ctfake_jax.fakes import generation
from ctfake_jax.inference import generator as sampling
from ctfake_jax.types import UserError


@pytest.fixture
def patients(tmp_path):
  """Two classes of two patients with two slices each, 48 x 60 pixels, prone."""
  root, hu = tmp_path / 'patients', np.pad(chest_hu(), [(0, 0), (6, 6)], mode='edge')
  for i in range(8):
    ds = ct(
      hu[::-1, ::-1] + i,
      RescaleIntercept=0,
      PatientID=f'Doe{i // 2}',
      StudyInstanceUID=f'1.2.{i // 2}',
      SeriesInstanceUID=f'1.2.{i // 2}.1',
      FrameOfReferenceUID=f'1.2.{i // 2}.9',
      PixelSpacing=[1, 1],
      ImageOrientationPatient=[-1, 0, 0, 0, -1, 0],
      ImagePositionPatient=[30, 20, -100 + 5 * (i % 2)],
    )
    save(ds, root / ('a', 'b')[i // 4] / f'Doe{i}')
  return root


def _config(root, method='copied'):
  config = config_lib.defaults()
  config.task, config.generate.method = 'generate', method
  config.generate.count, config.generate.dicom = 8, True
  config.data.source, config.data.path = 'dicom', str(root)
  config.data.image_size = 16
  config_lib.validate(resolve(config))
  return config


@pytest.mark.parametrize('method', config_lib.EDITS)
def test_edits_of_patients_lie_where_their_sources_do(patients, tmp_path, method):
  workdir = tmp_path / 'w'
  manifest = generation.run(resolve(_config(patients, method)), workdir)
  files = sorted((workdir / 'dicom').rglob('*.dcm'), key=lambda path: path.name)
  assert len(files) == 8
  headers = [pydicom.dcmread(path) for path in files]
  for path, ds in zip(files, headers):
    assert dciodvfy_errors(path) == []
    assert ds.SyntheticData == 'YES'
    assert 'of a patient' in ds.DerivationDescription
    # 48 of 60 columns are seen, 3 mm a pixel. The first pixel as stored is 3 x 3 of the source
    # about row 1 and column 6 + 1.
    assert list(ds.PixelSpacing) == [3, 3]
    assert list(ds.ImageOrientationPatient) == [-1, 0, 0, 0, -1, 0]
    assert list(ds.ImagePositionPatient[:2]) == [30 - 7, 20 - 1]
    assert ds.ImagePositionPatient[2] in (-100, -95)
    mask = workdir / 'masks' / path.parent.name / f'{path.stem}.png'
    share = float(np.mean(np.asarray(Image.open(mask))))
    (equipment,) = ds.ContributingEquipmentSequence
    assert f'{share:.2%} of the pixels' in equipment.ContributionDescription
  # Edits of one patient stay together, and so does the frame of reference.
  for keyword, count in (('PatientID', 4), ('StudyInstanceUID', 4), ('FrameOfReferenceUID', 4)):
    assert len({ds[keyword].value for ds in headers}) == count
  assert len({ds.SeriesInstanceUID for ds in headers}) == 8
  referred = {ds.SourceImageSequence[0].ReferencedSOPInstanceUID for ds in headers}
  assert len(referred) == 8
  assert {len(ds.SourceImageSequence) for ds in headers} == {2 if method == 'blended' else 1}
  if method == 'blended':  # both sources by the same pseudonyms
    by_source = dict(zip(manifest['sources'], headers))
    for donor, ds in zip(manifest['donors'], headers):
      assert ds.SourceImageSequence[1] == by_source[donor].SourceImageSequence[0]
      assert 'another image (the other: a CT image of a patient)' in ds.DerivationDescription
  own = {pydicom.dcmread(p).SOPInstanceUID for p in patients.rglob('Doe*')}
  assert not referred & own


def test_no_identity_of_the_source_and_no_key_in_any_file(patients, tmp_path):
  workdir = tmp_path / 'w'
  generation.run(resolve(_config(patients)), workdir)
  key = (workdir / KEY_FILE).read_bytes()
  for path in (workdir / 'dicom').rglob('*.dcm'):
    text = path.read_bytes()
    assert b'Doe' not in text
    assert b'1.2.0' not in text
    assert hashlib.sha256(b'Doe0').hexdigest()[:12].encode() not in text
  for path in workdir.rglob('*'):
    if path.is_file() and path.name != KEY_FILE:
      assert key not in path.read_bytes()
      assert key.hex().encode() not in path.read_bytes()
  first = {p.name: p.read_bytes() for p in (workdir / 'dicom').rglob('*.dcm')}
  generation.run(resolve(_config(patients)), workdir)
  assert {p.name: p.read_bytes() for p in (workdir / 'dicom').rglob('*.dcm')} == first


def test_an_edit_read_back_is_its_source_outside_of_the_mask(patients, tmp_path):
  workdir, config = tmp_path / 'w', _config(patients)
  manifest = generation.run(resolve(config), workdir)
  reals, _ = load(resolve(config))
  rows = {record.provenance: i for i, record in enumerate(reals.records)}
  source = DicomSource(workdir / 'dicom', labels_csv=None, max_pixels=2**20, synthetic_ok=True)
  view = Preprocess.from_config(resolve(config).data)
  for i in range(len(source)):
    number = int(source.records[i].provenance[-10:-4])
    real = reals.images[rows[manifest['sources'][number]]][..., 0]
    mask = np.asarray(Image.open(workdir / manifest['files'][number]['mask']))
    assert mask.any()
    edited = view(source[i])[..., 0]
    np.testing.assert_allclose(edited[~mask], real[~mask], atol=1 / 750)


def test_an_edit_of_a_source_without_orientation_has_no_place_of_it(patients, tmp_path):
  for path in patients.rglob('Doe*'):
    ds = pydicom.dcmread(path)
    del ds.ImageOrientationPatient
    ds.save_as(path)
  generation.run(resolve(_config(patients)), tmp_path / 'w')
  made = [pydicom.dcmread(p) for p in sorted((tmp_path / 'w' / 'dicom').rglob('*.dcm'))]
  assert all('position in space not known' in ds.ImageComments for ds in made)
  assert len({ds.FrameOfReferenceUID for ds in made}) == len(made)


def test_edits_of_a_phantom_are_of_no_patient(tmp_path):
  config = config_lib.defaults()
  config.task, config.generate.method = 'generate', 'copied'
  config.generate.count, config.generate.dicom = 4, True
  config.phantom.patients, config.phantom.slices_per_patient = 8, 1
  generation.run(resolve(config), tmp_path)
  reals, _ = load(resolve(config))
  spacings = {round(record.plane.spacing_mm[0], 6) for record in reals.records}
  for path in (tmp_path / 'dicom').rglob('*.dcm'):
    ds = pydicom.dcmread(path)
    assert 'a simulated image, no patient' in ds.DerivationDescription
    assert round(float(ds.PixelSpacing[0]), 6) in spacings
    assert dciodvfy_errors(path) == []


class _Grey(sampling.Sampler):
  """A generator of one grey."""

  def __init__(self):
    pass

  def sample(self, labels, seed):
    del seed
    return np.zeros((len(labels), 16, 16, 1), np.float32)


def _samples(config, spacing_mm, workdir, monkeypatch):
  trained = sampling.TrainedGenerator(
    _Grey(), resolve(config), ('a', 'b'), 'HU', np.ones(2, int), 0, 'digest', None, spacing_mm
  )
  monkeypatch.setattr(sampling, 'load', lambda path: trained)
  config.generate.method, config.generate.checkpoint = 'samples', 'somewhere'
  return generation.run(resolve(config), workdir)


def test_samples_have_the_spacing_of_what_was_learnt_from(tmp_path, patients, monkeypatch):
  config = _config(patients)
  config.task = 'vae'
  learnt = identity(load(resolve(config))[0], Preprocess.from_config(resolve(config).data))
  assert learnt['spacing_mm'] == [3, 3]
  config.data.aspect = 'stretch'
  view = Preprocess.from_config(resolve(config).data)
  learnt = identity(load(resolve(config))[0], view)
  assert learnt['spacing_mm'] == [3, 60 / 16]
  _samples(config, tuple(learnt['spacing_mm']), tmp_path / 'w', monkeypatch)
  for path in (tmp_path / 'w' / 'dicom').rglob('*.dcm'):
    ds = pydicom.dcmread(path)
    assert list(ds.PixelSpacing) == [3, 3.75]
    assert dciodvfy_errors(path) == []
  assert not (tmp_path / 'w' / KEY_FILE).exists()


def test_no_ct_of_unknown_spacing(tmp_path, monkeypatch):
  config = _config(tmp_path)
  config.task = 'vae'
  with pytest.raises(UserError, match=r'field_of_view_mm = 0: .*set how many mm'):
    _samples(config, None, tmp_path / 'w', monkeypatch)
  assert not list(tmp_path.rglob('*.dcm'))
  config.generate.field_of_view_mm = 400.0
  _samples(config, None, tmp_path / 'w', monkeypatch)
  ds = pydicom.dcmread(next((tmp_path / 'w' / 'dicom').rglob('*.dcm')))
  assert list(ds.PixelSpacing) == [25, 25]


@pytest.mark.parametrize(
  ('value', 'right'), [(0.0, True), (50.0, True), (49.0, False), (1e4, False)]
)
def test_field_of_view_is_that_of_a_body(value, right):
  config = config_lib.defaults()
  config.generate.field_of_view_mm = value
  if right:
    config_lib.validate(resolve(config))
  else:
    with pytest.raises(UserError, match='field_of_view_mm'):
      config_lib.validate(resolve(config))


def test_a_generator_rebuilds_images_seen_as_it_learnt_them(patients):
  config = _config(patients)
  trained = sampling.TrainedGenerator(
    _Grey(), resolve(_config(patients)), ('a', 'b'), 'HU', np.ones(2, int), 0, '', None
  )
  generation._check_same_view(resolve(config), trained, load(resolve(config))[0])
  for key, value in (('window_width_hu', 400.0), ('aspect', 'stretch')):
    other = _config(patients)
    other.data[key] = value
    with pytest.raises(UserError, match=f'config.data.{key} = .*: the generator was trained on'):
      generation._check_same_view(resolve(other), trained, load(resolve(other))[0])
