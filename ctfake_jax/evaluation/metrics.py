"""How good a classifier is: accuracies with intervals, and rank metrics.

`classification_report` takes the labels and probabilities of all images of an evaluation with the
group (patient, or set of near-duplicates) of each and leaves plain Python numbers, ready for JSON;
rates and accuracies are in [0, 1].

Images of one patient are alike, so that the interval of a share counts groups, not images: see
`share_interval`, by which every share here and elsewhere is judged.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special
import sklearn.metrics
from jaxtyping import Bool, Float, Float64, Int, Real, Shaped

from ctfake_jax.types import UserError

# Beta priors: Jeffreys' of a share; of a correlation, one that favours neither end (Kerman 2011).
SHARE_PRIOR, CORRELATION_PRIOR = (1 / 2, 1 / 2), (1 / 3, 1 / 3)
SHARE_CELLS, CORRELATION_CELLS = 96, 24
# How much more variance than was estimated a share's grid has room for, and the tail beyond it.
ROOM, NEGLIGIBLE = 4, 1e-4


def classification_report(
  labels: Int[np.ndarray, ' n'],
  probabilities: Float[np.ndarray, 'n c'],
  *,
  groups: Shaped[np.ndarray, ' n'],
  class_names: Sequence[str],
) -> dict[str, Any]:
  """All that is reported of a classifier on a set of images.

  Args:
    labels: in [0, c).
    probabilities: or any scores whose largest is the prediction.
    groups: equal for images that belong together (one patient); a number or a text.
    class_names: c names, in the order of the columns.

  Returns:
    accuracy, ci95 (see `accuracy_interval`), n, groups (how many), balanced_accuracy (mean
    over the classes that occur), per_class (name to accuracy, None where the class does not
    occur), auroc (see `classes_auroc`) and confusion (row the label, column the prediction).

  Raises:
    UserError: empty input, shapes that do not fit, a label out of range, or a NaN.
  """
  labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
  groups = np.asarray(groups)
  _check(labels, probabilities, groups, class_names)
  predicted = probabilities.argmax(axis=1)
  correct = predicted == labels
  confusion = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(len(class_names)))
  recalls = _recalls(confusion)
  return {
    'accuracy': float(correct.mean()),
    'ci95': accuracy_interval(correct, groups),
    'n': len(labels),
    'groups': len(np.unique(groups)),
    'balanced_accuracy': float(np.nanmean(recalls)),
    'per_class': {
      name: None if np.isnan(recall) else float(recall)
      for name, recall in zip(class_names, recalls)
    },
    'auroc': classes_auroc(labels, probabilities),
    'confusion': confusion.tolist(),
  }


def group_sums(
  values: Bool[np.ndarray, ' n'] | Real[np.ndarray, ' n'], groups: Shaped[np.ndarray, ' n']
) -> tuple[Float64[np.ndarray, ' g'], Int[np.ndarray, ' g']]:
  """(sum of `values`, number of images) of each of the g groups."""
  _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
  return np.bincount(index, weights=values), sizes


def accuracy_interval(
  correct: Bool[np.ndarray, ' n'], groups: Shaped[np.ndarray, ' n'], confidence: float = 0.95
) -> list[float]:
  """Interval [low, high] of the mean of `correct`, groups being the units."""
  return share_interval(*group_sums(correct, groups), confidence)


def share_interval(
  right: Real[np.ndarray, ' g'], sizes: Int[np.ndarray, ' g'], confidence: float = 0.95
) -> list[float]:
  """Interval [low, high] of a share of images, where images of a group are alike.

  The envelope of two intervals that fail in different places. Korn & Graubard's (1998) trusts the
  spread between groups that was seen, and is too narrow where few groups err (simulated: it
  covers 87 % at 20 groups of 12, share 0.95 and correlation 0.6). The posterior of
  beta-binomial groups weighs every correlation that the data allow, but leans on that law of
  groups (81 % where whole groups are right or wrong). Together they cover at least 94 % in
  both kinds of simulation; see tests/evaluation/test_metrics.py.

  Args:
    right: how many images of each group are right.
    sizes: how many images each group has, at least 1.
    confidence: 0.95 leaves 2.5 % on either side.
  """
  effective = effective_images(right, sizes, confidence)
  share = float(np.sum(right)) / float(np.sum(sizes))
  exact = [float(end) for end in clopper_pearson(share * effective, effective, confidence)]
  posterior = _beta_binomial_interval(right, sizes, confidence, effective)
  return [min(exact[0], posterior[0]), max(exact[1], posterior[1])]


def effective_images(
  right: Real[np.ndarray, ' g'], sizes: Int[np.ndarray, ' g'], confidence: float
) -> float:
  """How many independent images are worth as much: n / design effect, fewer for few groups.

  The linearised variance of a ratio and the ratio of Student's t are those of Korn & Graubard,
  "Confidence intervals for proportions with small expected number of positive counts estimated
  from survey data", Survey Methodology 24 (1998). Where all are right or all wrong nothing is
  known of the design effect, and groups are counted as images.
  """
  n, groups = int(sizes.sum()), len(sizes)
  share = right.sum() / n
  if groups == 1 or share in (0, 1):
    return float(groups)
  residuals = right - share * sizes
  clustered = groups / (groups - 1) * float((residuals**2).sum()) / n**2
  independent = share * (1 - share) / (n - 1)
  if clustered * n <= independent:  # the same share in every group
    return float(n)
  tail = (1 + confidence) / 2
  few_groups = (scipy.special.stdtrit(n - 1, tail) / scipy.special.stdtrit(groups - 1, tail)) ** 2
  return float(min(n, n * independent / clustered * few_groups))


def _beta_binomial_interval(
  right: np.ndarray, sizes: np.ndarray, confidence: float, effective: float
) -> list[float]:
  """Equal-tailed posterior interval of the mean of beta-binomial groups.

  Cells of equal prior mass for the share, about where `effective` images put it, and for the
  correlation.
  """
  coarse = effective / ROOM
  around = clopper_pearson(
    float(np.sum(right)) / float(np.sum(sizes)) * coarse, coarse, 1 - NEGLIGIBLE
  )
  first, last = scipy.special.betainc(*SHARE_PRIOR, around)
  edges = np.linspace(first, last, SHARE_CELLS + 1)
  shares = scipy.special.betaincinv(*SHARE_PRIOR, (edges[1:] + edges[:-1]) / 2)
  likelihood = _beta_binomial_log_likelihood(right, sizes, shares)
  mass = np.exp(likelihood - likelihood.max()).sum(1)
  below = np.append(0, np.cumsum(mass)) / mass.sum()
  tails = np.interp([(1 - confidence) / 2, (1 + confidence) / 2], below, edges)
  return [float(bound) for bound in scipy.special.betaincinv(*SHARE_PRIOR, tails)]


def _beta_binomial_log_likelihood(
  right: np.ndarray, sizes: np.ndarray, shares: np.ndarray
) -> np.ndarray:
  """f64[s, c], of each mean in `shares` f64[s] and each cell's correlation, up to a constant."""
  cells = (np.arange(CORRELATION_CELLS) + 0.5) / CORRELATION_CELLS
  correlations = scipy.special.betaincinv(*CORRELATION_PRIOR, cells)
  strength = (1 - correlations) / correlations
  return (
    _log_rising(shares[:, None] * strength, right)
    + _log_rising((1 - shares[:, None]) * strength, sizes - right)
    - _log_rising(strength, sizes)
  )


