"""The tests of the fall: known p-values, power, and false alarms under simulation."""

import functools
import itertools
import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ctfake_jax import fall
from ctfake_jax.types import UserError

SIMULATIONS = 2500


def flags(right: int, n: int) -> np.ndarray:
  return np.arange(n) < right


def single(right_originals, originals, right_suspects, suspects):
  return fall.fall(
    flags(right_originals, originals),
    np.arange(originals),
    flags(right_suspects, suspects),
    np.arange(suspects),
    seed=0,
  )


def grouped(originals, suspects, size):
  """The fall between samples whose groups, all of `size`, have so many right answers."""
  samples = []
  for right in (originals, suspects):
    samples.append(np.concatenate([flags(r, size) for r in right]))
    samples.append(np.repeat(np.arange(len(right)), size))
  return fall.fall(*samples, seed=0)


def test_fisher_golden():
  # The lady tasting tea: all of 4 and 4 named, 1 way in 70; three of four, 17 in 70 (Fisher
  # 1935; Agresti, Categorical Data Analysis, section 3.5).
  assert single(4, 4, 0, 4)['p_value'] == pytest.approx(1 / 70)
  got = single(3, 4, 1, 4)
  assert got['p_value'] == pytest.approx(17 / 70)
  assert got['method'] == 'fisher_exact'
  assert got['points'] == pytest.approx(50)
  assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_a_rise_is_no_fall():
  got = single(80, 100, 100, 100)
  assert got['points'] == pytest.approx(-20)
  assert got['p_value'] > 0.99


def test_cluster_permutation_golden():
  # All originals right and all suspects wrong: 1 of the 20 ways to take 3 groups out of 6.
  got = grouped([2, 2, 2], [0, 0, 0], size=2)
  assert got['method'] == 'cluster_permutation'
  assert got['p_value'] == pytest.approx(1 / 20)
  assert (got['n_originals'], got['groups_originals']) == (6, 3)


@settings(max_examples=15, deadline=None)
@given(
  st.lists(st.integers(0, 3), min_size=1, max_size=4),
  st.lists(st.integers(0, 3), min_size=1, max_size=4),
)
def test_cluster_permutation_counts_every_relabelling(originals, suspects):
  everything = originals + suspects
  sums = [sum(chosen) for chosen in itertools.combinations(everything, len(originals))]
  expected = np.mean(np.array(sums) >= sum(originals))
  assert grouped(originals, suspects, size=3)['p_value'] == pytest.approx(expected)


def test_sampled_permutations_agree_with_fisher():
  # Groups of copies are single images, for which Fisher's test is the permutation test.
  got = grouped([4] * 58 + [0] * 2, [4] * 52 + [0] * 8, size=4)
  exact = single(58, 60, 52, 60)['p_value']
  assert got['method'] == 'cluster_permutation'
  assert got['p_value'] == pytest.approx(exact, abs=4 * np.sqrt(exact / fall.PERMUTATIONS))


def test_groups_of_copies_beside_single_images_are_single_images():
  originals, suspects = flags(58, 60), flags(70, 100)
  got = fall.fall(
    np.repeat(originals, 4), np.repeat(np.arange(60), 4), suspects, np.arange(100), seed=0
  )
  assert got['method'] == 'fisher_on_groups'
  assert got['p_value'] == pytest.approx(single(58, 60, 70, 100)['p_value'])


def test_groups_are_rounded_against_a_fall():
  # Shares add up to 2.5 of 3 originals and 1.5 of 3 suspects: counted as 2 and 2.
  originals = np.array([1, 1, 1, 1, 1, 0], bool)
  suspects = np.array([1, 1, 0, 0], bool)
  got = fall.fall(originals, np.array([0, 0, 1, 1, 2, 2]), suspects, np.array([0, 1, 1, 2]), seed=0)
  assert got['method'] == 'fisher_on_groups'
  assert got['p_value'] == pytest.approx(single(2, 3, 2, 3)['p_value'])


def test_order_and_names_of_groups_do_not_matter():
  rng = np.random.default_rng(0)
  correct, group = rng.random(40) < 0.9, np.repeat([f'patient {i}' for i in range(10)], 4)
  order = rng.permutation(40)
  suspects = rng.random(30) < 0.5, np.arange(30)
  straight = fall.fall(correct, group, *suspects, seed=0)
  assert fall.fall(correct[order], group[order], *suspects, seed=0) == straight


