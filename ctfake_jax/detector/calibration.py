"""From a raw score to a probability, a threshold and a verdict.

A raw score is higher for fake. The threshold comes from reals alone by split
conformal prediction (Vovk, Gammerman & Shafer 2005; Angelopoulos & Bates 2021, arXiv:2107.07511):
one score for each patient or group, so that what it promises holds for a new patient. The promise
is marginal: over many detectors calibrated on as many reals, at most the asked share of new reals
raises an alarm. `rate_bound` says how bad this one may be.
"""

import dataclasses
import math

import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Bool, Float, Shaped
from sklearn.linear_model import LogisticRegression

from ctfake_jax.config.keys import Config
from ctfake_jax.runtime import streams
from ctfake_jax.types import UserError

REAL, FAKE, UNSURE = 'real', 'fake', 'unsure'
CONFIDENCE = 0.95
USUAL_RATE = 0.01  # of false alarms, where none is asked for
HARDLY_MORE = 1.1  # times the false-alarm rate asked for
BINS = 15
INVERSE_PENALTY = 1e3  # a weak one keeps the slope finite where reals and fakes do not overlap
LEAST_SLOPE = 1e-3  # log odds for a standard deviation of the scores
GUARANTEE = 'marginal: over detectors calibrated like this one, for images like its reals'


@dataclasses.dataclass(frozen=True)
class Threshold:
  """Above it a score raises an alarm.

  Attributes:
    value: raw score.
    false_alarm_rate: what was asked.
    groups: how many independent reals set it.
    rate_bound: this detector's own false-alarm rate is below it with 95 % confidence.
    guarantee: the kind of promise, in words.
  """

  value: float
  false_alarm_rate: float
  groups: int
  rate_bound: float
  guarantee: str


def asked_rate(config: Config, own: float = USUAL_RATE) -> float:
  """`detection.false_alarm_rate`, or `own` where it is 0."""
  return config.detection.false_alarm_rate or own


def one_per_group(
  scores: Shaped[np.ndarray, ' n'], groups: Shaped[np.ndarray, ' n'], seed: int
) -> Shaped[np.ndarray, ' g']:
  """The score of one image of each group, drawn at random."""
  order = streams.generator(seed, 'one of each group').permutation(len(scores))
  _, first = np.unique(groups[order], return_index=True)
  return scores[order[first]]


def conformal_threshold(scores: Float[np.ndarray, ' n'], false_alarm_rate: float) -> Threshold:
  """From independent reals' scores f[n].

  Raises:
    UserError: fewer than 1 / rate - 1 scores; says how many are missing.
  """
  count = len(scores)
  rank = math.ceil((count + 1) * (1 - false_alarm_rate) - 1e-9)
  if rank > count:
    needed = math.ceil(1 / false_alarm_rate - 1 - 1e-9)
    raise UserError(
      f'config.detection.false_alarm_rate = {false_alarm_rate:g}: the threshold needs {needed} '
      f'independent reals (patients or near-duplicate groups), there are {count}: add '
      f'{needed - count}, or ask for a higher rate'
    )
  # The share of new reals above the k-th smallest of n is Beta(n + 1 - k, k).
  bound = scipy.stats.beta.ppf(CONFIDENCE, count + 1 - rank, rank)
  value = float(np.sort(scores)[rank - 1])
  return Threshold(value, false_alarm_rate, count, float(bound), GUARANTEE)


def refuse_few_groups(groups: Shaped[np.ndarray, ' n'], false_alarm_rate: float) -> None:
  """Raises now, as `conformal_threshold` would after hours, if groups [n] are too few."""
  conformal_threshold(np.zeros(len(np.unique(groups))), false_alarm_rate)


def nearest_rate(groups: Shaped[np.ndarray, ' n'], asked: float) -> float:
  """The rate asked for, or the least that groups [n] can promise where that is hardly more.

  A hundred images of a site are rarely a hundred patients: 95 groups promise 1.04 %.

  Raises:
    UserError: the least is above `HARDLY_MORE` times the rate asked for.
  """
  least = 1 / (len(np.unique(groups)) + 1)
  if asked < least <= HARDLY_MORE * asked:
    return least
  refuse_few_groups(groups, asked)
  return asked


@dataclasses.dataclass(frozen=True)
class Scaling:
  """Scores to log odds of fake where reals and fakes are as many (Platt 1999).

  Temperature scaling (Guo et al. 2017, arXiv:1706.04599) with an intercept: a raw score need not
  be a logit.
  """

  slope: float
  intercept: float

  def logits(self, scores: Float[np.ndarray, '*n']) -> Float[np.ndarray, '*n']:
    """Log odds of raw scores."""
    return self.slope * scores + self.intercept

  def p_fake(self, scores: Float[np.ndarray, '*n'], prior: float) -> Float[np.ndarray, '*n']:
    """Probability that an image is fake if a share `prior` of the images is."""
    return scipy.special.expit(self.logits(scores) + scipy.special.logit(prior))


UNSCALED = Scaling(1.0, 0.0)


def fit_scaling(scores: Float[np.ndarray, ' n'], fake: Bool[np.ndarray, ' n']) -> Scaling:
  """The map of scores f[n] with the least log loss, real and fake weighing alike."""
  centre, spread = scores.mean(), max(float(scores.std()), 1e-9)
  line = LogisticRegression(C=INVERSE_PENALTY, class_weight='balanced')
  line.fit((scores[:, None] - centre) / spread, fake)
  slope, intercept = float(line.coef_[0, 0]), float(line.intercept_[0])
  # A score that is higher for reals says nothing: it is not turned round.
  if slope < LEAST_SLOPE:
    slope, intercept = LEAST_SLOPE, 0.0
  return Scaling(slope / spread, float(intercept - slope / spread * centre))