def _log_rising(start: np.ndarray, steps: np.ndarray) -> np.ndarray:
  """Sum over `steps` i[g] of log(start (start + 1) ... (start + step - 1)), as `start` shaped."""
  kinds, counts = np.unique(steps, return_counts=True)
  logs = scipy.special.gammaln(start[..., None] + kinds)
  return logs @ counts - len(steps) * scipy.special.gammaln(start)


def share_row(
  name: str, found: Bool[np.ndarray, ' n'], groups: Shaped[np.ndarray, ' n']
) -> dict[str, Any]:
  """The share of images that are `found`, by this name, and its interval by `name`_ci95."""
  return {name: float(np.mean(found)), f'{name}_ci95': accuracy_interval(found, groups)}


def accuracy_row(
  correct: Bool[np.ndarray, ' n'], groups: Shaped[np.ndarray, ' n']
) -> dict[str, Any]:
  """{accuracy, ci95, n} of right answers in groups."""
  interval = accuracy_interval(correct, groups)
  return {'accuracy': float(np.mean(correct)), 'ci95': interval, 'n': len(correct)}


def clopper_pearson(
  right: float | np.integer | Real[np.ndarray, '*shape'],
  n: float | np.integer,
  confidence: float = 0.95,
) -> tuple[Float64[np.ndarray, '*shape'], Float64[np.ndarray, '*shape']]:
  """Exact interval of a share of which `right` of `n` were seen; both may be broken."""
  wrong, tail = n - np.asarray(right, float), (1 - confidence) / 2
  with np.errstate(invalid='ignore'):
    low = scipy.special.betaincinv(right, wrong + 1, tail)
    high = scipy.special.betaincinv(np.asarray(right) + 1, wrong, 1 - tail)
  return np.where(wrong < n, low, 0.0), np.where(wrong > 0, high, 1.0)


