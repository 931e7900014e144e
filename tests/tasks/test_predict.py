"""What `predict` and `evaluate` take in."""

import dataclasses
import shutil

import numpy as np
import pytest
from conftest import make_images
from PIL import Image
from pydicom.data import get_testdata_file

from ctfake_jax.data import dataset
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.tasks import evaluate, predict
from ctfake_jax.types import Source, UserError


def picture(path):
  Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


def test_a_single_dicom_file_is_dicom_whatever_its_name(tmp_path):
  path = tmp_path / 'slice'
  shutil.copy(get_testdata_file('CT_small.dcm'), path)
  source = predict.open_input(path, max_pixels=10**6)
  assert source[0].unit == 'HU'


def test_one_odd_file_stops_no_other(tmp_path):
  picture(tmp_path / 'a.png')
  shutil.copy(get_testdata_file('CT_small.dcm'), tmp_path / 'b.dcm')
  shutil.copy(get_testdata_file('MR_small.dcm'), tmp_path / 'c.dcm')
  (tmp_path / 'd.png').write_bytes(b'junk')
  (tmp_path / 'e.webp').touch()
  source = predict.open_input(tmp_path, max_pixels=10**6)
  assert isinstance(source, Source)
  view = Preprocess(8, -600.0, 1500.0, 'crop')
  for unit, judged, other in (('grey', 'a.png', 'b.dcm'), ('HU', 'b.dcm', 'a.png')):
    images = dataset.gather(source, view, labelled=False, unit=unit)
    assert [record.provenance for record in images.records] == [judged]
    reasons = {error.path: error.reason for error in images.unreadable}
    assert set(reasons) == {other, 'c.dcm', 'd.png'}
    assert f'the network learnt from {unit} values' in reasons[other]
    assert 'Modality MR' in reasons['c.dcm']
    assert images.skipped == {'.webp': 1}


def test_an_input_with_neither_says_so(tmp_path):
  (tmp_path / 'notes.txt').write_text('nothing here')
  with pytest.raises(UserError, match='no picture'):
    predict.open_input(tmp_path, max_pixels=10**6)


def test_labels_follow_the_order_of_the_checkpoint():
  images = make_images(8)
  turned = evaluate.in_order_of(images, ('class1', 'class0'))
  np.testing.assert_array_equal(turned.labels, 1 - images.labels)
  assert [record.label for record in turned.records] == turned.labels.tolist()
  other = dataclasses.replace(images, class_names=('a', 'b'))
  with pytest.raises(UserError, match='name the folders alike'):
    evaluate.in_order_of(other, ('class1', 'class0'))
