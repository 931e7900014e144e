"""The bench: kinds left out, every method on the same slices, intervals over patients."""

import numpy as np
import pytest

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.data.sources.native import Frame, Header
from ctfake_jax.forensics import bench, examine, handmade, trial


def bench_config():
  config = config_lib.defaults()
  config.task, config.data.source = 'forensics_bench', 'dicom'
  config.phantom.patients, config.phantom.slices_per_patient, config.phantom.size = 4, 5, 192
  config.forensics.phantoms_to_learn = 2
  config.forensics.width, config.forensics.pairs = 4, 8
  config.forensics.kinds = ('smoothed', 'lesion', 'whole', 'noised')
  config.forensics_bench.kind_folds, config.forensics_bench.updates = 2, 1
  config.forensics_bench.slices_of_each = 1
  return config


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('bench')
  config = resolve(bench_config())
  config_lib.validate(config)
  return bench.run(config, workdir), workdir


def test_every_kind_is_left_out_once():
  found = bench.folds(resolve(bench_config()))
  assert found == [['smoothed', 'whole'], ['lesion', 'noised']]


@pytest.mark.slow
@pytest.mark.xdist_group('forensics bench')
def test_every_method_is_tried_on_every_kind(results):
  rows = results[0]['rows']
  assert set(rows) == {*handmade.STATISTICS, bench.OURS}
  for row in rows.values():
    assert set(row['kinds']) == {'smoothed', 'lesion', 'noised'}
    for figure in row['all'].values():
      assert figure['low'] <= figure['value'] <= figure['high']
    assert 0 <= row['whole']['value'] <= 1
    assert row['untouched']['value'] <= 0.02
    assert set(row['series']) == {'found', 'f1', 'iou'}
    assert 0 <= row['series']['iou']['value'] <= row['series']['f1']['value'] <= 1


@pytest.mark.slow
@pytest.mark.xdist_group('forensics bench')
def test_the_table_has_a_row_for_every_method_and_kind(results):
  text = (results[1] / 'table.md').read_text()
  assert all(f'| {name} |' in text for name in (*handmade.STATISTICS, bench.OURS, 'lesion'))
  assert 'nan' not in text


def test_statistics_by_hand_find_what_was_smoothed():
  rng = np.random.default_rng(0)
  hu = (-850 + 25 * rng.normal(size=(1, 3, 256, 256))).astype(np.float32)
  hu[:, :, 100:140, 60:100] = -850
  present = np.ones((1, 3), bool)
  for name, statistic in handmade.STATISTICS.items():
    found = handmade.maps_of(statistic)(hu, present)[0]
    inside = found[27:33, 17:23]
    assert inside.mean() > 5 * found[:20, 30:].mean(), name


def test_intervals_are_students_over_patients():
  """Three patients with means 0.2, 0.4, 0.6: 0.4 and t(0.975, 2) = 4.303 times 0.2 / sqrt(3)."""
  rows = [
    {'patient': patient, 'x': value}
    for patient, values in {'a': [0.1, 0.3], 'b': [0.4], 'c': [0.6, 0.6, 0.6]}.items()
    for value in values
  ]
  found = bench.interval(rows, 'x')
  assert found['value'] == pytest.approx(0.4)
  assert found['high'] == pytest.approx(min(1, 0.4 + 4.30265 * 0.2 / np.sqrt(3)), abs=1e-4)


def test_quantiles_weigh_patients_alike():
  scores = [('a', float(i)) for i in range(100)] + [('b', 1000.0)]
  assert bench._quantile(scores, 0.49) < 100
  assert bench._quantile(scores, 0.51) == 1000.0


def test_the_network_is_compared_patient_by_patient():
  def rows(shift):
    return {
      'places': [
        {'patient': p, 'auroc': 0.5 + 0.1 * i + shift, 'kind': 'x'} for i, p in enumerate('abc')
      ]
    }

  found = bench.paired({'hand': rows(0.0), bench.OURS: rows(0.2)})
  assert found['best_by_hand'] == 'hand'
  assert found['value'] == pytest.approx(0.2)
  assert found['low'] == pytest.approx(0.2)


def test_a_map_that_knows_the_place_gets_full_marks():
  """An oracle: log odds high where the slice was edited."""
  hu = np.full((3, 128, 128), 30.0, np.float32)
  hu[:, 20:110, 10:55] = hu[:, 20:110, 73:118] = -850
  frames = [Frame(Header('x', series='x', patient='p', spacing_mm=(2.0, 2.0)), h) for h in hu]
  edited = trial.Edited(tuple(frames), 'x', 'p', (60.0, 30.0), np.zeros((128, 128), bool))

  def oracle(slabs, present):
    found = np.zeros((len(slabs), 32, 32))
    found[:, 15, 7] = 9.0
    return found

  slices = bench.Slices({'x': [edited]}, [], [(None, frames[0], None)], {}, [], [])
  (place,) = bench.measured(oracle, slices, 0)['places']
  assert (place['auroc'], place['pointed']) == (1.0, 1.0)
  assert place['mirrored'] < 0.6
  assert isinstance(next(examine.examine(oracle, frames)), examine.Examined)


def test_overlap_is_f1_and_iou_of_squares():
  """Three squares found, two of them right, of three changed: F1 2/3, IoU 1/2."""
  changed = np.zeros((1, 128, 128), bool)
  changed[0, 40:44, 40:52] = True
  logits = np.full((32, 32), -1.0)
  logits[10, 11:14] = 1.0
  lung = np.ones((32, 32), bool)
  each = examine.Examined(
    Header('x'), np.zeros((128, 128), np.float32), logits, lung, 1.0, (42, 46), np.zeros(5)
  )
  assert trial.overlap([each], changed, 0.0) == {'f1': pytest.approx(2 / 3), 'iou': 0.5}
  assert trial.overlap([each], np.zeros_like(changed), 5.0) == {'f1': 1.0, 'iou': 1.0}
