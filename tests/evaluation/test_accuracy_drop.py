"""The fall: its interval and p-value, the verdict, false alarms and power under simulation."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from patients import each_once, group_sizes, right_answers

from ctfake_jax.data import splits
from ctfake_jax.data.class_mix import class_counts, labels_in_mix
from ctfake_jax.evaluation import accuracy_drop, metrics
from ctfake_jax.types import UserError


def flags(right: int, n: int) -> np.ndarray:
  return np.arange(n) < right


def single(right_originals, originals, right_tested, tested):
  return accuracy_drop.measure(
    flags(right_originals, originals),
    np.arange(originals),
    flags(right_tested, tested),
    np.arange(tested),
  )


def test_the_rule_of_newcombe_golden():
  # 56 of 70 against 48 of 80, from Wilson's intervals of the two: 0.0524 to 0.3339 (Newcombe
  # 1998, table II, method 10, (a)).
  def wilson(right, n):
    z = scipy.stats.norm.ppf(0.975)
    centre, spread = right / n + z**2 / (2 * n), z * np.sqrt(right * (1 - right / n) + z**2 / 4) / n
    return [(centre - spread) / (1 + z**2 / n), (centre + spread) / (1 + z**2 / n)]

  got = accuracy_drop.difference_interval((56 / 70, 48 / 80), wilson(56, 70), wilson(48, 80))
  assert got == pytest.approx((0.0524, 0.3339), abs=0.0001)


def test_a_fall_and_what_stands_beside_it():
  got = single(58, 60, 70, 100)
  assert got['points'] == pytest.approx(100 * (58 / 60 - 0.7))
  assert got['originals'] == {
    'accuracy': 58 / 60,
    'ci95': pytest.approx(list(scipy.stats.binomtest(58, 60).proportion_ci(0.95, 'exact'))),
    'n': 60,
    'groups': 60,
  }
  assert got['tested']['n'] == 100
  assert 0 < got['ci99'][0] < got['points'] < got['ci99'][1]
  assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_a_rise_is_no_fall():
  got = single(80, 100, 100, 100)
  assert got['points'] == pytest.approx(-20)
  assert got['ci99'][1] < 0
  assert got['p_value'] < 0.01
  assert not accuracy_drop.is_shown(got)


def test_no_difference_has_no_evidence():
  assert single(9, 10, 9, 10)['p_value'] == 1


@given(st.integers(0, 40), st.integers(0, 30), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_p_value_interval_and_verdict_never_contradict(right, right_tested, size):
  got = accuracy_drop.measure(
    np.repeat(flags(right, 40), size),
    np.repeat(np.arange(40), size),
    flags(right_tested, 30),
    np.arange(30),
  )
  assert accuracy_drop.is_shown(got) == (got['ci99'][0] > 0)
  excludes_zero = got['ci99'][0] > 0 or got['ci99'][1] < 0
  assert excludes_zero == (got['p_value'] < 0.01)


def test_interval_keeps_its_width_where_all_are_right():
  low, high = single(100, 100, 100, 100)['ci99']
  bound = 100 * (1 - 0.005 ** (1 / 100))
  assert (low, high) == pytest.approx((-bound, bound))


def test_copies_of_an_image_are_no_evidence():
  originals, tested = flags(58, 60), flags(70, 100)
  copies = accuracy_drop.measure(
    np.repeat(originals, 4), np.repeat(np.arange(60), 4), tested, np.arange(100)
  )
  alone = single(58, 60, 70, 100)
  assert copies['ci99'] == pytest.approx(alone['ci99'], abs=1)
  assert copies['p_value'] >= alone['p_value']


def test_order_and_names_of_groups_do_not_matter():
  rng = np.random.default_rng(0)
  correct, group = rng.random(40) < 0.9, np.repeat([f'patient {i}' for i in range(10)], 4)
  order = rng.permutation(40)
  tested = rng.random(30) < 0.5, np.arange(30)
  straight, shuffled = (
    accuracy_drop.measure(*sample, *tested)
    for sample in ((correct, group), (correct[order], group[order]))
  )
  assert shuffled['ci99'] == pytest.approx(straight['ci99'])


@given(patients=st.integers(2, 12), images=st.integers(1, 12), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_few_patients_give_an_answer_and_no_fall(patients, images, seed):
  rng = np.random.default_rng(seed)
  groups = np.repeat(np.arange(patients), images)
  right = rng.random(len(groups)) < rng.beta(2, 1, patients)[groups]
  others = groups % 2 == 1
  changed = {'jpeg': right[others]}
  found, controls = accuracy_drop.trial(right, groups, others, right, changed, seed=seed)
  assert found['tested']['n'] >= 1
  assert controls['jpeg']['tested']['n'] >= 1
  assert found['ci99'][0] <= 0 <= found['ci99'][1]


@pytest.mark.parametrize(('tested', 'group'), [([], []), ([True], [0, 1]), ([[True]], [[0]])])
def test_fall_refuses(tested, group):
  with pytest.raises(UserError, match='tested'):
    accuracy_drop.measure(flags(3, 4), np.arange(4), np.array(tested, bool), np.array(group))


def test_controls_are_measured_on_other_patients_than_the_reference():
  groups, labels = np.repeat(np.arange(40), 4), np.repeat(np.arange(40) % 2, 4)
  others = splits.halves(labels, groups, seed=0)
  assert not set(groups[others]) & set(groups[~others])
  assert np.bincount(labels[others]).tolist() == np.bincount(labels[~others]).tolist()
  right = ~others | (np.arange(160) % 8 > 0)
  fakes, changed = (
    flags(350, 500),
    {'same': right[others], 'worse': right[others] & (np.arange(80) % 8 < 2)},
  )
  found, controls = accuracy_drop.trial(right, groups, others, fakes, changed, seed=0)
  assert found['originals'] == controls['same']['originals']
  assert found['originals']['accuracy'] == 1
  assert (found['originals']['groups'], controls['same']['tested']['groups']) == (20, 20)
  assert controls['worse']['points'] > 70
  # As many fakes as the other half is worth: at least its patients, at most its images.
  assert found['tested']['n'] == int(accuracy_drop.worth(changed['worse'], groups[others]))
  assert 20 <= found['tested']['n'] <= 80
  again, _ = accuracy_drop.trial(right, groups, others, fakes, changed, seed=0)
  assert again == found


@pytest.mark.parametrize(
  ('n', 'm', 'accuracy', 'fallen'), [(30, 12, 0.9, 0.3), (25, 25, 1.0, 0.5), (40, 9, 0.8, 0.0)]
)
def test_power_by_every_outcome(n, m, accuracy, fallen):
  expected = 0.0
  for a, b in itertools.product(range(n + 1), range(m + 1)):
    ends = [
      scipy.stats.binomtest(k, size).proportion_ci(0.99, 'exact') for k, size in ((a, n), (b, m))
    ]
    if accuracy_drop.difference_interval((a / n, b / m), *ends)[0] > 0:
      expected += scipy.stats.binom.pmf(a, n, accuracy) * scipy.stats.binom.pmf(b, m, fallen)
  assert accuracy_drop.power_of(n, m, accuracy, fallen) == pytest.approx(expected, abs=1e-6)
  assert expected > 0.1


def test_images_needed_is_the_first_size_that_will_do():
  got = accuracy_drop.required_sample_size(0.97, 300)
  for points in (10, 25, 50):
    powers = [
      accuracy_drop.power_of(300, m, 0.97, 0.97 - points / 100)
      for m in range(1, got[str(points)] + 1)
    ]
    assert powers[-1] >= 0.9 > max(powers[:-1])
  assert 0 < got['50'] < got['25'] < got['10']


def test_images_needed_admits_defeat():
  # With 12 originals no number of images shows 5 points; 0.4 cannot fall by 50.
  assert accuracy_drop.required_sample_size(0.97, 12, fall_points=(5,), cap=500) == {'5': None}
  assert accuracy_drop.required_sample_size(0.4, 500, fall_points=(50,)) == {'50': None}
  assert accuracy_drop.required_sample_size(0.97, 300, fall_points=(10,), cap=20) == {'10': None}


def intervals(sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Shares f64[r] and their 99 % intervals f64[r, 2]."""
  kinds, which = each_once(sums, sizes)
  found = np.array(
    [metrics.share_interval(right, sizes, accuracy_drop.CONFIDENCE) for right in kinds]
  )
  return sums.sum(1) / sizes.sum(), found[which]


