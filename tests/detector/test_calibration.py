"""Threshold, scaling, calibration error and verdicts against closed forms and simulation."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ctfake_jax.detector import calibration
from ctfake_jax.types import UserError


def test_the_threshold_of_99_reals_at_one_percent_is_the_largest():
  scores = np.random.default_rng(0).normal(size=99)
  found = calibration.conformal_threshold(scores, 0.01)
  assert found.value == scores.max()
  # The share above the largest of 99: 1 - 0.05^(1/99).
  assert found.rate_bound == pytest.approx(1 - 0.05 ** (1 / 99))


def test_too_few_reals_are_refused_with_the_number_missing():
  with pytest.raises(UserError, match=r'needs 99 .* there are 60: add 39'):
    calibration.conformal_threshold(np.zeros(60), 0.01)


def test_a_site_with_hardly_too_few_groups_gets_the_rate_that_they_promise():
  assert calibration.nearest_rate(np.arange(99), 0.01) == 0.01
  assert calibration.nearest_rate(np.arange(200) % 95, 0.01) == 1 / 96
  assert calibration.conformal_threshold(np.arange(95.0), 1 / 96).value == 94
  with pytest.raises(UserError, match=r'needs 99 .* there are 89: add 10'):
    calibration.nearest_rate(np.arange(89), 0.01)


@given(rate=st.sampled_from([0.01, 0.02, 0.05, 0.1]), extra=st.integers(0, 300))
@settings(max_examples=20, deadline=None)
def test_the_expected_false_alarm_rate_is_at_most_the_one_asked(rate, extra):
  count = round(1 / rate) - 1 + extra
  uniform = np.arange(1, count + 1) / (count + 1)  # expected order statistics
  assert 1 - calibration.conformal_threshold(uniform, rate).value <= rate + 1e-9


def test_coverage_over_simulated_draws_with_clusters():
  """Images of a patient resemble each other; new patients' images raise the asked alarms."""
  rng, alarms = np.random.default_rng(1), []
  for draw in range(300):
    patient = rng.normal(size=150)
    groups = np.repeat(np.arange(150), rng.integers(1, 9, 150))
    scores = patient[groups] + 0.3 * rng.normal(size=len(groups))
    one = calibration.one_per_group(scores, groups, seed=draw)
    threshold = calibration.conformal_threshold(one, 0.05)
    fresh = rng.normal(size=400) + 0.3 * rng.normal(size=400)
    alarms.append((fresh > threshold.value).mean())
  # 7 of 150 above the threshold would be 0.0464 on average; Monte Carlo error is 0.001.
  assert np.mean(alarms) <= 0.05 + 0.003
  assert np.mean(alarms) >= 0.035


def test_one_per_group_takes_each_group_once():
  groups = np.array([5, 5, 2, 2, 2, 9])
  found = calibration.one_per_group(np.array([5.1, 5.2, 2.1, 2.2, 2.3, 9.0]), groups, seed=3)
  assert sorted(np.floor(found)) == [2, 5, 9]


def test_scaling_undoes_a_stretch_and_a_shift():
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 2, 200_000)
  fake = rng.random(len(logits)) < scipy.special.expit(logits)
  scores = 3 * logits + 5
  scaling = calibration.fit_scaling(scores, fake)
  assert scaling.slope == pytest.approx(1 / 3, rel=0.03)
  np.testing.assert_allclose(scaling.logits(np.array([5.0, 8.0])), [0, 1], atol=0.05)
  assert calibration.calibration_error(scaling.p_fake(scores, 0.5), fake, fake.mean()) < 0.005
  raw = calibration.UNSCALED.p_fake(scores, 0.5)
  assert calibration.calibration_error(raw, fake, 0.5) > 0.05


def test_a_score_that_is_higher_for_reals_is_not_turned_round():
  fake = np.arange(100) < 90
  scaling = calibration.fit_scaling(np.where(fake, -1.0, 1.0), fake)
  assert scaling.slope > 0
  np.testing.assert_allclose(scaling.p_fake(np.array([-1.0, 1.0]), 0.5), 0.5, atol=0.01)


def test_a_prior_moves_the_odds_by_itself():
  def odds(p):
    return p / (1 - p)

  even, rare = (calibration.UNSCALED.p_fake(np.array([0.7]), prior) for prior in (0.5, 0.1))
  assert odds(rare) / odds(even) == pytest.approx(1 / 9)


def test_calibration_error_by_hand():
  # One bin, 50 fakes at 0.6 and 50 reals at 0.8: mean p is 0.7, half are fake. No variance.
  p, fake = np.tile([0.6, 0.8], 50), np.tile([True, False], 50)
  assert calibration.calibration_error(p, fake, 0.5, bins=1) == pytest.approx(0.2)
  low, high = calibration.calibration_interval(p, fake, np.arange(100), 0.5, bins=1)
  assert 0.1 < low < 0.2 < high < 0.3
  # At another prior: 0.3 * (0.6 - 1) + 0.7 * 0.8.
  assert calibration.calibration_error(p, fake, 0.3, bins=1) == pytest.approx(0.44)


