"""Does accuracy fall on a batch of suspects, and by more than chance explains?

In goes, for each image, whether the classifier was right and which group (patient) the image
belongs to; a generated image is a group of its own. Out come the fall in percentage points
with its interval, an exact one-sided p-value and the words that may be said of it.

Three tests, chosen by the shape of the groups alone and never by the outcome:

- `fisher_exact`, every group one image: Fisher's exact test.
- `cluster_permutation`, all groups of one size above 1: whole groups are relabelled as
  originals or suspects. If suspects are like originals the groups are exchangeable, whatever
  the correlation within them, so that the false alarms are exact (Phipson & Smyth 2010 for
  the Monte Carlo p-value).
- `fisher_on_groups`, sizes differ: groups of different sizes vary differently, hence are not
  exchangeable even when nothing has fallen. Permuting them all the same raised up to 4 %
  false alarms at a nominal 1 % in simulation, the version divided by its standard error
  (Chung & Romano 2013) over 20 % where accuracy is near 100 %. So each group counts as one
  image that is right by the share of its images that are, as if they were copies of each
  other: a design effect (Rao & Scott 1992) at its upper bound. Originals are rounded down and
  suspects up. Cautious: it gives away power where slices of a patient vary independently.

Both tests on groups assume that a group's size says nothing of its accuracy.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

from ctfake_jax.metrics import accuracy_interval, group_sums
from ctfake_jax.types import UserError

FALSE_ALARM = 0.01
PERMUTATIONS = 9999
# Outcomes rarer than this are left out of a power; it bounds the error made.
NEGLIGIBLE = 1e-9

_Groups = tuple[np.ndarray, np.ndarray]


def fall(
  originals_correct: np.ndarray,
  originals_group: np.ndarray,
  suspects_correct: np.ndarray,
  suspects_group: np.ndarray,
  *,
  seed: int,
) -> dict[str, Any]:
  """The fall from originals to independent suspects.

  Args:
    originals_correct: bool[n], whether the classifier was right.
    originals_group: [n], the patient (or set of near-duplicates) of each image.
    suspects_correct: bool[m].
    suspects_group: [m]; names are not compared with those of the originals.
    seed: of the bootstrap and of the permutations.

  Returns:
    points (accuracy of originals - of suspects, in percentage points), ci95 of it, p_value
    (alternative: suspects are less accurate), method, accuracy_originals, accuracy_suspects,
    n_originals, n_suspects, groups_originals, groups_suspects.

  Raises:
    UserError: a sample is empty, or images and groups do not fit.
  """
  originals = _sample('originals', originals_correct, originals_group)
  suspects = _sample('suspects', suspects_correct, suspects_group)
  method, p_value = _test(originals, suspects, np.random.default_rng(seed))
  accuracies = [float(np.mean(correct)) for correct in (originals_correct, suspects_correct)]
  interval = _difference_interval(
    accuracies,
    accuracy_interval(originals_correct, originals_group),
    accuracy_interval(suspects_correct, suspects_group),
  )
  return {
    'points': 100 * (accuracies[0] - accuracies[1]),
    'ci95': interval,
    'p_value': p_value,
    'method': method,
    'accuracy_originals': accuracies[0],
    'accuracy_suspects': accuracies[1],
    'n_originals': len(originals_correct),
    'n_suspects': len(suspects_correct),
    'groups_originals': len(originals[0]),
    'groups_suspects': len(suspects[0]),
  }


def paired_fall(
  originals_correct: np.ndarray, changed_correct: np.ndarray, group: np.ndarray, *, seed: int
) -> dict[str, Any]:
  """The fall when the same images are changed (re-encoded, blurred, another scanner).

  Image i of `changed_correct` bool[n] is image i of `originals_correct` bool[n] after the
  change. The samples are not independent, so `fall` would be too blunt to see a control
  fall. Here each group's two outcomes are swapped at random; all swaps are counted, and with
  one image a group this is the exact one-sided test of McNemar (1947). Returns as `fall`.
  """
  before = np.asarray(originals_correct, bool)
  after = np.asarray(changed_correct, bool)
  if before.shape != after.shape:
    raise UserError(
      f'changed: {len(after)} images for {len(before)} originals; give each original once'
    )
  lost, gained = before & ~after, after & ~before
  changes, _ = _sample('originals', before.astype(int) - after, group)
  interval = _difference_interval(
    [float(lost.mean()), float(gained.mean())],
    accuracy_interval(lost, group),
    accuracy_interval(gained, group),
  )
  return {
    'points': 100 * float(before.mean() - after.mean()),
    'ci95': interval,
    'p_value': _sign_flip(changes),
    'method': 'sign_flip',
    'accuracy_originals': float(before.mean()),
    'accuracy_suspects': float(after.mean()),
    'n_originals': len(before),
    'n_suspects': len(after),
    'groups_originals': len(changes),
    'groups_suspects': len(changes),
  }


def images_needed(
  accuracy: float,
  originals: int,
  *,
  fall_points: Sequence[int] = (5, 10, 25, 50),
  false_alarm: float = FALSE_ALARM,
  power: float = 0.9,
  cap: int = 10_000,
) -> dict[str, int | None]:
  """Smallest batch of suspects in which Fisher's test shows each fall.

  Args:
    accuracy: on originals, in [0, 1].
    originals: how many were measured; the number of groups where groups have several images.
    fall_points: falls of interest in percentage points.
    false_alarm: level of the test.
    power: wanted chance that a fall of that size is shown.
    cap: largest batch looked at.

  Returns:
    Text of the points to the number of suspects; None where `cap` suspects are not enough
    (often too few originals are to blame) or accuracy cannot fall that far.
  """

  def batch(points: int) -> int | None:
    fallen = round(accuracy - points / 100, 12)
    if fallen < 0:
      return None
    return _first_size(
      lambda m: fisher_power(originals, m, accuracy, fallen, false_alarm) >= power, cap
    )

  return {str(points): batch(points) for points in fall_points}


def fisher_power(
  originals: int, suspects: int, accuracy: float, fallen: float, false_alarm: float
) -> float:
  """Chance that Fisher's one-sided test rejects at `false_alarm`, by counting all outcomes.

  `originals` and `suspects` are independent images, right with chance `accuracy` and `fallen`.
  """
  right_originals = _likely(originals, accuracy)
  right_suspects = _likely(suspects, fallen)
  right = np.arange(
    right_originals[0] + right_suspects[0], right_originals[-1] + right_suspects[-1] + 1
  )[:, None]
  others = right - right_originals
  possible = (others >= 0) & (others <= suspects)
  others = np.where(possible, others, 0)
  # Hypergeometric: ways to be right among originals and among suspects, out of all ways.
  ways = _log_choose(originals)[right_originals] + _log_choose(suspects)[others]
  null = np.where(possible, np.exp(ways - _log_choose(originals + suspects)[right]), 0)
  p_values = np.cumsum(null[:, ::-1], axis=1)[:, ::-1]
  chance_suspects = scipy.stats.binom.pmf(np.arange(suspects + 1), suspects, fallen)
  chances = scipy.stats.binom.pmf(right_originals, originals, accuracy) * chance_suspects[others]
  return float(chances[possible & (p_values <= false_alarm)].sum())


def verdict(
  suspects: Mapping[str, Any],
  harmless: Mapping[str, Mapping[str, Any]],
  *,
  above_chance: bool = True,
  false_alarm: float = FALSE_ALARM,
) -> str:
  """What may be said of a fall, as a key for the report's words.

  Args:
    suspects: what `fall` returned.
    harmless: name to result of `fall` or `paired_fall`, for changes that leave an image
      genuine. Fakes with random labels are not among them.
    above_chance: on originals the classifier is shown to be better than guessing.
    false_alarm: level at which a fall counts as shown.

  Returns:
    'may_be_guessing': not shown, and who guesses cannot fall: nothing is said.
    'no_fall': not shown; a valid result, and no proof that the images are genuine.
    'fall_without_controls': shown, but nothing harmless was tried.
    'fall_but_controls_fall_too': shown, but some harmless change makes accuracy fall as
      well, or was measured too coarsely to exclude a fall as deep; no proof of fakery.
    'fall': shown, and no control falls.
  """
  if suspects['p_value'] > false_alarm:
    return 'no_fall' if above_chance else 'may_be_guessing'
  if not harmless:
    return 'fall_without_controls'
  for control in harmless.values():
    if control['p_value'] <= false_alarm or control['ci95'][1] >= suspects['points']:
      return 'fall_but_controls_fall_too'
  return 'fall'


def _sample(name: str, values: np.ndarray, group: np.ndarray) -> _Groups:
  """Sums and sizes of the groups of one sample, checked."""
  values, group = np.asarray(values), np.asarray(group)
  if not len(values) or values.shape != group.shape or values.ndim != 1:
    raise UserError(
      f'{name}: {values.shape} images with {group.shape} groups; give at least one image and'
      ' one group for each'
    )
  return group_sums(values, group)


def _test(originals: _Groups, suspects: _Groups, rng: np.random.Generator) -> tuple[str, float]:
  """Method and one-sided p-value; each sample is (right answers, images) of its groups."""
  sizes = np.union1d(originals[1], suspects[1])
  if len(sizes) == 1 and sizes[0] > 1:
    return 'cluster_permutation', _permute(originals[0], suspects[0], rng)
  right_originals = math.floor((originals[0] / originals[1]).sum() + 1e-9)
  right_suspects = math.ceil((suspects[0] / suspects[1]).sum() - 1e-9)
  table = [
    [right_originals, len(originals[0]) - right_originals],
    [right_suspects, len(suspects[0]) - right_suspects],
  ]
  method = 'fisher_exact' if sizes[-1] == 1 else 'fisher_on_groups'
  return method, float(scipy.stats.fisher_exact(table, alternative='greater').pvalue)


def _permute(originals: np.ndarray, suspects: np.ndarray, rng: np.random.Generator) -> float:
  """Chance of at least so many right among originals if groups are relabelled at random.

  With groups of one size the sum over originals orders relabellings as the difference of
  accuracies does. Every relabelling is counted where they are few, else a random sample of
  them together with the one observed.
  """
  right, take = np.concatenate([originals, suspects]), len(originals)
  observed = originals.sum()
  if math.comb(len(right), take) <= PERMUTATIONS:
    chosen = np.array(list(itertools.combinations(range(len(right)), take)))
    return float(np.mean(right[chosen].sum(axis=1) >= observed))
  kinds, counts = np.unique(right, return_counts=True)
  sums = rng.multivariate_hypergeometric(counts, take, PERMUTATIONS, method='marginals') @ kinds
  return float((1 + np.sum(sums >= observed)) / (1 + PERMUTATIONS))


def _sign_flip(changes: np.ndarray) -> float:
  """P(sum of +-changes >= the sum observed), signs fair coins; `changes` whole numbers [g]."""
  steps = np.abs(changes).astype(int)
  # chances[s]: that the changes whose sign falls positive add up to s.
  chances = np.zeros(steps.sum() + 1)
  chances[0] = 1
  for step in steps[steps > 0]:
    chances[step:] += chances[: len(chances) - step].copy()
    chances /= 2
  return float(min(1, chances[int(changes[changes > 0].sum()) :].sum()))


def _difference_interval(
  shares: Sequence[float], first: Sequence[float], second: Sequence[float]
) -> list[float]:
  """95 % interval, in points, of the difference of two shares from the interval of each.

  Newcombe's hybrid (1998, method 10; Zou & Donner 2008): unlike a bootstrap of the
  difference it keeps its width where one of the shares is 0 or 1.
  """
  difference = shares[0] - shares[1]
  below = math.hypot(shares[0] - first[0], second[1] - shares[1])
  above = math.hypot(first[1] - shares[0], shares[1] - second[0])
  return [100 * (difference - below), 100 * (difference + above)]


def _likely(n: int, chance: float) -> np.ndarray:
  """The counts of a binomial that are not negligible, ascending."""
  low, high = scipy.stats.binom.ppf([NEGLIGIBLE, 1 - NEGLIGIBLE], n, chance)
  return np.arange(max(int(low), 0), int(high) + 1)


def _log_choose(n: int) -> np.ndarray:
  """Logarithm of n over k, for k = 0..n."""
  factorials = scipy.special.gammaln(np.arange(n + 1) + 1)
  return factorials[-1] - factorials - factorials[::-1]


def _first_size(enough: Callable[[int], bool], cap: int) -> int | None:
  """Smallest size in 1..cap that is enough, for a power that rises as a saw-tooth.

  Sizes growing by a tenth find the region; then every size is tried from two steps before it,
  more than a tooth of the saw reaches back.
  """
  sizes = [1]
  while not enough(sizes[-1]):
    if sizes[-1] == cap:
      return None
    sizes.append(min(cap, max(sizes[-1] + 1, sizes[-1] * 11 // 10)))
  start = sizes[max(len(sizes) - 3, 0)]
  return next(size for size in range(start, sizes[-1] + 1) if enough(size))