def worth(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """i[r], independent images that each row of `sums` [r, g] is worth."""
  kinds, which = each_once(sums, sizes)
  found = [metrics.effective_images(right, sizes, accuracy_drop.CONFIDENCE) for right in kinds]
  return np.array(found)[which].astype(int)


def shown(before, after) -> np.ndarray:
  """bool[r], by the rule of `fall.difference_interval`, from (shares, intervals) of two samples."""
  (first, a), (second, b) = before, after
  return first - second > np.hypot(first - a[:, 0], b[:, 1] - second)


def test_few_fakes_are_set_against_few_control_patients():
  groups = np.repeat(np.arange(400), 4)
  others, right = groups >= 200, np.random.default_rng(0).random(1600) < 0.9
  assert accuracy_drop.worth(right[others], groups[others]) > 700
  found, controls = accuracy_drop.trial(
    right, groups, others, flags(90, 100), {'same': right[others]}, seed=0
  )
  assert found['tested']['n'] == 100
  assert controls['same']['tested']['n'] == pytest.approx(100, abs=8)


def simulated(accuracy, correlation, patients, kind, repetitions, points=8):
  """Rates of falls shown: {fakes, control} without a fall, and {fakes, control} after one.

  The control half is drawn with as many patients as the reference, and as many fakes as it is
  worth. Fallen images are lost at random.
  """
  rng, sizes = np.random.default_rng(0), group_sizes(kind, patients)
  half = sizes[rng.permutation(patients)[: patients // 2]]
  reference, other = (
    right_answers(rng, accuracy, correlation, half, repetitions) for _ in range(2)
  )
  before, same = intervals(reference, half), intervals(other, half)
  fallen = rng.binomial(other, 1 - points / 100 / accuracy)
  lost = intervals(fallen, half)
  counts = worth(other, half), worth(fallen, half)
  fakes = []
  for chance, count in zip((accuracy, accuracy - points / 100), counts):
    right = rng.binomial(count, chance)
    exact = [metrics.clopper_pearson(k, n, accuracy_drop.CONFIDENCE) for k, n in zip(right, count)]
    fakes.append((right / count, np.array(exact)))
  return {
    'false alarms': [float(shown(before, after).mean()) for after in (fakes[0], same)],
    'power': [float(shown(before, after).mean()) for after in (fakes[1], lost)],
  }


def tolerated(repetitions: int) -> float:
  """A rule whose true rate is 1 % stays below this in all but one of 1,000 suites."""
  return scipy.stats.binom.ppf(0.999, repetitions, 0.01) / repetitions


@pytest.mark.parametrize(
  ('accuracy', 'correlation', 'patients', 'kind'),
  [(0.9, 0.6, 60, 'equal'), (0.99, 0.6, 200, 'equal'), (0.9, 0.3, 200, 'one large')],
)
def test_false_alarms_and_equal_power(accuracy, correlation, patients, kind):
  found = simulated(accuracy, correlation, patients, kind, 400)
  assert max(found['false alarms']) <= tolerated(400)
  assert found['power'][0] == pytest.approx(found['power'][1], abs=0.1)


def test_simulated_falls_are_found():
  found = simulated(0.97, 0.3, 60, 'equal', 200, points=40)
  assert min(found['power']) >= 0.9


def test_the_simulation_catches_a_rule_blind_to_groups():
  rng, sizes = np.random.default_rng(0), group_sizes('equal', 60)
  samples = [right_answers(rng, 0.8, 0.8, sizes, 500) for _ in range(2)]
  blind = [
    (s.sum(1) / 240, np.array([metrics.clopper_pearson(k, 240, 0.99) for k in s.sum(1)]))
    for s in samples
  ]
  assert shown(*blind).mean() > 2 * tolerated(500)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['equal', 'geometric', 'one large'])
@pytest.mark.parametrize('patients', [20, 60])
def test_false_alarms_and_equal_power_throughout(patients, kind):
  for accuracy, correlation in ((0.99, 0.6), (0.95, 0.3), (0.9, 0.6), (0.8, 0.0)):
    found = simulated(accuracy, correlation, patients, kind, 400)
    assert max(found['false alarms']) <= tolerated(400), (accuracy, correlation)
    assert found['power'][0] == pytest.approx(found['power'][1], abs=0.1)


def outcome(points, low, high):
  return {'points': points, 'ci99': [low, high]}


DEEP = outcome(30, 25, 35)


@pytest.mark.parametrize(
  ('tested', 'harmless', 'expected'),
  [
    (outcome(1, -2, 4), {'jpeg': outcome(0, -1, 1)}, 'no_fall'),
    (outcome(1, -2, 4), {}, 'no_fall'),
    (DEEP, {}, 'fall_without_controls'),
    (DEEP, {'jpeg': outcome(0, -1, 1)}, 'fall'),
    (DEEP, {'jpeg': outcome(0, -1, 1), 'blur': outcome(8, 4, 12)}, 'controls'),
    (DEEP, {'scanner': outcome(10, -15, 35)}, 'controls'),
  ],
)
def test_verdict(tested, harmless, expected):
  expected = {'controls': 'fall_but_controls_fall_too'}.get(expected, expected)
  assert accuracy_drop.verdict(tested, harmless) == expected


def test_who_guesses_cannot_fall():
  unshown, unchanged = outcome(1, -2, 4), {'jpeg': outcome(0, -1, 1)}
  assert accuracy_drop.verdict(unshown, unchanged, above_chance=False) == 'may_be_guessing'
  assert accuracy_drop.verdict(DEEP, unchanged, above_chance=False) == 'fall'


def shown_on_genuine_images(shares, labels_of_fakes, repetitions=100):
  """Share of studies that show a fall where genuine images stand in for the fakes."""
  accuracy, rng = np.array([0.99, 0.95, 0.92, 0.70]), np.random.default_rng(0)
  shown = 0
  for _ in range(repetitions):
    labels = rng.choice(4, 400, p=shares)
    fakes = labels_of_fakes(class_counts(labels, 4))
    right, right_fakes = (rng.random(len(own)) < accuracy[own] for own in (labels, fakes))
    result = accuracy_drop.measure(right, np.arange(400), right_fakes, np.arange(500))
    shown += accuracy_drop.is_shown(result)
  return shown / repetitions


@pytest.mark.parametrize(
  'shares', [(0.55, 0.25, 0.15, 0.05), (0.25, 0.25, 0.25, 0.25), (0.9, 0.04, 0.03, 0.03)]
)
def test_genuine_images_in_any_class_mix_are_no_fall(shares):
  assert shown_on_genuine_images(shares, lambda mix: labels_in_mix(mix, 500)) <= 0.02


@pytest.mark.slow
def test_a_class_mix_of_their_own_would_be_a_fall():
  rate = shown_on_genuine_images((0.55, 0.25, 0.15, 0.05), lambda _: np.arange(500) % 4)
  assert rate > 0.3
