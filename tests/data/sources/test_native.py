"""CT in HU as stored, of files that may be anything: values, order, and what is refused and why."""

import collections

import made_dicom
import numpy as np
import pytest

from ctfake_jax import config as config_lib
from ctfake_jax.data.sources import native
from ctfake_jax.data.sources.sandboxed import Limits
from ctfake_jax.types import UserError

LIMITS = Limits.from_config(config_lib.Config())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two slices upside down, a multi-frame file, and files that cannot be judged."""
  root = tmp_path_factory.mktemp('native')
  stored = np.arange(256).reshape(16, 16)
  up = [1, 0, 0, 0, -1, 0]
  for name, height in (('a', 10.0), ('b', 5.0)):
    place = [0.0, 0.0, height]
    ds = made_dicom.ct(stored, ImagePositionPatient=place, ImageOrientationPatient=up)
    made_dicom.save(ds, root / f'{name}.dcm')
  wrong = {
    'mr': {'SOPClassUID': '1.2.840.10008.5.1.4.1.1.4', 'Modality': 'MR'},
    'no_rescale': {'RescaleSlope': None, 'RescaleIntercept': None},
    'localizer': {'ImageType': ['ORIGINAL', 'PRIMARY', 'LOCALIZER']},
    'huge': {'Rows': 65535, 'Columns': 65535},
    'sagittal': {'ImageOrientationPatient': [0, 1, 0, 0, 0, -1]},
  }
  for number, (name, changes) in enumerate(wrong.items()):
    changes = {'SeriesInstanceUID': f'1.2.3.{number}', **changes}
    made_dicom.save(made_dicom.ct(stored, **changes), root / f'{name}.dcm')
  whole = (root / 'a.dcm').read_bytes()
  (root / 'truncated.dcm').write_bytes(whole[: len(whole) // 2])
  (root / 'junk.dcm').write_bytes(b'\0' * 128 + b'DICM' + b'\xff' * 64)
  (root / 'notes.txt').write_text('no image')
  return root


@pytest.fixture(scope='module')
def headers(folder):
  return native.headers(folder, LIMITS, collections.Counter())


@pytest.fixture(scope='module')
def frames(folder, headers):
  found = native.frames(folder, native.in_order(headers), LIMITS)
  return {frame.header.path: frame for frame in found}


def test_every_file_is_there_once(folder, headers):
  assert sorted(h.path for h in headers) == sorted(p.name for p in folder.iterdir())


def test_values_are_hu_and_rows_those_of_the_file(frames):
  expected = np.arange(256).reshape(16, 16) - 1024
  np.testing.assert_array_equal(frames['a.dcm'].hu, expected)


def test_the_order_is_along_the_normal(headers):
  """The rows run up, so the normal points to the feet: the higher slice comes first."""
  ordered = [h.path for h in native.in_order(headers) if h.path in ('a.dcm', 'b.dcm')]
  assert ordered == ['a.dcm', 'b.dcm']


@pytest.mark.parametrize(
  ('name', 'says'),
  [
    ('mr', 'MR'),
    ('no_rescale', ''),
    ('localizer', 'LOCALIZER'),
    ('huge', ''),
    ('sagittal', 'axial'),
    ('truncated', ''),
    ('junk', ''),
  ],
)
def test_what_cannot_be_judged_says_why(headers, frames, folder, name, says):
  (header,) = [h for h in headers if h.path == f'{name}.dcm']
  reason = header.reason or frames[header.path].header.reason
  assert reason
  assert says in reason
  assert str(folder) not in reason
  assert 'Doe' not in reason


def test_pictures_and_text_are_told_what_judges_pictures(headers):
  (header,) = [h for h in headers if h.path == 'notes.txt']
  assert 'detector_folders' in header.reason


def test_names_of_series_and_patients_are_pseudonyms(headers):
  for header in headers:
    assert made_dicom.SERIES not in repr(header)
    assert 'Doe' not in repr(header)


def test_a_missing_input_is_named(tmp_path):
  with pytest.raises(UserError, match='no such file or folder'):
    native.headers(tmp_path / 'x', LIMITS, collections.Counter())
