"""Does accuracy fall on a batch of images under test, and by more than chance explains?

In goes, for each image, whether the classifier was right and which group (patient) the image
belongs to; a generated image is a group of its own. Out come the fall in percentage points with
its 99 % interval, and the words that may be said of it. The verdict is read off these intervals
and nothing else.

One method throughout: each sample's accuracy has the interval of `metrics.share_interval`, which
estimates the design effect of groups, and the interval of the difference follows from the two
(MOVER: Newcombe 1998, method 10; Zou & Donner 2008). A fall is shown where the whole interval lies
above 0. Two-sided 99 % are nominally 0.5 % false alarms of a fall; 1 % is promised, and held in
simulation (tests/evaluation/test_accuracy_drop.py).

One power throughout: a verdict sets the fakes' fall against the falls that harmless changes cause,
which is fair only if either would be seen as soon as the other. So held-out patients are parted
in two halves. The reference half, as it is, stands against the fakes and against the control half
after each change; and as many fakes are drawn as the control half's images are worth if they were
independent, after the change that leaves fewest right (where there are fewer fakes, fewer
control patients are drawn). Both comparisons are then of independent samples, with the same
reference and as much doubt. (Comparing changed images with themselves, image by image, would see
a fall of a few points where the fakes' fall of the same depth is lost in the noise.) The price is
power: what it takes is in `required_sample_size`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize
import scipy.stats
from jaxtyping import Bool, Shaped

from ctfake_jax.evaluation import metrics
from ctfake_jax.runtime import streams
from ctfake_jax.types import UserError

CONFIDENCE = 0.99
# The smallest p-value that is told apart from 0.
LEAST_P = 1e-6
# Outcomes rarer than this are left out of a power; it bounds the error made.
NEGLIGIBLE = 1e-9

_Groups = tuple[np.ndarray, np.ndarray]


def trial(
  originals_correct: Bool[np.ndarray, ' n'],
  groups: Shaped[np.ndarray, ' n'],
  control_half: Bool[np.ndarray, ' n'],
  fakes_correct: Bool[np.ndarray, ' m'],
  changed_correct: Mapping[str, Bool[np.ndarray, ' k']],
  *,
  seed: int,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
  """The fall of fakes and those of harmless changes, found with equal power.

  Args:
    originals_correct: held-out originals.
    groups: the patient (or set of near-duplicates) of each.
    control_half: True for images of patients that controls are measured on.
    fakes_correct: whether the classifier was right on each fake.
    changed_correct: name of a change to the control half after it, in order.
    seed: of the draw of fakes, or of control patients, until one is worth as much as the other.

  Returns:
    What `measure` returns for the fakes, and by name for each change.

  Raises:
    UserError: a half is empty, or images and groups do not fit.
  """
  correct, groups = np.asarray(originals_correct, bool), np.asarray(groups)
  reference = correct[~control_half], groups[~control_half]
  others, rng = groups[control_half], streams.generator(seed, 'equal worth')
  fakes, patients = np.asarray(fakes_correct, bool), np.unique(others)
  after_all = correct[control_half], *changed_correct.values()
  # Two or three patients are worth less than one independent image.
  enough = max(1, int(worth(min(after_all, key=np.mean), others)))
  fakes = fakes[np.sort(rng.permutation(len(fakes))[:enough])]
  kept = math.ceil(len(patients) * min(1, len(fakes) / enough))
  rows = np.isin(others, rng.permutation(patients)[:kept])
  controls = {
    name: measure(*reference, np.asarray(after)[rows], others[rows])
    for name, after in changed_correct.items()
  }
  return measure(*reference, fakes, np.arange(len(fakes))), controls


def measure(
  originals_correct: Bool[np.ndarray, '...'],
  originals_group: Shaped[np.ndarray, '...'],
  tested_correct: Bool[np.ndarray, '...'],
  tested_group: Shaped[np.ndarray, '...'],
) -> dict[str, Any]:
  """The fall from originals to independent tested images.

  Args:
    originals_correct: [n], whether the classifier was right.
    originals_group: [n], the patient (or set of near-duplicates) of each image.
    tested_correct: [m].
    tested_group: [m]; names are not compared with those of the originals.

  Returns:
    points (accuracy of originals - of the tested, in percentage points), ci99 of it, p_value (two-
    sided: how much confidence must be given up until the interval no longer holds 0), and, for
    `originals` and `tested`, accuracy, ci95, n and groups.

  Raises:
    UserError: a sample is empty, or images and groups do not fit.
  """
  originals = _sample('originals', originals_correct, originals_group)
  tested = _sample('tested', tested_correct, tested_group)
  difference = _share(originals) - _share(tested)
  return {
    'points': 100 * difference,
    'ci99': [100 * bound for bound in _interval(originals, tested, CONFIDENCE)],
    'p_value': _p_value(originals, tested),
    'originals': _described(originals),
    'tested': _described(tested),
  }


def worth(correct: Bool[np.ndarray, ' n'], groups: Shaped[np.ndarray, ' n']) -> float:
  """How many independent images tell as much as `correct` in `groups` do."""
  return metrics.effective_images(*_sample('originals', correct, groups), CONFIDENCE)


def difference_interval(
  shares: tuple[float, float], first: Sequence[float], second: Sequence[float]
) -> tuple[float, float]:
  """Interval of shares[0] - shares[1] from the interval [low, high] of each.

  Newcombe's rule: unlike a bootstrap of the difference it keeps its width where one of the shares
  is 0 or 1.
  """
  difference = shares[0] - shares[1]
  below = math.hypot(shares[0] - first[0], second[1] - shares[1])
  above = math.hypot(first[1] - shares[0], shares[1] - second[0])
  return difference - below, difference + above


def required_sample_size(
  accuracy: float,
  originals: float,
  *,
  fall_points: Sequence[int] = (5, 10, 25, 50),
  power: float = 0.9,
  cap: int = 10_000,
) -> dict[str, int | None]:
  """Smallest batch of tested images in which each fall is shown.

  Args:
    accuracy: on originals, in [0, 1].
    originals: how many independent ones were measured, or are they `worth`.
    fall_points: falls of interest in percentage points.
    power: wanted chance that a fall of that size is shown.
    cap: largest batch looked at.

  Returns:
    Text of the points to the number of tested images; None where `cap` of them are not enough
    (often too few originals are to blame) or accuracy cannot fall that far.
  """

  def batch(points: int) -> int | None:
    fallen = round(accuracy - points / 100, 12)
    if fallen < 0:
      return None
    return _first_size(
      lambda m: power_of(max(1, int(originals)), m, accuracy, fallen) >= power, cap
    )

  return {str(points): batch(points) for points in fall_points}


def power_of(originals: int, tested: int, accuracy: float, fallen: float) -> float:
  """Chance that a fall is shown, by counting all outcomes.

  `originals` and `tested` are independent images, right with chance `accuracy` and `fallen`.
  """
  before, after = _likely(originals, accuracy), _likely(tested, fallen)
  low, _ = metrics.clopper_pearson(before, originals, CONFIDENCE)
  _, high = metrics.clopper_pearson(after, tested, CONFIDENCE)
  shares = before[:, None] / originals, after / tested
  shown = shares[0] - shares[1] > np.hypot(shares[0] - low[:, None], high - shares[1])
  chances = scipy.stats.binom.pmf(before, originals, accuracy)
  return float(chances @ shown @ scipy.stats.binom.pmf(after, tested, fallen))


def verdict(
  tested: Mapping[str, Any],
  harmless: Mapping[str, Mapping[str, Any]],
  *,
  above_chance: bool = True,
) -> str:
  """What may be said of a fall, as a key for the report's words.

  Args:
    tested: what `measure` returned.
    harmless: name to result of `measure`, for changes that leave an image genuine. Fakes with
      random labels are not among them.
    above_chance: on originals the classifier is shown to be better than guessing.

  Returns:
    'may_be_guessing': not shown, and who guesses cannot fall: nothing is said.
    'no_fall': not shown; a valid result, and no proof that the images are genuine.
    'fall_without_controls': shown, but nothing harmless was tried.
    'fall_but_controls_fall_too': shown, but some harmless change makes accuracy fall as
      well, or was measured too coarsely to exclude a fall as deep; no proof of fakery.
    'fall': shown, and no control falls.
  """
  if not is_shown(tested):
    return 'no_fall' if above_chance else 'may_be_guessing'
  if not harmless:
    return 'fall_without_controls'
  for control in harmless.values():
    if is_shown(control) or control['ci99'][1] >= tested['points']:
      return 'fall_but_controls_fall_too'
  return 'fall'


def is_shown(result: Mapping[str, Any]) -> bool:
  """Whether the whole interval of what `measure` returned lies above 0."""
  return result['ci99'][0] > 0


def _sample(name: str, values: np.ndarray, group: np.ndarray) -> _Groups:
  """Right answers and images of the groups of one sample, checked."""
  values, group = np.asarray(values), np.asarray(group)
  if not len(values) or values.shape != group.shape or values.ndim != 1:
    raise UserError(
      f'{name}: {values.shape} images with {group.shape} groups; give at least one image and'
      ' one group for each'
    )
  return metrics.group_sums(values, group)


def _share(sample: _Groups) -> float:
  return float(np.sum(sample[0])) / float(np.sum(sample[1]))


def _described(sample: _Groups) -> dict[str, Any]:
  return {
    'accuracy': _share(sample),
    'ci95': metrics.share_interval(*sample),
    'n': int(sample[1].sum()),
    'groups': len(sample[1]),
  }


def _interval(originals: _Groups, tested: _Groups, confidence: float) -> tuple[float, float]:
  return difference_interval(
    (_share(originals), _share(tested)),
    metrics.share_interval(*originals, confidence),
    metrics.share_interval(*tested, confidence),
  )


def _p_value(originals: _Groups, tested: _Groups) -> float:
  """1 - the highest confidence at which the interval does not hold 0, at least LEAST_P."""
  difference = _share(originals) - _share(tested)

  def margin(p: float) -> float:
    low, high = _interval(originals, tested, 1 - p)
    return low if difference > 0 else -high

  if difference == 0 or margin(1 - LEAST_P) <= 0:
    return 1.0
  if margin(LEAST_P) > 0:
    return LEAST_P
  return float(scipy.optimize.brentq(margin, LEAST_P, 1 - LEAST_P, xtol=1e-9, rtol=1e-4))


def _likely(n: int, chance: float) -> np.ndarray:
  """The counts of a binomial that are not negligible, ascending."""
  low, high = scipy.stats.binom.ppf([NEGLIGIBLE, 1 - NEGLIGIBLE], n, chance)
  return np.arange(max(int(low), 0), int(high) + 1)


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