def test_newcombe_interval_golden():
  # 56 of 70 against 48 of 80: 0.0524 to 0.3339 (Newcombe 1998, table II, method 10, (a)).
  wilson = [
    scipy.stats.binomtest(k, n).proportion_ci(0.95, 'wilson') for k, n in [(56, 70), (48, 80)]
  ]
  bounds = [(interval.low, interval.high) for interval in wilson]
  got = fall._difference_interval([56 / 70, 48 / 80], *bounds)
  assert got == pytest.approx([5.24, 33.39], abs=0.01)


def test_interval_keeps_its_width_where_all_are_right():
  low, high = single(100, 100, 100, 100)['ci95']
  bound = 100 * (1 - 0.025 ** (1 / 100))
  assert (low, high) == pytest.approx((-bound, bound))


def test_paired_single_images_are_mcnemar():
  # 8 lost and 2 gained: 56 of 1024 ways to have 8 heads or more in 10.
  before, after = np.repeat([1, 0, 1], [8, 2, 30]), np.repeat([0, 1, 1], [8, 2, 30])
  got = fall.paired_fall(before, after, np.arange(40), seed=0)
  assert got['p_value'] == pytest.approx(56 / 1024)
  assert got['points'] == pytest.approx(15)
  assert json.loads(json.dumps(got, allow_nan=False)) == got


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=6))
def test_sign_flips_are_all_counted(changes):
  signs = itertools.product([-1, 1], repeat=len(changes))
  sums = np.array([np.dot(sign, changes) for sign in signs])
  got = fall._sign_flip(np.array(changes))
  assert got == pytest.approx(np.mean(sums >= sum(changes)))


def test_paired_fall_sees_what_two_samples_miss():
  before, after, groups = flags(95, 100), flags(88, 100), np.arange(100)
  assert fall.paired_fall(before, after, groups, seed=0)['p_value'] <= 0.01
  assert fall.fall(before, groups, after, groups, seed=0)['p_value'] > 0.01


def test_unchanged_images_have_no_fall():
  got = fall.paired_fall(flags(9, 10), flags(9, 10), np.arange(10), seed=0)
  assert got['points'] == 0
  assert got['p_value'] == 1
  assert got['ci95'][0] < 0 < got['ci95'][1]


@pytest.mark.parametrize(('suspects', 'group'), [([], []), ([True], [0, 1]), ([[True]], [[0]])])
def test_fall_refuses(suspects, group):
  with pytest.raises(UserError, match='suspects'):
    fall.fall(flags(3, 4), np.arange(4), np.array(suspects), np.array(group), seed=0)


def test_paired_fall_refuses_other_images():
  with pytest.raises(UserError, match='3 images for 4 originals'):
    fall.paired_fall(flags(3, 4), flags(3, 3), np.arange(4), seed=0)


@pytest.mark.parametrize(
  ('n', 'm', 'accuracy', 'fallen'), [(9, 7, 0.9, 0.3), (12, 12, 1.0, 0.5), (20, 3, 0.8, 0.0)]
)
def test_power_by_every_table(n, m, accuracy, fallen):
  expected = 0.0
  for a, b in itertools.product(range(n + 1), range(m + 1)):
    p_value = scipy.stats.fisher_exact([[a, n - a], [b, m - b]], alternative='greater').pvalue
    if p_value <= 0.05:
      expected += scipy.stats.binom.pmf(a, n, accuracy) * scipy.stats.binom.pmf(b, m, fallen)
  assert fall.fisher_power(n, m, accuracy, fallen, 0.05) == pytest.approx(expected, abs=1e-6)


def test_images_needed_is_the_first_size_that_will_do():
  got = fall.images_needed(0.97, 300)
  for points in (10, 25, 50):
    powers = [
      fall.fisher_power(300, m, 0.97, 0.97 - points / 100, 0.01)
      for m in range(1, got[str(points)] + 1)
    ]
    assert powers[-1] >= 0.9 > max(powers[:-1])
  assert 0 < got['50'] < got['25'] < got['10']


def test_images_needed_admits_defeat():
  # With 12 originals no number of suspects shows 5 points; 0.4 cannot fall by 50.
  assert fall.images_needed(0.97, 12, fall_points=(5,), cap=500) == {'5': None}
  assert fall.images_needed(0.4, 500, fall_points=(50,)) == {'50': None}
  assert fall.images_needed(0.97, 300, fall_points=(10,), cap=20) == {'10': None}