def calibration_error(
  probabilities: Float[np.ndarray, ' n'],
  fake: Bool[np.ndarray, ' n'],
  prior: float,
  groups: Shaped[np.ndarray, ' n'] | None = None,
  *,
  bins: int = BINS,
) -> float:
  """Root mean square distance of p_fake from the share of fakes, without what chance adds to it.

  The debiased estimate of Kumar, Liang & Ma 2019 (arXiv:1909.10155), in bins of equal mass: the
  variance of the bins' gaps is taken off, so that 0 is to be expected of perfect calibration. (Of
  the plain one, some hundredths at hundreds of images.) Bins hide what averages out within
  them. Reals and fakes are weighted so that fakes are a share `prior` of all.

  Args:
    probabilities: f[n].
    fake: bool[n].
    prior: share of fakes that the probabilities are meant for.
    groups: [n], images that are not independent of each other; each alone where None.
    bins: how many; images of equal probability share one.
  """
  gaps, covariance, _ = _gaps(probabilities, fake, prior, groups, bins)
  return math.sqrt(max(0.0, float(gaps @ gaps - np.trace(covariance))))


def calibration_interval(
  probabilities: Float[np.ndarray, ' n'],
  fake: Bool[np.ndarray, ' n'],
  groups: Shaped[np.ndarray, ' n'],
  prior: float,
  *,
  bins: int = BINS,
) -> list[float]:
  """95 % interval of `calibration_error`, which it holds; from 0 on where nothing is shown.

  The sum of squared gaps as a scaled noncentral chi-square (Satterthwaite's scale and degrees of
  freedom), of which the noncentrality is the error. One surprise more in each bin is allowed for:
  that all images so far are judged rightly and firmly leaves doubt, too.
  """
  gaps, covariance, unseen = _gaps(probabilities, fake, prior, groups, bins)
  covariance = covariance + np.diag(unseen)
  total, found = float(np.trace(covariance)), float(gaps @ gaps)
  # The spread on average, and that along the gaps where groups make it the larger one.
  along = float(gaps @ covariance @ gaps) / found if found else 0.0
  scale = max(float((covariance**2).sum()) / total, along)
  freedom, tail = total / scale, (1 - CONFIDENCE) / 2
  low, high = 0.0, scipy.special.chndtrinc(max(found / scale, freedom), freedom, tail)
  if scipy.special.chdtr(freedom, found / scale) > 1 - tail:
    low = scipy.special.chndtrinc(found / scale, freedom, 1 - tail)
  estimate = math.sqrt(max(0.0, found - float(np.trace(covariance - np.diag(unseen)))))
  # No distance between shares is above 1.
  return [math.sqrt(scale * low), min(1.0, max(math.sqrt(scale * high), estimate))]


def _gaps(
  probabilities: np.ndarray,
  fake: np.ndarray,
  prior: float,
  groups: np.ndarray | None,
  bins: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Gaps f64[b] whose squares add up to the squared error; two parts of their variance.

  The covariance f64[b, b] that the groups show, reals and fakes being as many as they are; and
  the variances f64[b] of one group of either kind being a surprise.
  """
  groups = np.arange(len(fake)) if groups is None else groups
  kinds = [kind for kind in (fake, ~fake) if kind.any()]
  weights = np.where(fake, prior, 1 - prior) / np.where(fake, fake.sum(), (~fake).sum())
  _, which = np.unique(_equal_mass(probabilities, weights, bins), return_inverse=True)
  in_bin = which[:, None] == np.arange(np.max(which) + 1)
  terms = in_bin * (weights * (probabilities - fake) / np.sqrt(weights @ in_bin)[which])[:, None]
  centred, unseen = terms.copy(), np.zeros(in_bin.shape[1])
  for kind in kinds:
    centred[kind] -= terms[kind].mean(0)
    share = weights[kind].sum() / len(np.unique(groups[kind]))
    unseen += in_bin[kind].any(0) * share**2 / (weights @ in_bin)
  names, of_image = np.unique(groups, return_inverse=True)
  by_group = np.zeros((len(names), in_bin.shape[1]))
  np.add.at(by_group, of_image, centred)
  return terms.sum(0), by_group.T @ by_group * len(names) / max(len(names) - 1, 1), unseen


def _equal_mass(values: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
  """int[n] in [0, bins): by rank, each bin of about the same weight, equal values together."""
  _, which = np.unique(values, return_inverse=True)
  mass = np.bincount(which, weights=weights)
  middle = (np.cumsum(mass) - mass / 2) / mass.sum()
  return (middle * bins).astype(int)[which]


def verdicts(
  scores: Float[np.ndarray, ' n'],
  re_encoded: Float[np.ndarray, 'n k'],
  scaling: Scaling,
  threshold: float,
  prior: float,
) -> tuple[Shaped[np.ndarray, ' n'], Bool[np.ndarray, ' n']]:
  """'real', 'fake' or 'unsure' for each of n images; and bool[n], whether re-encoding matters.

  An image is fake where its score raises an alarm and its probability is at least one half, real
  where neither holds. It is unsure where the two disagree, or where a harmless re-encoding
  (scores f[n, k] of k of them) would be judged otherwise.
  """
  judged = _judge(scores, scaling, threshold, prior)
  others = _judge(re_encoded, scaling, threshold, prior)
  flips = (others != judged[:, None]).any(1)
  return np.where(flips, UNSURE, judged).astype(object), flips


def _judge(scores: np.ndarray, scaling: Scaling, threshold: float, prior: float) -> np.ndarray:
  alarm = scores > threshold
  likely = scaling.p_fake(scores, prior) >= 0.5
  return np.where(alarm & likely, FAKE, np.where(alarm | likely, UNSURE, REAL))