def auroc(
  scores_positive: Real[np.ndarray, ' n'], scores_negative: Real[np.ndarray, ' m']
) -> float:
  """Chance that a positive scores above a negative, ties counting half."""
  truth = np.repeat([1, 0], [len(scores_positive), len(scores_negative)])
  scores = np.concatenate([scores_positive, scores_negative])
  return float(sklearn.metrics.roc_auc_score(truth, scores))


def classes_auroc(
  labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n c']
) -> float | None:
  """AUROC of column 1 for two classes, else the mean of one class against the rest.

  The mean is over the classes that occur in `labels`; None where only one does.
  """
  present = np.unique(labels)
  if len(present) < 2:
    return None
  if probabilities.shape[1] == 2:
    present = present[1:]
  one_vs_rest = [
    auroc(probabilities[labels == k, k], probabilities[labels != k, k]) for k in present
  ]
  return float(np.mean(one_vs_rest))


def found_at(
  false_alarm_rate: float,
  scores_positive: Real[np.ndarray, ' n'],
  scores_negative: Real[np.ndarray, ' m'],
) -> Bool[np.ndarray, ' n']:
  """Which positives are found when at most that share of the negatives at hand raises an alarm.

  An alarm is a score above the threshold, ties with it are none. Fewer negatives than
  1 / false_alarm_rate allow no false alarm at all: the figure is then a cautious one.
  """
  descending = np.sort(scores_negative)[::-1]
  # The small addend keeps 0.29 * 100 = 28.999... from losing an allowed alarm.
  allowed = int(np.floor(false_alarm_rate * len(descending) + 1e-9))
  if allowed >= len(descending):
    return np.ones(len(scores_positive), bool)
  return scores_positive > descending[allowed]


def detection_at(
  false_alarm_rate: float,
  scores_positive: Real[np.ndarray, ' n'],
  scores_negative: Real[np.ndarray, ' m'],
) -> float:
  """Share of positives that are `found_at` this rate."""
  return float(np.mean(found_at(false_alarm_rate, scores_positive, scores_negative)))


def _recalls(confusion: np.ndarray) -> np.ndarray:
  """Share of each class that is right, f64[c]; NaN where the class does not occur."""
  rows = confusion.sum(axis=1)
  return np.where(rows > 0, np.diag(confusion) / np.maximum(rows, 1), np.nan)


def _check(
  labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, class_names: Sequence[str]
) -> None:
  n, classes = len(labels), len(class_names)
  if not n:
    raise UserError('labels: there is no image to report on; give a part of the data with images')
  if probabilities.shape != (n, classes) or groups.shape != (n,):
    raise UserError(
      f'probabilities {probabilities.shape} and groups {groups.shape} do not fit {n} labels and'
      f' {classes} class names; give one row per image and one column per class'
    )
  if labels.min() < 0 or labels.max() >= classes:
    raise UserError(
      f'labels: {labels.min()} to {labels.max()} found, only 0 to {classes - 1} have a name;'
      ' leave out images without a label'
    )
  broken = int((~np.isfinite(probabilities)).any(axis=1).sum())
  if broken:
    raise UserError(
      f'probabilities: {broken} of {n} rows are not finite; the model has diverged, use an'
      ' earlier checkpoint or a lower learning rate'
    )