def correlated(rng, groups, size, accuracy, correlation):
  """Right answers i[groups] of beta-binomial groups: correlated slices of a patient."""
  strength = (1 - correlation) / correlation
  chance = rng.beta(accuracy * strength, (1 - accuracy) * strength, groups)
  return np.sort(rng.binomial(size, chance))


def false_alarms(originals, suspects, accuracy, correlation, test):
  """Share of draws without any fall in which `test` has p <= 1 %; samples as (groups, size)."""
  rng = np.random.default_rng(0)
  cached = functools.cache(lambda a, b: test(np.array(a), originals[1], np.array(b), suspects[1]))
  alarms = 0
  for _ in range(SIMULATIONS):
    a, b = (correlated(rng, *sample, accuracy, correlation) for sample in (originals, suspects))
    alarms += cached(tuple(a.tolist()), tuple(b.tolist())) <= 0.01
  return alarms / SIMULATIONS


def ours(a, size_a, b, size_b):
  samples = (a, np.full(len(a), size_a)), (b, np.full(len(b), size_b))
  return fall._test(*samples, np.random.default_rng(0))[1]


def blind(a, size_a, b, size_b):
  """Fisher's test as if all slices were independent."""
  n, m, right = len(a) * size_a, len(b) * size_b, a.sum() + b.sum()
  return scipy.stats.hypergeom.sf(a.sum() - 1, n + m, right, n)


# A test whose true rate is 1 % stays below this in all but one of 1,000 suites: 1.64 %.
TOLERATED = scipy.stats.binom.ppf(0.999, SIMULATIONS, 0.01) / SIMULATIONS


@pytest.mark.slow
@pytest.mark.parametrize(
  ('originals', 'suspects', 'accuracy', 'correlation'),
  [
    ((200, 1), (50, 1), 0.9, 0.5),
    ((40, 4), (20, 4), 0.9, 0.6),
    ((60, 4), (500, 1), 0.99, 0.6),
    ((60, 4), (500, 1), 0.7, 0.9),
    ((200, 4), (20, 1), 0.95, 0.3),
    ((100, 1), (10, 12), 0.8, 0.6),
  ],
)
def test_false_alarms_stay_at_one_percent(originals, suspects, accuracy, correlation, monkeypatch):
  # The p-value is valid at any number of relabellings; fewer keep this quick.
  monkeypatch.setattr(fall, 'PERMUTATIONS', 999)
  assert false_alarms(originals, suspects, accuracy, correlation, ours) <= TOLERATED


@pytest.mark.parametrize(
  ('originals', 'suspects'), [((40, 4), (20, 4)), ((60, 4), (500, 1)), ((100, 1), (10, 12))]
)
def test_the_simulation_catches_a_test_blind_to_clusters(originals, suspects):
  assert false_alarms(originals, suspects, 0.8, 0.8, blind) > 2 * TOLERATED


def test_simulated_falls_are_found():
  rng = np.random.default_rng(1)
  found = [
    ours(correlated(rng, 60, 4, 0.97, 0.3), 4, rng.random(500) < 0.72, 1) <= 0.01 for _ in range(50)
  ]
  assert np.mean(found) >= 0.95


def outcome(points, low, high, p_value):
  return {'points': points, 'ci95': [low, high], 'p_value': p_value}


DEEP = outcome(30, 25, 35, 1e-9)


@pytest.mark.parametrize(
  ('suspects', 'harmless', 'expected'),
  [
    (outcome(1, -2, 4, 0.3), {'jpeg': outcome(0, -1, 1, 0.6)}, 'no_fall'),
    (outcome(1, -2, 4, 0.3), {}, 'no_fall'),
    (DEEP, {}, 'fall_without_controls'),
    (DEEP, {'jpeg': outcome(0, -1, 1, 0.6)}, 'fall'),
    (DEEP, {'jpeg': outcome(0, -1, 1, 0.6), 'blur': outcome(8, 4, 12, 1e-4)}, 'controls'),
    (DEEP, {'scanner': outcome(10, -15, 35, 0.2)}, 'controls'),
  ],
)
def test_verdict(suspects, harmless, expected):
  expected = {'controls': 'fall_but_controls_fall_too'}.get(expected, expected)
  assert fall.verdict(suspects, harmless) == expected


def test_who_guesses_cannot_fall():
  unshown, unchanged = outcome(1, -2, 4, 0.3), {'jpeg': outcome(0, -1, 1, 0.6)}
  assert fall.verdict(unshown, unchanged, above_chance=False) == 'may_be_guessing'
  assert fall.verdict(DEEP, unchanged, above_chance=False) == 'fall'
