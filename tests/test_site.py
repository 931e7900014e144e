"""What another site's reals are judged by, and what it promises where fakes are among them."""

import numpy as np
import pytest
import scipy.stats

from ctfake_jax.detector import site
from ctfake_jax.detector.discriminant import Learnt, for_site
from ctfake_jax.models.patch_net import distance_towards_fakes
from ctfake_jax.types import UserError

FAMILIES, FEATURES = 3, 20
LEARNT = Learnt(3 * np.eye(FAMILIES, FEATURES), np.eye(FEATURES))
NO_SHIFTS = np.zeros((0, FEATURES))


def of_the_making(seed, count=400):
  return np.random.default_rng(seed).normal(size=(count, FEATURES))


def of_the_site(seed, count=99):
  """Elsewhere in feature space, and twice as spread."""
  return 5 + 2 * np.random.default_rng(1000 + seed).normal(size=(count, FEATURES))


def test_left_out_scores_are_those_against_the_others_without_suspects():
  rng = np.random.default_rng(0)
  features, shifts = rng.normal(size=(9, 5)), rng.normal(size=(2, 5))
  learnt = Learnt(rng.normal(size=(3, 5)), np.eye(5))
  suspects, folds = np.arange(9) == 4, np.arange(9) % site.FOLDS
  found = site.left_out_scores(learnt, features, suspects, shifts)
  assert found.shape == (9, 3)
  for i in range(9):
    others = for_site(learnt, features[~suspects & (folds != folds[i])])
    for j, shift in enumerate([np.zeros(5), *shifts]):
      alone = distance_towards_fakes((features[i] + shift)[None], *others)
      np.testing.assert_allclose(found[i, j], alone[0], rtol=1e-4)
  with pytest.raises(UserError, match='there must be two'):
    site.left_out_scores(learnt, features[:1], suspects[:1], shifts)


def test_planted_fakes_are_suspects_and_nothing_is_made_of_them():
  clean = of_the_site(0)
  planted = clean.copy()
  planted[:5, 0] += 15
  found = site.fit(LEARNT, planted, NO_SHIFTS)
  assert found.suspects[:5].all()
  assert found.suspects.sum() == round(site.SUSPECTS * 99)
  np.testing.assert_array_equal(found.centre, planted[~found.suspects].mean(0))
  assert (found.scores[:5] > np.sort(found.scores[5:])[-1]).all()
  unmasked = distance_towards_fakes(planted, *for_site(LEARNT, planted))
  assert found.scores[:5].mean() > 1.2 * unmasked[:5].mean()


def test_the_middle_is_moved_by_neither_tail():
  scores = np.random.default_rng(0).normal(3, 2, 1000)
  centre, scale = site.middle(scores)
  # Of a normal distribution: mean and deviation of its quantiles.
  expected = scipy.stats.norm.ppf(site.MIDDLE)
  assert centre == pytest.approx(3, abs=0.2)
  assert scale == pytest.approx(2 * expected.std(), rel=0.05)
  spoilt = scores.copy()
  spoilt[np.argsort(scores)[-20:]] = 1e6
  np.testing.assert_allclose(site.middle(spoilt), (centre, scale))
  assert site.middle(np.full(5, 7.0)) == (7.0, 1e-9)


def test_what_lies_far_out_beyond_what_is_usual_counts_nowhere():
  rng = np.random.default_rng(0)
  usual = rng.normal(size=5000) / scipy.stats.norm.ppf(site.MIDDLE).std()
  clean = scipy.stats.norm.ppf((np.arange(95) + 0.5) / 95)
  assert site._surplus(clean, usual) == 0
  assert site.middle(clean, usual) == site.middle(clean)
  planted = np.concatenate([clean, 8 + np.arange(8.0)])
  # Three to five of clean scores lie as far out, five of a hundred may.
  assert 6 <= site._surplus(planted, usual) <= 8
  np.testing.assert_allclose(site.middle(planted, usual), site.middle(clean), atol=0.05)
  assert site.middle(planted)[1] > 1.1 * site.middle(clean)[1]
  assert site.threshold(planted, usual, 0.01).value == pytest.approx(
    site.threshold(clean, usual, 0.01).value, rel=0.05
  )


def test_the_threshold_is_the_usual_one_moved_and_stretched():
  scale = scipy.stats.norm.ppf(site.MIDDLE).std()
  usual = np.random.default_rng(0).normal(size=20_000) / scale
  scores = 10 + 3 * np.random.default_rng(1).normal(size=5000)
  found = site.threshold(scores, usual, 0.01)
  assert found.value == pytest.approx(10 + 3 * scipy.stats.norm.ppf(0.99), rel=0.02)
  assert site.threshold(scores, 2 * usual, 0.01).value > found.value
  assert (found.groups, found.false_alarm_rate) == (5000, 0.01)
  assert 'approximate' in found.guarantee


@pytest.mark.parametrize('above', [0, 3, 20])
def test_the_bound_is_exact_for_a_share(above):
  """Clopper & Pearson: with that rate so few or fewer exceed it in one of twenty samples."""
  scores = np.concatenate([np.linspace(-1, 1, 99 - above), np.full(above, 1e3)])
  usual = np.random.default_rng(0).normal(0, 1.1, size=5000)
  bound = site.threshold(scores, usual, 0.01).rate_bound
  assert scipy.stats.binom.cdf(above, 99, bound) == pytest.approx(0.05)
  # All above: nothing is known.
  assert site.threshold(np.arange(2.0), usual - 100, 0.01).rate_bound == 1


@pytest.mark.slow
@pytest.mark.parametrize('planted', [0, 5])
def test_a_site_gets_about_the_rate_that_was_asked_for(planted):
  usual = site.usual_scores(LEARNT, of_the_making(0), 99, seed=0)
  assert len(usual) == 100 * site.REHEARSALS  # a quarter of the making's at a time
  alarms, found, noticed = [], [], []
  for seed in range(40):
    reals = of_the_site(seed)
    reals[:planted, 1] += 15
    own = site.fit(LEARNT, reals, NO_SHIFTS, usual)
    threshold = site.threshold(own.scores, usual, 0.01).value
    fresh = of_the_site(seed + 100, 1000)
    scores = distance_towards_fakes(fresh, own.centre, own.directions)
    alarms.append((scores > threshold).mean())
    fresh[:, 1] += 15
    found.append((distance_towards_fakes(fresh, own.centre, own.directions) > threshold).mean())
    noticed.append(site.apart(own.scores, usual, seed) < 0.01)
  assert 0.002 < np.mean(alarms) < 0.02
  assert np.mean(found) > 0.95
  assert np.mean(noticed) >= 0.95 if planted else np.mean(noticed) <= 0.05


def test_few_reals_of_the_making_are_rehearsed_by_halves():
  usual = site.usual_scores(LEARNT, of_the_making(0, 30), 99, seed=0)
  assert usual.shape == (15 * site.REHEARSALS,)
  assert np.isfinite(usual).all()
