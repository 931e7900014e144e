"""From scores of untouched series to thresholds, probabilities and what scans a verdict is for.

Thresholds are those of split conformal prediction (`detector.calibration`), of real patients and of
simulated ones apart, and the higher one is taken. A level below 1 / (n + 1) of the n real patients
cannot be promised: the level that holds is answered instead, of phantoms, too. Where patients are
fewer than `FEW_PATIENTS` they say little, and phantoms keep the level that was asked for.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Shaped

from ctfake_jax.detector import calibration
from ctfake_jax.detector.calibration import Threshold
from ctfake_jax.types import UserError

FEW_PATIENTS = 10
OUTSIDE_RATE = 0.03  # of slices like those of the calibration that are called unlike them
SHRINKAGE = 0.1  # of the textures' covariance towards its diagonal
MAP_RATE = 5e-4  # of untouched squares that a map shows


@dataclasses.dataclass(frozen=True)
class Level:
  """Above it, slices or series raise an alarm.

  Attributes:
    value: score.
    asked: rate of false alarms that was asked for.
    holds: rate that is promised for a new real patient; of phantoms where there was no patient.
    bound: this detector's own rate is below it with 95 % confidence, as far as patients tell.
    patients, phantoms: that set it, a score each.
  """

  value: float
  asked: float
  holds: float
  bound: float
  patients: int
  phantoms: int


@dataclasses.dataclass(frozen=True)
class Untouched:
  """Scores of series, or of slices, that nobody edited: one of each patient, sorted.

  Attributes:
    patients: of people.
    phantoms: of simulated ones.
  """

  patients: Float[np.ndarray, ' n']
  phantoms: Float[np.ndarray, ' m']

  def level(self, asked: float) -> Level:
    """The threshold for a rate of false alarms.

    Raises:
      UserError: there is neither patient nor phantom.
    """
    promised = max(asked, 1 / (len(self.patients) + 1))
    many = len(self.patients) >= FEW_PATIENTS
    found = [
      _threshold(scores, rate)
      for scores, rate in ((self.patients, asked), (self.phantoms, promised if many else asked))
      if len(scores)
    ]
    if not found:
      raise UserError('forensics: no untouched series is left to calibrate on; add patients')
    first = found[0]  # of people, where there are any
    return Level(
      value=max(threshold.value for threshold in found),
      asked=asked,
      holds=first.false_alarm_rate,
      bound=first.rate_bound,
      patients=len(self.patients),
      phantoms=len(self.phantoms),
    )

  def p_value(self, score: float) -> float:
    """Share of all of them, the new one among them, whose score is as high."""
    known = np.concatenate([self.patients, self.phantoms])
    return float((1 + (known >= score).sum()) / (len(known) + 1))


def _threshold(scores: Float[np.ndarray, ' n'], asked: float) -> Threshold:
  """For the rate asked for, or the least that so many can promise."""
  return calibration.conformal_threshold(scores, max(asked, 1 / (len(scores) + 1)))


@dataclasses.dataclass(frozen=True)
class Domain:
  """How far a slice's texture lies from those that the detector knows, in deviations.

  Attributes:
    centre: f[t].
    precision: f[t, t], inverse covariance.
    limit: beyond it a slice is unlike them.
  """

  centre: Float[np.ndarray, ' t']
  precision: Float[np.ndarray, 't t']
  limit: float

  def distance(self, texture: Float[np.ndarray, ' t']) -> float:
    """Mahalanobis distance."""
    apart = texture - self.centre
    return float(np.sqrt(apart @ self.precision @ apart))


def fit_domain(textures: Float[np.ndarray, 'n t'], patients: Shaped[np.ndarray, ' n']) -> Domain:
  """Centre and spread of slices, every patient weighing alike; without a limit."""
  _, which, counts = np.unique(patients, return_inverse=True, return_counts=True)
  weights = 1 / counts[which]
  spread = np.cov(textures.T, aweights=weights)
  spread = (1 - SHRINKAGE) * spread + SHRINKAGE * np.diag(np.diag(spread))
  centre = np.average(textures, axis=0, weights=weights)
  return Domain(centre, np.linalg.inv(spread + 1e-6 * np.eye(len(spread))), np.inf)


def limited(domain: Domain, distances: Untouched) -> Domain:
  """With a limit by the distances of other patients' slices, one of each."""
  return dataclasses.replace(domain, limit=distances.level(OUTSIDE_RATE).value)
