"""How good a classifier is: masked sums on the device, intervals and rank metrics on the host.

During evaluation each padded batch (logits f32[b, c], labels i32[b], mask bool[b]) becomes one
`Sums`; sums of batches and of hosts add up, so that no image is dropped or counted twice and
padding cannot matter. After it, `classification_report` takes all labels and probabilities
with the group (patient, or set of near-duplicates) of each image and leaves plain Python
numbers, ready for JSON; rates and accuracies are in [0, 1].

Images of one patient are alike, so the groups, not the images, are what a bootstrap draws
(Davison & Hinkley, *Bootstrap Methods and their Application*, 1997, section 3.8).
"""

from collections.abc import Sequence
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
import sklearn.metrics

from ctfake_jax.types import UserError

RESAMPLES = 2000


@flax.struct.dataclass
class Sums:
  """What a set of images adds up to; `merge` is associative and commutative.

  Attributes:
    loss: f32[], summed cross-entropy in nats.
    correct: i32[], images whose largest logit is their label's.
    count: i32[], images that count.
    confusion: i32[c, c], row the label, column the prediction.
  """

  loss: jax.Array
  correct: jax.Array
  count: jax.Array
  confusion: jax.Array


def empty_sums(classes: int) -> Sums:
  """The sums of no image, where merging starts."""
  none = jnp.zeros((), jnp.int32)
  return Sums(jnp.zeros((), jnp.float32), none, none, jnp.zeros((classes, classes), jnp.int32))


def batch_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Sums:
  """Sums over the images of a batch that `mask` keeps.

  Args:
    logits: f[b, c]; rows left out by the mask may hold anything, NaN included.
    labels: i32[b] in [0, c); rows with a negative (unknown) label are left out too.
    mask: bool[b], False for padding.
  """
  chex.assert_rank([logits, labels, mask], [2, 1, 1])
  chex.assert_equal_shape_prefix([logits, labels, mask], 1)
  classes = logits.shape[1]
  kept = jnp.logical_and(mask, labels >= 0)
  # `where` and not a product: 0 * NaN is NaN, and padding may hold NaN.
  logits = jnp.where(kept[:, None], logits.astype(jnp.float32), 0.0)
  labels = jnp.where(kept, labels, 0)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  predicted = jnp.argmax(logits, axis=1)
  weights = kept.astype(jnp.float32)
  # A product of one-hot rows shards over devices as it is; a scatter would have to gather.
  true_rows = jax.nn.one_hot(labels, classes) * weights[:, None]
  confusion = true_rows.T @ jax.nn.one_hot(predicted, classes)
  return Sums(
    loss=jnp.sum(losses * weights),
    correct=jnp.sum(jnp.logical_and(predicted == labels, kept), dtype=jnp.int32),
    count=jnp.sum(kept, dtype=jnp.int32),
    confusion=confusion.astype(jnp.int32),
  )


def merge(first: Sums, second: Sums) -> Sums:
  """The sums of both sets of images together."""
  return jax.tree.map(jnp.add, first, second)


def compute(sums: Sums) -> dict[str, float]:
  """Means from sums: loss (nats per image), accuracy, balanced_accuracy, count.

  Raises:
    ValueError: no image was counted, so that there is no mean.
  """
  host = jax.device_get(sums)
  count = int(host.count)
  if not count:
    raise ValueError('no image was counted: every row was padding or had no label')
  return {
    'loss': float(host.loss) / count,
    'accuracy': int(host.correct) / count,
    'balanced_accuracy': float(np.nanmean(_recalls(host.confusion))),
    'count': count,
  }


def classification_report(
  labels: np.ndarray,
  probabilities: np.ndarray,
  *,
  groups: np.ndarray,
  class_names: Sequence[str],
  seed: int,
) -> dict[str, Any]:
  """All that is reported of a classifier on a set of images.

  Args:
    labels: int[n] in [0, c).
    probabilities: f[n, c], or any scores whose largest is the prediction.
    groups: [n], equal for images that belong together (one patient); a number or a text.
    class_names: c names, in the order of the columns.
    seed: of the bootstrap.

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
    'ci95': accuracy_interval(correct, groups, seed=seed),
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


def group_sums(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(sum of `values` f64[g], number of images int[g]) of each of the g groups."""
  _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
  return np.bincount(index, weights=values), sizes


