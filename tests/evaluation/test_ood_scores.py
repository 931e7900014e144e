"""Per-image scores against closed forms, SciPy and scikit-learn."""

import numpy as np
import pytest
import scipy.special
import sklearn.covariance
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ctfake_jax.evaluation import metrics, ood_scores
from ctfake_jax.types import UserError

LOGITS = hnp.arrays(np.float64, (4, 3), elements=st.floats(-30, 30, width=32))


def clusters(rng, n=400, dims=5, classes=3):
  labels = rng.integers(0, classes, n)
  spread = np.diag(np.linspace(0.5, 2, dims))
  return rng.normal(size=(n, dims)) @ spread + 6 * np.eye(classes, dims)[labels], labels


def test_max_softmax_and_energy_golden():
  logits = np.log([[6.0, 3.0, 1.0]])
  assert ood_scores.max_softmax(logits) == pytest.approx([0.4])
  assert ood_scores.energy(logits) == pytest.approx([-np.log(10)])


@settings(max_examples=25, deadline=None)
@given(LOGITS, st.floats(-5, 5))
def test_max_softmax_against_scipy(logits, shift):
  expected = 1 - scipy.special.softmax(logits, axis=1).max(axis=1)
  np.testing.assert_allclose(ood_scores.max_softmax(logits), expected, atol=1e-12)
  np.testing.assert_allclose(ood_scores.max_softmax(logits + shift), expected, atol=1e-12)
  np.testing.assert_allclose(
    ood_scores.energy(logits + shift), ood_scores.energy(logits) - shift, atol=1e-9
  )


def test_max_softmax_ranks_images_that_are_all_sure():
  sure = ood_scores.max_softmax(np.array([[100.0, 0], [200.0, 0], [300.0, 0]], np.float32))
  assert np.all(np.diff(sure) < 0)
  np.testing.assert_allclose(sure, np.exp([-100, -200, -300]))


def test_energy_survives_large_logits():
  assert ood_scores.energy(np.array([[1000.0, 1000.0]])) == pytest.approx([-1000 - np.log(2)])


def test_mahalanobis_golden():
  # Residuals (+-1, 0) and (0, +-1) about both means: covariance I / 2, which shrinkage keeps.
  cross = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
  features = np.concatenate([cross, cross + np.array([10, 0])])
  score = ood_scores.MahalanobisScore.fit(features, np.repeat([0, 1], 4))
  np.testing.assert_allclose(score.means, [[0, 0], [10, 0]])
  np.testing.assert_allclose(
    score(np.array([[0.0, 0], [3, 4], [9, 0], [5, 0]])), [0, 50, 2, 50], atol=1e-9
  )


def test_mahalanobis_against_scikit_learn():
  features, labels = clusters(np.random.default_rng(0))
  score = ood_scores.MahalanobisScore.fit(features, labels)
  residuals = features - score.means[labels]
  reference = sklearn.covariance.LedoitWolf(assume_centered=True).fit(residuals)
  expected = np.min([reference.mahalanobis(features - mean) for mean in score.means], axis=0)
  np.testing.assert_allclose(score(features), expected, rtol=1e-8)


def test_mahalanobis_does_not_mind_stretching_far_from_shrinkage():
  # Without much shrinkage the distance is blind to linear maps; a Euclidean one would not be.
  features, labels = clusters(np.random.default_rng(0), n=20_000)
  stretch = np.diag([1.0, 1.5, 2.0, 0.7, 1.0])
  plain = ood_scores.MahalanobisScore.fit(features, labels)(features[:50])
  stretched = ood_scores.MahalanobisScore.fit(features @ stretch, labels)(features[:50] @ stretch)
  np.testing.assert_allclose(stretched, plain, rtol=0.02)


def test_mahalanobis_with_more_features_than_images():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(20, 64))
  features[:, :8] = 0
  labels = np.repeat([0, 1], 10)
  far = ood_scores.MahalanobisScore.fit(features, labels)(features + 50)
  near = ood_scores.MahalanobisScore.fit(features, labels)(features)
  assert np.isfinite(far).all()
  assert far.min() > near.max()


@pytest.mark.parametrize('value', [1.0, np.nan])
def test_mahalanobis_refuses_features_without_distance(value):
  with pytest.raises(UserError, match='features'):
    ood_scores.MahalanobisScore.fit(np.full((6, 3), value), np.repeat([0, 1], 3))


def test_scores_tell_outliers():
  rng = np.random.default_rng(0)
  features, labels = clusters(rng)
  score = ood_scores.MahalanobisScore.fit(features, labels)
  odd = rng.normal(size=(100, 5)) - 4
  inside = ood_scores.image_scores(features[:, :3], features, score)
  outside = ood_scores.image_scores(odd[:, :3], odd, score)
  assert set(inside) == {'max_softmax', 'energy', 'mahalanobis'}
  for name in inside:
    assert inside[name].shape == (400,)
    assert metrics.auroc(outside[name], inside[name]) > 0.7, name
