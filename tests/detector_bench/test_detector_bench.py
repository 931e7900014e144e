"""The bench: comparisons against closed forms, named features, and a tiny table end to end."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import make_images
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.detector.dataset import DetectorDataset
from ctfake_jax.detector_bench import comparison, handcrafted_features, methods
from ctfake_jax.detector_bench import run as bench
from ctfake_jax.evaluation import metrics, ood_scores
from ctfake_jax.types import UserError


def test_every_method_of_the_config_is_known():
  assert set(config_lib.BENCH_METHODS) == {methods.FALL, *methods.METHODS}


def three_cells(shift, seed=0):
  """Scores in cells that share their originals, two images a group."""
  rng = np.random.default_rng(seed)
  fake = np.arange(120) < 60
  reals = np.arange(60) // 2
  return {
    f'unit{i}': comparison.Scores(
      rng.normal(size=120) + shift * fake,
      fake,
      np.concatenate([1000 * (i + 1) + np.arange(60), reals]),
    )
    for i in range(3)
  }


@pytest.mark.slow
def test_a_better_method_is_ahead_and_one_is_not_ahead_of_itself():
  good, bad = three_cells(2.0), three_cells(0.5, seed=1)
  found = comparison.mean_auroc_difference(good, bad, 0)
  expected = np.mean(
    [
      metrics.auroc(good[u].scores[good[u].fake], good[u].scores[~good[u].fake])
      - metrics.auroc(bad[u].scores[bad[u].fake], bad[u].scores[~bad[u].fake])
      for u in good
    ]
  )
  assert found['value'] == pytest.approx(expected)
  assert 0 < found['ci95'][0] < found['value'] < found['ci95'][1]
  assert comparison.mean_auroc_difference(good, good, 0) == {'value': 0, 'ci95': [0, 0]}


@given(seed=st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_delongs_placements_average_to_the_auroc(seed):
  rng = np.random.default_rng(seed)
  fake = rng.random(60) < 0.4
  fake[:2] = True, False
  found = rng.integers(0, 8, 60) + fake
  on_fakes, on_reals = comparison._placements(found, fake)
  expected = metrics.auroc(found[fake], found[~fake])
  assert on_fakes.mean() == pytest.approx(expected)
  assert on_reals.mean() == pytest.approx(expected)


def test_delong_holds_its_level_and_sees_a_difference():
  rng, rejected = np.random.default_rng(0), 0
  fake = np.arange(200) < 80
  for _ in range(200):
    a, b = rng.normal(size=(2, 200)) + fake
    rejected += comparison.delong(a, b, fake) < 0.05
  assert rejected <= 20
  better = rng.normal(size=200) + 3 * fake
  assert comparison.delong(better, rng.normal(size=200), fake) < 1e-6
  assert comparison.delong(better, better, fake) == 1.0


def test_neighbours_by_brute_force():
  rng = np.random.default_rng(0)
  train, new = rng.normal(size=(30, 5)), rng.normal(size=(7, 5))
  unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, new)]
  expected = np.sort(cdist(unit[1], unit[0]), 1)[:, 9]
  np.testing.assert_allclose(ood_scores.NeighboursScore.fit(train)(new), expected)


def test_named_features_are_as_many_as_their_names_and_see_blur():
  images = make_images(6, size=32).images
  found = handcrafted_features.named_features(images)
  assert found.shape == (6, len(handcrafted_features.NAMES))
  assert np.isfinite(found).all()
  flat = handcrafted_features.named_features(0 * images)
  column = handcrafted_features.NAMES.index('residual1_deviation')
  assert (flat[:, column] == 0).all()
  assert (found[:, column] > 0).all()


def test_of_white_noise_the_spectrum_is_flat_and_neighbours_are_anticorrelated():
  noise = np.random.default_rng(0).normal(0, 0.3, (40, 32, 32, 1)).clip(-1, 1).astype(np.float32)
  found = dict(zip(handcrafted_features.NAMES, handcrafted_features.named_features(noise).mean(0)))
  rings = [found[f'spectrum_{i}'] for i in range(2, 14)]
  assert np.ptp(rings) < 0.25
  # x - (1 2 1)/4 (1 2 1)/4 * x: neighbours' covariance over variance, by hand.
  kernel = -np.outer([1, 2, 1], [1, 2, 1]) / 16
  kernel[1, 1] += 1
  lag = (kernel[1:] * kernel[:-1]).sum() / (kernel**2).sum()
  assert found['residual1_next_below'] == pytest.approx(lag, abs=0.02)


@pytest.mark.slow
def test_a_tiny_table_end_to_end(tmp_path):
  config = config_lib.defaults()
  config.task = 'detector_bench'
  config.phantom.patients, config.phantom.slices_per_patient = 60, 2
  config.detection.families = ('blended', 'copied')
  config.detection.false_alarm_rate, config.detection.train_fakes_per_family = 0.1, 100
  config.detection.width, config.detection.updates = 4, 20
  config.detection.eval_every, config.detection.batch_size = 20, 16
  config.model.cnn.widths, config.train.epochs, config.train.batch_size = (4,), 1, 16
  config.bench.methods = ('fall_of_50', 'neighbours', 'svm', 'reservoir', 'cnn', 'detector')
  config.bench.network_updates, config.bench.top_two_seeds = 20, 1
  config_lib.validate(resolve(config))
  results = bench.run(resolve(config), tmp_path)
  assert list(results['rows']) == list(config.bench.methods)
  for name, row in results['rows'].items():
    assert set(row['cells']) == {'blended', 'copied'}
    for cell in row['cells'].values():
      assert 0 <= cell['auroc'] <= 1
      assert (name == 'fall_of_50') != ('detection_ci95' in cell)
  assert results['rows']['cnn']['cells']['copied']['parameters'] > 0
  assert results['rows']['svm']['cells']['copied']['kept'] is None
  assert len(results['winners']['names']) == 2
  assert json.loads((tmp_path / 'results.json').read_text())['units'] == ['blended', 'copied']
  page = (tmp_path / 'report.html').read_text()
  assert 'Support vector machine' in page
  cell = tmp_path / 'cells' / 'svm' / 'copied' / 'seed0' / 'results.json'
  before = cell.stat().st_mtime_ns
  bench.run(resolve(config), tmp_path)
  assert cell.stat().st_mtime_ns == before


def dataset_of(images, families):
  images, families, count = images.astype(np.float32), np.array(families, object), len(images)
  stored = np.empty(count, object)
  stored[:] = [lambda levels=(image[..., 0] + 1) / 2: levels for image in images]
  return DetectorDataset(
    images=images,
    families=families,
    groups=np.arange(count),
    labels=np.zeros(count, int),
    masks=np.zeros(images.shape[:3], bool),
    file_facts=np.full((count, 7), np.nan),
    stored=stored,
  )


def test_fakes_called_so_are_kept_but_for_those_outside():
  judged = np.array(['fake', 'fake', 'real', 'unsure', 'fake'], object)
  outside = np.array([True, False, True, False, False])
  assert bench._kept(judged, outside) == pytest.approx(2 / 3)
  assert bench._kept(judged[2:4], outside[2:4]) is None


def test_the_detectors_domain_is_learnt_without_the_held_out_generator(tmp_path):
  """Bright fakes lie outside of a domain that never saw their kind, whatever the scores say."""
  images, rng = make_images(160, size=32).images, np.random.default_rng(0)
  seen = {
    'train': dataset_of(images[:80], ['real'] * 40 + ['blended'] * 40),
    'validation': dataset_of(images[80:110], ['real'] * 15 + ['blended'] * 15),
    'calibration': dataset_of(images[80:110], ['real'] * 15 + ['blended'] * 15),
    'conformal': dataset_of(images[110:130], ['real'] * 20),
  }
  flat = np.full((10, 32, 32, 1), 0.9, np.float32) + 0.01 * rng.normal(size=(10, 32, 32, 1))
  test = dataset_of(np.concatenate([images[130:150], flat]), ['real'] * 20 + ['vae'] * 10)
  config = config_lib.defaults()
  config.detection.false_alarm_rate = 0.1
  brightness = methods.FittedMethod(lambda x: x.mean((1, 2, 3)).astype(float), None)
  for within, kept, called in ((False, None, 1.0), (True, 0.0, 0.0)):
    scorer = dataclasses.replace(brightness, within_domain=within)
    cell = bench._judge(resolve(config), scorer, seen, test, tmp_path)
    assert (cell['kept'], cell['called_fake']) == (kept, called)


def test_what_the_bench_cannot_do_is_refused_before_any_training(tmp_path):
  config = config_lib.defaults()
  config.task = 'detector_bench'
  config.detection.families = ('vae', 'vae_reconstruction')
  with pytest.raises(UserError, match='at least two'):
    bench.run(resolve(config), tmp_path)
  config.detection.families = ('blended', 'copied')
  config.phantom.patients, config.phantom.slices_per_patient = 30, 1
  with pytest.raises(UserError, match='the threshold needs 99'):
    bench.run(resolve(config), tmp_path)
  assert not (tmp_path / 'config.json').exists()
  config.detection.fakes_folder = str(tmp_path)
  with pytest.raises(UserError, match='makes its own fakes'):
    config_lib.validate(resolve(config))
