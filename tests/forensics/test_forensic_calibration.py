"""Promises of thresholds, held in simulation; the level that holds where too few patients are."""

import numpy as np
import pytest

from ctfake_jax.forensics import calibration
from ctfake_jax.forensics.calibration import Untouched
from ctfake_jax.forensics.untouched import Looks
from ctfake_jax.types import UserError

NONE = np.array([])


@pytest.mark.parametrize(('patients', 'asked'), [(19, 0.05), (40, 0.1), (14, 0.01)])
def test_new_patients_raise_alarms_as_often_as_is_promised(patients, asked):
  """Exchangeable scores: the expected rate is at most what holds, and not far below it."""
  rng, alarms = np.random.default_rng(0), []
  for _ in range(4000):
    scores = rng.standard_t(3, patients + 20)
    level = Untouched(np.sort(scores[:patients]), NONE).level(asked)
    alarms.append((scores[patients:] > level.value).mean())
  spread = np.std(alarms) / np.sqrt(len(alarms))
  assert np.mean(alarms) <= level.holds + 3 * spread
  assert np.mean(alarms) >= level.holds - 1 / (patients + 1) - 3 * spread


def test_a_level_that_patients_cannot_promise_is_not_promised():
  level = Untouched(np.arange(13.0), np.arange(200.0) / 100).level(0.01)
  assert level.asked == 0.01
  assert level.holds == pytest.approx(1 / 14)
  assert level.value == 12.0
  assert (level.patients, level.phantoms) == (13, 200)


def test_phantoms_follow_many_patients_and_stand_in_for_few():
  phantoms = np.arange(99.0)
  many = Untouched(np.full(19, -1.0), phantoms).level(0.01)
  assert many.holds == pytest.approx(0.05)
  assert many.value == 94.0  # the 95th of 99: 5 % of phantoms
  few = Untouched(np.full(3, -1.0), phantoms).level(0.01)
  assert few.holds == pytest.approx(0.25)
  assert few.value == 98.0  # 1 % of phantoms


def test_the_higher_threshold_of_patients_and_phantoms_is_taken():
  assert Untouched(np.zeros(99), np.full(99, 3.0)).level(0.01).value == 3.0
  assert Untouched(NONE, np.arange(99.0)).level(0.01).value == 98.0
  with pytest.raises(UserError, match='no untouched series'):
    Untouched(NONE, NONE).level(0.01)


def test_p_values_are_uniform_or_larger():
  rng, found = np.random.default_rng(1), []
  for _ in range(2000):
    scores = rng.normal(size=30)
    found.append(Untouched(scores[:19], scores[19:29]).p_value(scores[29]))
  for level in (0.1, 0.3, 0.5):
    assert np.mean(np.array(found) <= level) <= level + 0.03


def test_the_domain_holds_what_is_alike_and_not_what_is_apart():
  rng = np.random.default_rng(2)
  learnt, held = rng.normal(size=(300, 4)), rng.normal(size=(200, 4))
  domain = calibration.fit_domain(learnt, np.arange(300) // 3)
  distances = np.sort([domain.distance(t) for t in held])
  domain = calibration.limited(domain, Untouched(distances, NONE))
  inside = [domain.distance(t) <= domain.limit for t in rng.normal(size=(1000, 4))]
  assert np.mean(inside) > 0.92
  assert not any(domain.distance(t + 6) <= domain.limit for t in rng.normal(size=(100, 4)))


def test_the_map_limit_is_exceeded_by_its_share():
  rng, looks = np.random.default_rng(3), Looks()
  looks.squares['a'].append(rng.normal(size=20000))
  looks.squares['b'] += [rng.normal(1, 1, size=20000), rng.normal(1, 1, size=20000)]
  limit = looks.map_limit(1e-3)
  share = np.mean([(np.concatenate(own) > limit).mean() for own in looks.squares.values()])
  assert share == pytest.approx(1e-3, rel=0.3)


def test_one_score_of_each_patient_and_phantoms_apart():
  looks = Looks()
  looks.slices = [('a', 1.0), ('a', 2.0), ('b', 3.0), ('phantom', 4.0)]
  slices, series = looks.untouched(0, ['phantom'])
  assert slices.patients.tolist() in ([1.0, 3.0], [2.0, 3.0])
  assert slices.phantoms.tolist() == [4.0]
  assert not len(series.patients)
