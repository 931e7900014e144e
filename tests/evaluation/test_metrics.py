"""Accuracies, intervals and rank metrics, against closed forms and scikit-learn."""

import json

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from patients import SIZES, each_once, group_sizes, right_answers

from ctfake_jax.evaluation import metrics
from ctfake_jax.types import UserError

CLASSES = 3
NAMES = ('normal', 'mass', 'ground_glass')


def report(labels, probabilities, groups=None, names=NAMES):
  labels = np.asarray(labels, int)
  groups = np.arange(len(labels)) if groups is None else groups
  return metrics.classification_report(
    labels, np.asarray(probabilities), groups=groups, class_names=names
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


def test_single_images_are_clopper_and_pearson():
  correct = np.arange(200) < 170
  got = metrics.accuracy_interval(correct, np.arange(200))
  expected = scipy.stats.binomtest(170, 200).proportion_ci(0.95, 'exact')
  assert got == pytest.approx([expected.low, expected.high])


def test_copies_within_a_group_add_nothing():
  correct = np.arange(60) < 48
  single = metrics.accuracy_interval(correct, np.arange(60))
  copies = metrics.accuracy_interval(np.repeat(correct, 5), np.repeat(np.arange(60), 5))
  # But for the quantile of t with 299 instead of 59 degrees of freedom, 1.968 against 2.001.
  assert copies == pytest.approx(single, abs=0.005)
  assert copies[1] - copies[0] >= single[1] - single[0]


def test_perfect_accuracy_keeps_its_doubt():
  # Clopper & Pearson with all of n right: the n-th root of 0.025. 80 images, 20 patients.
  low, high = metrics.accuracy_interval(np.ones(80, bool), np.arange(80) // 4)
  assert (low, high) == pytest.approx((0.025 ** (1 / 20), 1.0))
  assert metrics.accuracy_interval(np.zeros(80, bool), np.arange(80)) == pytest.approx(
    [0.0, 1 - 0.025 ** (1 / 80)]
  )


def test_one_group_is_no_certainty():
  low, high = metrics.accuracy_interval(np.arange(10) < 5, np.zeros(10))
  assert high - low > 0.8


@pytest.mark.parametrize(('right', 'n'), [(0, 7), (3, 7), (7, 7), (99, 100)])
def test_clopper_pearson_against_scipy(right, n):
  expected = scipy.stats.binomtest(right, n).proportion_ci(0.95, 'exact')
  assert metrics.clopper_pearson(right, n) == pytest.approx([expected.low, expected.high])


@given(
  st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1)), min_size=1, max_size=30),
  st.sampled_from([0.9, 0.95, 0.99]),
)
@settings(max_examples=100, deadline=None)
def test_an_interval_holds_its_share_and_grows_with_confidence(groups, confidence):
  sizes = np.array([size for size, _ in groups])
  right = np.array([round(size * share) for size, share in groups])
  low, high = metrics.share_interval(right, sizes, confidence)
  assert 0 <= low <= right.sum() / sizes.sum() <= high <= 1
  wider = metrics.share_interval(right, sizes, (1 + confidence) / 2)
  assert wider[0] <= low + 1e-9
  assert wider[1] >= high - 1e-9
  # What is right of one is wrong of the other. (The grid of the posterior leaves a little.)
  mirrored = metrics.share_interval(sizes - right, sizes, confidence)
  assert mirrored == pytest.approx([1 - high, 1 - low], abs=0.002)


def test_the_posterior_against_quadrature():
  # 20 patients of 4, of whom 17 are all right: the integral over both parameters, by a fine rule.
  right, sizes = np.array([4] * 17 + [3, 1, 2]), np.full(20, 4)
  got = metrics._beta_binomial_interval(right, sizes, 0.95, 40.0)
  shares, correlations = (np.arange(1500) + 0.5) / 1500, (np.arange(300) + 0.5) / 300
  correlations = scipy.special.betaincinv(1 / 3, 1 / 3, correlations)
  strength = (1 - correlations) / correlations
  a, b = shares[:, None] * strength, (1 - shares[:, None]) * strength
  log = scipy.stats.beta.logpdf(shares, 0.5, 0.5)[:, None]
  for k in right:
    log = log + scipy.stats.betabinom.logpmf(k, 4, a, b)
  mass = np.exp(log - log.max()).sum(1)
  expected = np.interp([0.025, 0.975], np.cumsum(mass) / mass.sum(), shares + 0.5 / 1500)
  assert got == pytest.approx(expected, abs=0.001)