def test_the_variance_of_a_gap_is_taken_off():
  # One bin: the gap is the mean of 8 fakes' p - 1 and of 8 reals' p, each weighing a half.
  rng = np.random.default_rng(0)
  p, fake = rng.random(16), np.arange(16) < 8
  gap = 0.5 * (p[fake].mean() - 1) + 0.5 * p[~fake].mean()
  spread = sum(((p[kind] - p[kind].mean()) ** 2).sum() for kind in (fake, ~fake))
  variance = 16 / 15 * spread / 16**2
  expected = np.sqrt(max(0, (gap + 1 / 3) ** 2 - variance))
  found = calibration.calibration_error(p + 1 / 3, fake, 0.5, bins=1)
  assert found == pytest.approx(expected)
  assert found > 0.2


def test_equal_probabilities_share_a_bin():
  # In whatever order: bins by rank alone would part fakes from reals and find an error of 0.5.
  fake = np.arange(400) < 200
  assert calibration.calibration_error(np.full(400, 0.5), fake, 0.5) == 0
  assert calibration.calibration_error(np.full(400, 0.5), ~fake, 0.5) == 0


def test_copies_are_no_further_images():
  p, fake = np.random.default_rng(0).random(200), np.arange(200) % 2 == 0
  once = calibration.calibration_interval(p, fake, np.arange(200), 0.5)
  copied = np.repeat(p, 3), np.repeat(fake, 3)
  groups = np.repeat(np.arange(200), 3)
  assert calibration.calibration_interval(*copied, groups, 0.5) == pytest.approx(once)
  single = calibration.calibration_error(p, fake, 0.5)
  assert calibration.calibration_error(*copied, 0.5, groups) == pytest.approx(single)


def test_firm_and_right_answers_leave_doubt():
  fake = np.arange(400) < 200
  p = np.where(fake, 1 - 1e-6, 1e-6)
  assert calibration.calibration_error(p, fake, 0.5) < 1e-5
  low, high = calibration.calibration_interval(p, fake, np.arange(400), 0.5)
  assert low == 0
  assert 0.005 < high < 0.1


def sharpened(rng, groups: int, size: int, correlation: float, sharpness: float):
  """(probabilities, fake, groups): log odds of normal scores times `sharpness`, 1 being right."""
  fake = np.repeat(np.arange(groups) < groups // 2, size)
  patient = np.repeat(rng.normal(size=groups), size)
  noise = np.sqrt(correlation) * patient + np.sqrt(1 - correlation) * rng.normal(size=len(fake))
  score = np.where(fake, 0.5, -0.5) + noise
  return scipy.special.expit(sharpness * score), fake, np.repeat(np.arange(groups), size)


def true_error(sharpness: float) -> float:
  """Root mean square of p - chance of fake, over scores of reals and fakes alike in number."""
  score = np.linspace(-8, 8, 4001)
  density = scipy.stats.norm.pdf(score, 0.5) + scipy.stats.norm.pdf(score, -0.5)
  squared = (scipy.special.expit(sharpness * score) - scipy.special.expit(score)) ** 2
  return float(np.sqrt((squared * density).sum() / density.sum()))


@pytest.mark.parametrize(
  ('groups', 'size', 'correlation', 'sharpness', 'repetitions'),
  [
    (800, 1, 0.0, 1.0, 200),
    (60, 4, 0.3, 1.0, 300),
    (200, 4, 0.5, 2.0, 300),
    *(
      pytest.param(*design, sharpness, 1000, marks=pytest.mark.slow)
      for design in ((200, 1, 0.0), (60, 4, 0.3), (40, 12, 0.5), (200, 4, 0.5))
      for sharpness in (0.5, 1.0, 2.0)
    ),
  ],
)
def test_the_interval_of_the_calibration_error(groups, size, correlation, sharpness, repetitions):
  rng, truth = np.random.default_rng(0), true_error(sharpness)
  covered, squares = 0, []
  for _ in range(repetitions):
    p, fake, names = sharpened(rng, groups, size, correlation, sharpness)
    found = calibration.calibration_error(p, fake, 0.5, names)
    low, high = calibration.calibration_interval(p, fake, names, 0.5)
    assert low <= found <= high
    covered += low <= truth <= high
    squares.append(found**2)
  assert covered >= scipy.stats.binom.ppf(0.001, repetitions, 0.94)
  if sharpness == 1:  # the plain error would be 0.07 of 800 images
    assert np.sqrt(np.mean(squares)) < 0.06


def test_verdicts():
  logits = np.array([5.0, -5.0, 1.0, 5.0, -5.0])
  steady = np.tile(logits[:, None], 2)
  flipped = steady.copy()
  flipped[3, 1], flipped[4, 0] = -5.0, 5.0
  found, flips = calibration.verdicts(logits, flipped, calibration.UNSCALED, 2.0, 0.5)
  # The third is likelier fake than real, but raises no alarm.
  assert found.tolist() == ['fake', 'real', 'unsure', 'unsure', 'unsure']
  assert flips.tolist() == [False, False, False, True, True]
