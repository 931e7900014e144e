"""What `predict` and `evaluate` take in."""

import csv
import dataclasses
import shutil

import numpy as np
import pytest
from conftest import make_images
from made_dicom import chest_hu, ct, save
from PIL import Image
from pydicom.data import get_testdata_file

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.data.sources.sandboxed import Limits
from ctfake_jax.inference import classifier as inference
from ctfake_jax.tasks import evaluate, predict
from ctfake_jax.types import UserError

VIEW = Preprocess(8, -600.0, 1500.0, 'crop')


class ByMean(inference.Trained):
  """A classifier of 8 x 8 views by their mean, in place of a trained one."""

  view, class_names = VIEW, ('dark', 'bright')

  def __init__(self, unit='grey'):
    object.__setattr__(self, 'unit', unit)

  def predict(self, images):
    assert images.dtype == np.float32
    bright = (images.mean((1, 2, 3)) + 1) / 2
    return np.stack([1 - bright, bright], 1)


def picture(path, level=0, side=8):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((side, side), level, np.uint8)).save(path)


@pytest.fixture
def predicted(tmp_path, monkeypatch):
  """Runs the task on a folder with `ByMean`; rows of its table by path, and the results."""

  def run(folder, unit='grey'):
    monkeypatch.setattr(predict.inference, 'load', lambda _: ByMean(unit))
    config = config_lib.defaults()
    config.task, config.checkpoint, config.input = 'predict', 'x', str(folder)
    config.detection.workers = 1
    workdir = tmp_path / f'out-{unit}'
    workdir.mkdir()
    results = predict.run(resolve(config), workdir)
    with open(workdir / 'predictions.csv', newline='') as handle:
      return {row['path']: row for row in csv.DictReader(handle)}, results

  return run


def test_one_odd_file_stops_no_other_and_each_has_its_row_in_order(tmp_path, predicted):
  folder = tmp_path / 'in'
  picture(folder / 'a.png', 255)
  for name, own in (('CT_small.dcm', 'b'), ('MR_small.dcm', 'c.dcm')):
    shutil.copy(get_testdata_file(name), folder / own)
  (folder / 'd.png').write_bytes(b'junk')
  (folder / 'e.webp').touch()
  picture(folder / 'f.png', 0)
  for unit, judged, other in (('grey', ('a.png', 'f.png'), 'b'), ('HU', ('b',), 'a.png')):
    rows, results = predicted(folder, unit)
    assert list(rows) == ['a.png', 'b', 'c.dcm', 'd.png', 'e.webp', 'f.png']
    assert [path for path, row in rows.items() if row['prediction']] == list(judged)
    assert f'the network was trained on {unit} values' in rows[other]['error']
    assert 'Modality MR' in rows['c.dcm']['error']
    assert results['images'] == len(judged)
    assert [row['path'] for row in results['unreadable']] == [p for p in rows if p not in judged]


def test_a_picture_is_seen_as_a_float_and_judged_in_batches(tmp_path, predicted):
  folder = tmp_path / 'in'
  for i in range(70):
    picture(folder / f'{i:02d}.png', 3 * i, side=16)
  rows, results = predicted(folder)
  assert results['per_class'] == {'dark': 43, 'bright': 27}
  for i, row in enumerate(rows.values()):
    assert float(row['p_bright']) == pytest.approx(3 * i / 255, abs=1e-6)


def test_slices_without_an_intercept_are_decided_on_together(tmp_path, predicted):
  lost = {'RescaleSlope': None, 'RescaleIntercept': None, 'SeriesInstanceUID': '1.2.3'}
  apex = np.where(chest_hu() < -500, 30, chest_hu())  # no air: alone it is not plainly HU
  (tmp_path / 'in').mkdir()
  for i, hu in enumerate((chest_hu(), apex, chest_hu(), chest_hu() - 1024)):
    save(ct(hu + 1024, **lost, ImagePositionPatient=[0, 0, i]), tmp_path / 'in' / f'{i}.dcm')
  rows, _ = predicted(tmp_path / 'in', 'HU')
  assert all(row['prediction'] for row in rows.values())
  assert 'values taken as HU + 1024' in rows['1.dcm']['remarks']
  assert 'values taken as HU in a series of HU + 1024' in rows['3.dcm']['remarks']
  assert rows['3.dcm']['p_dark'] == rows['0.dcm']['p_dark']


def test_an_input_without_a_readable_image_says_so(tmp_path, predicted):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'notes.txt').write_text('nothing here')
  with pytest.raises(UserError, match=r'no readable image; notes\.txt: '):
    predicted(tmp_path / 'in')
  assert not list((tmp_path / 'out-grey').iterdir())
  with pytest.raises(UserError, match='no such file or folder'):
    predict.decode_all(tmp_path / 'nowhere', VIEW, Limits.from_config(config_lib.Config()))


def test_labels_follow_the_order_of_the_checkpoint():
  images = make_images(8)
  turned = evaluate.in_order_of(images, ('class1', 'class0'))
  np.testing.assert_array_equal(turned.labels, 1 - images.labels)
  assert [record.label for record in turned.records] == turned.labels.tolist()
  other = dataclasses.replace(images, class_names=('a', 'b'))
  with pytest.raises(UserError, match='name the folders alike'):
    evaluate.in_order_of(other, ('class1', 'class0'))
