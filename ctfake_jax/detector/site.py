"""Another site's reals: what an image there is judged by, though fakes may be among them.

The few that lie furthest towards fakes are suspects: neither centre nor directions are made of
them, so that planted fakes do not hide themselves. Each real is scored by the others. Where the
tail of such scores begins is learnt in rehearsals: reals of the detector's making, as many at a
time, go through the same. A site's scores are supposed to be spread like theirs but for centre and
scale, which the middle of the scores gives: a tail of a hundred scores is one or two of them, and
one planted fake would be all of it. If more than usual lie far out, those too many count nowhere.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import scipy.stats

from ctfake_jax import progress, streams
from ctfake_jax.detector import calibration
from ctfake_jax.detector.calibration import Threshold
from ctfake_jax.detector.discriminant import Learnt, for_site
from ctfake_jax.models.patch_net import distance_towards_fakes
from ctfake_jax.types import UserError

FOLDS = 5  # a site's reals are judged by the rest
SUSPECTS = 0.07  # share of the reals
FAR_OUT = 0.05  # share of usual scores
ROUNDS = 2  # suspects are found anew without the first ones
REHEARSALS = 24
MIDDLE = np.linspace(0.1, 0.9, 17)  # quantiles
DRAWS = 2000  # of usual scores, that a site's are compared with
GUARANTEE = (
  'approximate: scores of these reals are supposed to be spread like those of the reals that the '
  'detector was made of, but for centre and scale'
)


@dataclasses.dataclass(frozen=True)
class Fit:
  """What n reals of a site give.

  Attributes:
    centre: f[d], directions: f[k, d], of those that are no suspects.
    suspects: bool[n].
    scores: f[n], each real's by the others.
    supposed: f[n, m], those of the same reals after each of m shifts.
  """

  centre: np.ndarray
  directions: np.ndarray
  suspects: np.ndarray
  scores: np.ndarray
  supposed: np.ndarray


def fit(
  learnt: Learnt, features: np.ndarray, shifts: np.ndarray, usual: np.ndarray | None = None
) -> Fit:
  """From features f[n, d] of reals and shifts f[m, d]; `usual` scores where those are known.

  Raises:
    UserError: there is one real.
  """
  suspects = np.zeros(len(features), bool)
  for _ in range(ROUNDS):
    scores = left_out_scores(learnt, features, suspects, shifts[:0])[:, 0]
    surplus = 0 if usual is None else _surplus(scores, usual)
    suspects = np.zeros(len(features), bool)
    suspects[np.argsort(-scores)[: surplus + _few(len(features) - surplus)]] = True
  scores = left_out_scores(learnt, features, suspects, shifts)
  return Fit(*for_site(learnt, features[~suspects]), suspects, scores[:, 0], scores[:, 1:])


def left_out_scores(
  learnt: Learnt, features: np.ndarray, suspects: np.ndarray, shifts: np.ndarray
) -> np.ndarray:
  """Scores f[n, 1 + m] of a site's reals f[n, d], and of the same moved by each of f[m, d].

  Each is judged by the centre and the directions of those outside its fold that are no suspects.

  Raises:
    UserError: there is one real.
  """
  count = len(features)
  if count < 2:
    raise UserError(f'{count} independent real: there must be two, or many more for low rates')
  moved = features[:, None] + np.concatenate([np.zeros((1, features.shape[1])), shifts])[None]
  scores = np.empty(moved.shape[:2], np.float32)
  for fold in range(min(count, FOLDS)):
    own = np.arange(count) % FOLDS == fold
    found = distance_towards_fakes(
      moved[own].reshape(-1, moved.shape[2]), *for_site(learnt, features[~own & ~suspects])
    )
    scores[own] = np.reshape(found, scores[own].shape)
  return scores


def usual_scores(learnt: Learnt, reference: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Scores of reals f[m, d] of the making, `count` of them at a time taken for a site's; standard.

  Or half of them, where there are no two times as many.
  """
  parts = list(itertools.islice(_parts(len(reference), count, seed), REHEARSALS))
  found = []
  for part in progress.bar('rehearsals', parts, patience=progress.PATIENCE):
    own = reference[part]
    scores = fit(learnt, own, own[:0]).scores
    centre, scale = middle(scores)
    found.append((scores - centre) / scale)
  return np.concatenate(found)


def _parts(total: int, count: int, seed: int) -> Iterator[np.ndarray]:
  """Rows of parts of `count` or more, each row as often as any other."""
  rng = streams.generator(seed, 'rehearsals')
  while True:
    yield from np.array_split(rng.permutation(total), max(total // count, 2))


def middle(scores: np.ndarray, usual: np.ndarray | None = None) -> tuple[float, float]:
  """Centre and scale of f[n], that neither tail moves, nor more in it than in `usual` scores."""
  if usual is not None:
    scores = np.sort(scores)[: len(scores) - _surplus(scores, usual)]
  quantiles = np.quantile(scores, MIDDLE)
  return float(quantiles.mean()), float(max(quantiles.std(), 1e-9))


def _surplus(scores: np.ndarray, usual: np.ndarray) -> int:
  """How many more of f[n], half at most, lie as far out as a share `FAR_OUT` of usual ones."""
  far, expected = np.quantile(usual, 1 - FAR_OUT), round(FAR_OUT * len(scores))
  surplus = 0
  for _ in range(ROUNDS):
    centre, scale = middle(np.sort(scores)[: len(scores) - surplus])
    beyond = int(((scores - centre) / scale > far).sum())
    surplus = min(max(beyond - expected, 0), len(scores) // 2)
  return surplus


def threshold(scores: np.ndarray, usual: np.ndarray, false_alarm_rate: float) -> Threshold:
  """That which a share of `usual` scores exceed, on the scale of a site's scores f[n].

  The bound on this detector's own rate is Clopper & Pearson's (1934), of how many of f[n] exceed
  it.
  """
  centre, scale = middle(scores, usual)
  value = centre + scale * calibration.conformal_threshold(usual, false_alarm_rate).value
  count, above = len(scores), int((scores > value).sum())
  bound = 1.0
  if above < count:
    bound = float(scipy.stats.beta.ppf(calibration.CONFIDENCE, above + 1, count - above))
  return Threshold(value, false_alarm_rate, count, bound, GUARANTEE)


def apart(scores: np.ndarray, usual: np.ndarray, seed: int) -> float:
  """p-value of the mean of the highest `FAR_OUT` of f[n] against draws of as many usual scores."""
  rng, few = streams.generator(seed, 'usual tails'), max(round(FAR_OUT * len(scores)), 1)

  def reach(own):
    centre, scale = middle(own)
    return (np.sort(own)[-few:].mean() - centre) / scale

  seen = reach(scores)
  further = sum(reach(rng.choice(usual, len(scores))) >= seen for _ in range(DRAWS))
  return float((1 + further) / (1 + DRAWS))


def _few(count: int) -> int:
  return round(SUSPECTS * count)