def korn_graubard(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """95 % intervals f64[2, r] as published (1998): all right or wrong, images are independent."""
  n, groups = sizes.sum(), len(sizes)
  share = sums.sum(1) / n
  residuals = sums - share[:, None] * sizes
  variance = groups / (groups - 1) * (residuals**2).sum(1) / n**2
  t = scipy.stats.t.ppf(0.975, n - 1) / scipy.stats.t.ppf(0.975, groups - 1)
  with np.errstate(all='ignore'):
    effective = np.minimum(n, share * (1 - share) / variance * t**2)
  effective = np.where((share == 0) | (share == 1), n, effective)
  right, wrong = share * effective, (1 - share) * effective
  low = scipy.stats.beta.ppf(0.025, right, wrong + 1)
  high = scipy.stats.beta.ppf(0.975, right + 1, wrong)
  return np.stack([np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=1.0)])


def simulated(accuracy, correlation, patients, kind, repetitions):
  """(coverage, mean width) of our 95 % interval, and of Korn & Graubard's, by simulation."""
  sizes = group_sizes(kind, patients)
  sums = right_answers(np.random.default_rng(0), accuracy, correlation, sizes, repetitions)
  kinds, which = each_once(sums, sizes)
  ours = np.array([metrics.share_interval(right, sizes) for right in kinds])[which].T
  return [
    (np.mean((low <= accuracy) & (accuracy <= high)), np.mean(high - low))
    for low, high in (ours, korn_graubard(sums, sizes))
  ]


def lowest(share: float, repetitions: int) -> float:
  """What a rate of `share` stays above in all but one of 1,000 simulations."""
  return scipy.stats.binom.ppf(0.001, repetitions, share) / repetitions


@pytest.mark.parametrize(
  ('accuracy', 'correlation', 'patients', 'kind', 'wider'),
  [
    (0.95, 0.6, 20, 'equal', 1.2),
    (0.97, 0.3, 60, 'equal', 1.15),
    (0.9, 0.6, 20, 'one large', 1.15),
    (0.95, 0.6, 20, 'many', 1.35),
    (0.8, 0.1, 60, 'skewed', 1.15),
  ],
)
def test_intervals_cover_what_they_say(accuracy, correlation, patients, kind, wider):
  (covered, width), (_, published) = simulated(accuracy, correlation, patients, kind, 1500)
  assert covered >= lowest(0.94, 1500)
  assert width <= wider * published


def test_korn_and_graubard_alone_would_not_do():
  _, (covered, _) = simulated(0.95, 0.6, 20, 'equal', 1500)
  assert covered == pytest.approx(0.835, abs=0.03)


@pytest.mark.parametrize('kind', ['equal', 'geometric'])
def test_intervals_cover_where_patients_are_all_right_or_all_wrong(kind):
  # A law that beta-binomial groups reach only at correlation 1.
  sizes, rng = group_sizes(kind, 60), np.random.default_rng(0)
  sums = sizes * (rng.random((800, 60)) < 0.9)
  intervals = np.array([metrics.share_interval(right, sizes) for right in sums]).T
  assert np.mean((intervals[0] <= 0.9) & (intervals[1] >= 0.9)) >= lowest(0.94, 800)


@pytest.mark.slow
@pytest.mark.parametrize('kind', SIZES)
@pytest.mark.parametrize('patients', [20, 60])
def test_intervals_cover_what_they_say_throughout(patients, kind):
  for accuracy, correlation in ((0.99, 0.6), (0.97, 0.6), (0.95, 0.3), (0.9, 0.6), (0.7, 0.1)):
    (covered, _), _ = simulated(accuracy, correlation, patients, kind, 1000)
    assert covered >= lowest(0.94, 1000), (accuracy, correlation)


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
  scores = np.array(scores, float)
  assert metrics.detection_at(rate, scores, scores) <= rate + 1e-9
