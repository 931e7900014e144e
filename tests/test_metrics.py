"""Accuracies, intervals and rank metrics, against closed forms and scikit-learn."""

import json

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from ctfake_jax import metrics
from ctfake_jax.types import UserError

CLASSES = 3
NAMES = ('normal', 'mass', 'ground_glass')


def report(labels, probabilities, groups=None, names=NAMES):
  labels = np.asarray(labels)
  groups = np.arange(len(labels)) if groups is None else groups
  return metrics.classification_report(
    labels, np.asarray(probabilities), groups=groups, class_names=names, seed=0
  )


def test_report_against_scikit_learn():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, CLASSES, 90)
  probabilities = rng.dirichlet(np.ones(CLASSES), 90)
  probabilities[np.arange(90), labels] += 0.4
  probabilities /= probabilities.sum(axis=1, keepdims=True)
  predicted = probabilities.argmax(1)
  got = report(labels, probabilities, groups=np.arange(90) // 3)
  assert got['accuracy'] == pytest.approx(np.mean(predicted == labels))
  assert got['n'] == 90
  assert got['groups'] == 30
  assert got['balanced_accuracy'] == pytest.approx(
    sklearn.metrics.balanced_accuracy_score(labels, predicted)
  )
  assert got['auroc'] == pytest.approx(
    sklearn.metrics.roc_auc_score(labels, probabilities, multi_class='ovr')
  )
  recalls = sklearn.metrics.recall_score(labels, predicted, average=None)
  assert list(got['per_class'].values()) == pytest.approx(list(recalls))
  assert got['ci95'][0] < got['accuracy'] < got['ci95'][1]
  assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_report_of_two_classes_ranks_by_the_second():
  # One of the four (positive, negative) pairs is in the wrong order.
  got = report([0, 0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.1, 0.9]], names=('a', 'b'))
  assert got['auroc'] == pytest.approx(0.75)


def test_report_of_one_class_has_no_auroc():
  got = report([1, 1], [[0.1, 0.8, 0.1], [0.6, 0.3, 0.1]])
  assert got['auroc'] is None
  assert got['per_class'] == {'normal': None, 'mass': 0.5, 'ground_glass': None}
  assert got['balanced_accuracy'] == 0.5
  json.dumps(got, allow_nan=False)


@pytest.mark.parametrize(
  ('labels', 'probabilities', 'message'),
  [
    ([], np.zeros((0, 3)), 'no image'),
    ([0, 1], np.full((2, 2), 0.5), 'do not fit'),
    ([0, -1], np.full((2, 3), 1 / 3), 'labels'),
    ([0, 3], np.full((2, 3), 1 / 3), 'labels'),
    ([0, 1], [[1, 0, 0], [np.nan, 0, 0]], '1 of 2 rows'),
  ],
)
def test_report_refuses(labels, probabilities, message):
  with pytest.raises(UserError, match=message):
    report(labels, probabilities)


def test_bootstrap_of_single_images_is_the_binomial():
  correct = np.arange(200) < 170
  interval = metrics.accuracy_interval(correct, np.arange(200), seed=0)
  expected = scipy.stats.binom.ppf([0.025, 0.975], 200, 0.85) / 200
  # One image more or less: the percentiles themselves are drawn.
  np.testing.assert_allclose(interval, expected, atol=0.0051)


def test_bootstrap_by_kinds_is_the_bootstrap_by_groups():
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 6, 40)
  sums = rng.binomial(sizes, 0.8)
  drawn = rng.integers(0, 40, (20_000, 40))
  by_groups = sums[drawn].sum(1) / sizes[drawn].sum(1)
  by_kinds = metrics.bootstrap_ratio(sums, sizes, seed=1, resamples=20_000)
  levels = [0.025, 0.25, 0.5, 0.75, 0.975]
  np.testing.assert_allclose(
    np.quantile(by_kinds, levels), np.quantile(by_groups, levels), atol=0.004
  )


def test_copies_within_a_group_add_nothing():
  correct = np.arange(60) < 48
  single = metrics.accuracy_interval(correct, np.arange(60), seed=3)
  copies = metrics.accuracy_interval(np.repeat(correct, 5), np.repeat(np.arange(60), 5), seed=3)
  assert copies == pytest.approx(single)


def test_perfect_accuracy_keeps_its_doubt():
  # Clopper & Pearson with all of n right: the n-th root of 0.025. 80 images, 20 patients.
  low, high = metrics.accuracy_interval(np.ones(80, bool), np.arange(80) // 4, seed=0)
  assert (low, high) == pytest.approx((0.025 ** (1 / 20), 1.0))
  assert metrics.accuracy_interval(np.zeros(80, bool), np.arange(80), seed=0) == pytest.approx(
    [0.0, 1 - 0.025 ** (1 / 80)]
  )


def test_one_group_is_no_certainty():
  low, high = metrics.accuracy_interval(np.arange(10) < 5, np.zeros(10), seed=0)
  assert high - low > 0.8


@pytest.mark.parametrize(('right', 'n'), [(0, 7), (3, 7), (7, 7), (99, 100)])
def test_clopper_pearson_against_scipy(right, n):
  expected = scipy.stats.binomtest(right, n).proportion_ci(0.95, 'exact')
  assert metrics.clopper_pearson(right, n) == pytest.approx([expected.low, expected.high])


def test_intervals_cover_under_clusters():
  # Beta-binomial slices: 60 patients x 4, accuracy 0.9, correlation 0.5 within a patient.
  rng = np.random.default_rng(0)
  groups = np.repeat(np.arange(60), 4)
  covered, covered_blind = 0, 0
  for _ in range(400):
    correct = rng.random(240) < np.repeat(rng.beta(0.9, 0.1, 60), 4)
    low, high = metrics.accuracy_interval(correct, groups, seed=0)
    covered += low <= 0.9 <= high
    low, high = metrics.accuracy_interval(correct, np.arange(240), seed=0)
    covered_blind += low <= 0.9 <= high
  # Percentiles at 60 skewed groups cover a little less than 95 %; 0.90 allows for the draws.
  assert covered / 400 >= 0.90
  assert covered_blind / 400 < 0.85


def test_auroc_counts_ties_half():
  assert metrics.auroc(np.array([2.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(3.5 / 4)


def test_detection_at_golden():
  negatives = np.arange(100.0)
  positives = np.array([96.0, 97.5, 98.5, 200.0])
  assert metrics.detection_at(0.01, positives, negatives) == 0.5
  assert metrics.detection_at(0.02, positives, negatives) == 0.75
  assert metrics.detection_at(1.0, positives, negatives) == 1.0


@settings(max_examples=30, deadline=None)
@given(
  st.lists(st.integers(0, 9), min_size=1, max_size=60),
  st.sampled_from([0.0, 0.01, 0.1, 0.29, 0.5]),
)
def test_detection_keeps_the_false_alarms(scores, rate):
  # Negatives judged as if they were positives are the false alarms themselves.
  assert metrics.detection_at(rate, np.array(scores), np.array(scores)) <= rate + 1e-9