def bootstrap_ratio(
  sums: np.ndarray, sizes: np.ndarray, *, seed: int, resamples: int = RESAMPLES
) -> np.ndarray:
  """Bootstrap draws f64[resamples] of sum(sums) / sum(sizes) over groups [g].

  Groups with the same sum and size are interchangeable, so drawing how often each kind comes
  up (a multinomial) is drawing the groups themselves, at a cost that hardly grows with g.
  """
  kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
  rng = np.random.default_rng(seed)
  totals = rng.multinomial(len(sums), counts / len(sums), size=resamples) @ kinds
  return totals[:, 0] / totals[:, 1]


def accuracy_interval(correct: np.ndarray, groups: np.ndarray, *, seed: int) -> list[float]:
  """95 % interval [low, high] of the mean of `correct` bool[n], groups being the units.

  Percentiles of a bootstrap over groups. Where all draws agree (everything right, everything
  wrong, one group) that interval would have no width and claim certainty; then it is Clopper
  & Pearson's (1934), at the effective number of images if those of a group were copies of
  each other, n^2 / sum(n_g^2) (Kish, *Survey Sampling*, 1965): with groups of one size, the
  number of groups. It errs on the wide side.

  With few groups and few errors the percentiles are too narrow: simulated at 60 patients of 4
  slices, accuracy 97 % and correlation 0.3, they cover 86 %; at 300 patients 93 %.
  """
  sums, sizes = group_sums(correct, groups)
  low, high = np.percentile(bootstrap_ratio(sums, sizes, seed=seed), [2.5, 97.5])
  if low == high:
    effective = float(sizes.sum() ** 2 / (sizes**2).sum())
    return clopper_pearson(sums.sum() / sizes.sum() * effective, effective)
  return [float(low), float(high)]


def accuracy_row(correct: np.ndarray, groups: np.ndarray, *, seed: int) -> dict[str, Any]:
  """{accuracy, ci95, n} of right answers bool[n] in groups [n]."""
  interval = accuracy_interval(correct, groups, seed=seed)
  return {'accuracy': float(np.mean(correct)), 'ci95': interval, 'n': len(correct)}


def clopper_pearson(right: float, n: float) -> list[float]:
  """Exact 95 % interval of a share of which `right` of `n` were seen (either may be broken)."""
  wrong = n - right
  low = scipy.stats.beta.ppf(0.025, right, wrong + 1) if right > 0 else 0.0
  high = scipy.stats.beta.ppf(0.975, right + 1, wrong) if wrong > 0 else 1.0
  return [float(low), float(high)]


def auroc(scores_positive: np.ndarray, scores_negative: np.ndarray) -> float:
  """Chance that a positive scores above a negative, ties counting half; inputs f[n], f[m]."""
  truth = np.repeat([1, 0], [len(scores_positive), len(scores_negative)])
  scores = np.concatenate([scores_positive, scores_negative])
  return float(sklearn.metrics.roc_auc_score(truth, scores))


def classes_auroc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
  """AUROC of column 1 for two classes, else the mean of one class against the rest.

  The mean is over the classes that occur in `labels` int[n]; None where only one does.
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


def detection_at(
  false_alarm_rate: float, scores_positive: np.ndarray, scores_negative: np.ndarray
) -> float:
  """Share of positives found when at most that share of the negatives at hand raises an alarm.

  An alarm is a score above the threshold, ties with it are none. Fewer negatives than
  1 / false_alarm_rate allow no false alarm at all: the figure is then a cautious one.
  """
  descending = np.sort(scores_negative)[::-1]
  # The small addend keeps 0.29 * 100 = 28.999... from losing an allowed alarm.
  allowed = int(np.floor(false_alarm_rate * len(descending) + 1e-9))
  if allowed >= len(descending):
    return 1.0
  return float(np.mean(np.asarray(scores_positive) > descending[allowed]))


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
