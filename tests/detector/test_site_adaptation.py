"""What another site's reals are judged by, and what it promises where fakes are among them."""

import numpy as np
import pytest
import scipy.stats

from ctfake_jax.detector import site_adaptation
from ctfake_jax.detector.discriminant import ClassStatistics, for_site
from ctfake_jax.models.patch_net import distance_towards_fakes
from ctfake_jax.types import UserError

FAMILIES, FEATURES = 3, 20
LEARNT = ClassStatistics(3 * np.eye(FAMILIES, FEATURES), np.eye(FEATURES))
NO_SHIFTS = np.zeros((0, FEATURES))


def of_the_making(seed, count=400):
  return np.random.default_rng(seed).normal(size=(count, FEATURES))


def of_the_site(seed, count=99):
  """Elsewhere in feature space, and twice as spread."""
  return 5 + 2 * np.random.default_rng(1000 + seed).normal(size=(count, FEATURES))


def test_left_out_scores_are_those_against_the_others_without_outliers():
  rng = np.random.default_rng(0)
  features, shifts = rng.normal(size=(9, 5)), rng.normal(size=(2, 5))
  class_statistics = ClassStatistics(rng.normal(size=(3, 5)), np.eye(5))
  outliers, folds = np.arange(9) == 4, np.arange(9) % site_adaptation.FOLDS
  found = site_adaptation.left_out_scores(class_statistics, features, outliers, shifts)
  assert found.shape == (9, 3)
  for i in range(9):
    others = for_site(class_statistics, features[~outliers & (folds != folds[i])])
    for j, shift in enumerate([np.zeros(5), *shifts]):
      alone = distance_towards_fakes((features[i] + shift)[None], *others)
      np.testing.assert_allclose(found[i, j], alone[0], rtol=1e-4)
  with pytest.raises(UserError, match='there must be two'):
    site_adaptation.left_out_scores(class_statistics, features[:1], outliers[:1], shifts)


def test_planted_fakes_are_outliers_and_nothing_is_made_of_them():
  clean = of_the_site(0)
  planted = clean.copy()
  planted[:5, 0] += 15
  found = site_adaptation.fit_site(LEARNT, planted, NO_SHIFTS, seed=0)
  assert found.outliers[:5].all()
  assert found.outliers.mean() < 0.15
  np.testing.assert_array_equal(found.centre, planted[~found.outliers].mean(0))
  assert (found.scores[:5] > np.sort(found.scores[5:])[-1]).all()
  unmasked = distance_towards_fakes(planted, *for_site(LEARNT, planted))
  assert found.scores[:5].mean() > 1.2 * unmasked[:5].mean()


def test_outliers_lie_on_the_side_of_fakes():
  reals = of_the_site(0)
  reals[:5, :FAMILIES] -= 15
  assert not site_adaptation.outliers_towards_fakes(LEARNT, reals, seed=0)[:5].any()


def test_few_or_equal_reals_have_no_outliers():
  assert not site_adaptation.outliers_towards_fakes(LEARNT, np.ones((30, FEATURES)), seed=0).any()
  reals = of_the_site(0, 2 * FAMILIES)
  reals[0, 0] += 100
  assert not site_adaptation.outliers_towards_fakes(LEARNT, reals, seed=0).any()


def test_location_and_scale_are_moved_by_neither_tail():
  scores = np.random.default_rng(0).normal(3, 2, 20_000)
  location, scale = site_adaptation.location_and_scale(scores)
  assert location == pytest.approx(3, abs=0.2)
  assert scale == pytest.approx(2, rel=0.05)
  spoilt = scores.copy()
  spoilt[:4000] = 1e6
  np.testing.assert_allclose(
    site_adaptation.location_and_scale(spoilt), (location, scale), rtol=0.1
  )
  assert site_adaptation.location_and_scale(np.full(5, 7.0)) == (7.0, site_adaptation.LEAST_SCALE)
  np.testing.assert_allclose(
    site_adaptation.location_and_scale(1e-6 * scores), [1e-6 * location, 1e-6 * scale]
  )


def test_the_threshold_is_the_usual_one_moved_and_stretched():
  reference_null = np.random.default_rng(0).normal(size=20_000)
  scores = 10 + 3 * np.random.default_rng(1).normal(size=5000)
  found = site_adaptation.threshold(scores, reference_null, 0.01)
  assert found.value == pytest.approx(10 + 3 * scipy.stats.norm.ppf(0.99), rel=0.02)
  assert site_adaptation.threshold(scores, 2 * reference_null, 0.01).value > found.value
  assert (found.groups, found.false_alarm_rate) == (5000, 0.01)
  assert 'approximate' in found.guarantee


@pytest.mark.parametrize('above', [0, 3, 20])
def test_the_bound_is_exact_for_a_share(above):
  """Clopper & Pearson: with that rate so few or fewer exceed it in one of twenty samples."""
  scores = np.concatenate([np.linspace(-1, 1, 99 - above), np.full(above, 1e3)])
  reference_null = np.random.default_rng(0).normal(0, 1.1, size=5000)
  bound = site_adaptation.threshold(scores, reference_null, 0.01).rate_bound
  assert scipy.stats.binom.cdf(above, 99, bound) == pytest.approx(0.05)
  # All above: nothing is known.
  assert site_adaptation.threshold(np.arange(2.0), reference_null - 100, 0.01).rate_bound == 1


@pytest.mark.slow
def test_a_site_gets_about_the_rate_that_was_asked_for():
  reference_null = site_adaptation.reference_null_scores(LEARNT, of_the_making(0), 99, seed=0)
  # A quarter of the making's at a time.
  assert len(reference_null) == 100 * site_adaptation.RESAMPLINGS
  tails = site_adaptation.usual_tails(reference_null, len(of_the_site(0)), seed=0)
  for planted in (0, 5):
    alarms, found, noticed = zip(
      *(judged(seed, planted, reference_null, tails) for seed in range(40)), strict=True
    )
    assert 0.002 < np.mean(alarms) < 0.02
    assert np.mean(found) > 0.95
    assert np.mean(noticed) >= 0.95 if planted else np.mean(noticed) <= 0.05


def judged(seed, planted, reference_null, tails):
  """Of a site with so many planted fakes: false alarms, fakes found, whether they were noticed."""
  reals, fresh = of_the_site(seed), of_the_site(seed + 100, 1000)
  reals[:planted, 1] += 15
  own = site_adaptation.fit_site(LEARNT, reals, NO_SHIFTS, seed)
  threshold = site_adaptation.threshold(own.scores, reference_null, 0.01).value
  fakes = fresh + 15 * np.eye(fresh.shape[1])[1]
  alarms, found = (
    np.mean(np.asarray(distance_towards_fakes(x, own.centre, own.directions)) > threshold)
    for x in (fresh, fakes)
  )
  return alarms, found, site_adaptation.outlier_p_value(own.scores, tails) < 0.01


def test_few_reals_of_the_making_are_rehearsed_by_halves():
  reference_null = site_adaptation.reference_null_scores(LEARNT, of_the_making(0, 30), 99, seed=0)
  assert reference_null.shape == (15 * site_adaptation.RESAMPLINGS,)
  assert np.isfinite(reference_null).all()
