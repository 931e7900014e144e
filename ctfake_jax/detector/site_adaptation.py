"""Another site's reals: what an image there is judged by, though fakes may be among them.

Reals that the minimum covariance determinant (Rousseeuw 1985; Rousseeuw & Van Driessen 1999,
doi:10.1080/00401706.1999.10485670) calls outliers on the side of fakes give neither centre nor
directions, so that planted fakes do not hide themselves. Each real is scored by the others. Where
the tail of such scores begins is found by resampling: reals of the detector's making, as many at a
time, go through the same. A site's scores are supposed to be spread like theirs but for location
and scale, which are robust too: a tail of a hundred scores is one or two of them, and one planted
fake would be all of it.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float
from sklearn.covariance import MinCovDet

from ctfake_jax.detector import calibration
from ctfake_jax.detector.calibration import Threshold
from ctfake_jax.detector.discriminant import ClassStatistics, for_site
from ctfake_jax.models.patch_net import distance_towards_fakes
from ctfake_jax.runtime import progress_bar, streams
from ctfake_jax.types import UserError

FOLDS = 5  # a site's reals are judged by the rest
RESAMPLINGS = 24
TAIL = 0.05  # share of the scores, the highest, that the alarm for planted fakes looks at
DRAWS = 500  # of usual scores, that a site's are compared with
LEAST_SCALE = 1e-9
GUARANTEE = (
  'approximate: scores of these reals are supposed to be spread like those of the reals that the '
  'detector was made of, but for centre and scale'
)


@dataclasses.dataclass(frozen=True)
class SiteFit:
  """What n reals of a site give.

  Attributes:
    centre: of those that are no outliers, and so are the directions.
    scores: each real's by the others.
    shifted_scores: those of the same reals after each of m shifts.
  """

  centre: Float[np.ndarray, ' d']
  directions: Float[np.ndarray, 'k d']
  outliers: Bool[np.ndarray, ' n']
  scores: Float[np.ndarray, ' n']
  shifted_scores: Float[np.ndarray, 'n m']


def fit_site(
  class_statistics: ClassStatistics,
  features: Float[np.ndarray, 'n d'],
  shifts: Float[np.ndarray, 'm d'],
  seed: int,
) -> SiteFit:
  """From features of reals, and shifts of them towards fakes.

  Raises:
    UserError: there is one real.
  """
  outliers = outliers_towards_fakes(class_statistics, features, seed)
  scores = left_out_scores(class_statistics, features, outliers, shifts)
  return SiteFit(
    *for_site(class_statistics, features[~outliers]), outliers, scores[:, 0], scores[:, 1:]
  )


def outliers_towards_fakes(
  class_statistics: ClassStatistics, features: Float[np.ndarray, 'n d'], seed: int
) -> Bool[np.ndarray, ' n']:
  """Reals beyond the 97.5 % ellipse of most, and nearer fakes than most are.

  Ellipse and centre are the reweighted minimum covariance determinant along the source site's
  directions; where there are no two reals for each of these, or most are alike, there is none.
  """
  along = features @ class_statistics.directions.T
  spread = scipy.stats.iqr(along, axis=0)
  if len(along) <= 2 * along.shape[1] or not spread.all():
    return np.zeros(len(along), bool)
  draws = streams.seed(seed, 'minimum covariance determinant')
  robust = MinCovDet(random_state=draws).fit(along)
  scores = np.asarray(distance_towards_fakes(along, robust.location_, np.eye(along.shape[1])))
  return ~robust.support_ & (scores > np.median(scores))


def left_out_scores(
  class_statistics: ClassStatistics,
  features: Float[np.ndarray, 'n d'],
  outliers: Bool[np.ndarray, ' n'],
  shifts: Float[np.ndarray, 'm d'],
) -> Float[np.ndarray, 'n m+1']:
  """Scores of a site's reals, and of the same moved by each of the shifts.

  Each is judged by the centre and the directions of those outside its fold that are no outliers.

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
      moved[own].reshape(-1, moved.shape[2]),
      *for_site(class_statistics, features[~own & ~outliers]),
    )
    scores[own] = np.reshape(found, scores[own].shape)
  return scores


def reference_null_scores(
  class_statistics: ClassStatistics, reference: Float[np.ndarray, 'm d'], count: int, seed: int
) -> Float[np.ndarray, ' r']:
  """Standardised scores of the source site's reals, `count` at a time taken for another site's.

  Or half of them, where there are no two times as many.
  """
  parts = list(itertools.islice(_parts(len(reference), count, seed), RESAMPLINGS))
  found = []
  for part in progress_bar.bar('resampling', parts, patience=progress_bar.PATIENCE):
    own = reference[part]
    found.append(_standard(fit_site(class_statistics, own, own[:0], seed).scores))
  return np.concatenate(found)


def _parts(total: int, count: int, seed: int) -> Iterator[np.ndarray]:
  """Rows of parts of `count` or more, each row as often as any other."""
  rng = streams.generator(seed, 'rehearsals')
  while True:
    yield from np.array_split(rng.permutation(total), max(total // count, 2))


def location_and_scale(scores: Float[np.ndarray, ' n']) -> tuple[float, float]:
  """Of most of f[n], by the minimum covariance determinant, which is exact in one dimension."""
  spread = float(scipy.stats.iqr(scores))
  if not spread:
    return float(np.median(scores)), LEAST_SCALE
  robust = MinCovDet().fit(scores[:, None] / spread)
  return spread * float(robust.location_[0]), spread * float(np.sqrt(robust.covariance_[0, 0]))


def _standard(scores: np.ndarray) -> np.ndarray:
  location, scale = location_and_scale(scores)
  return (scores - location) / scale


def threshold(
  scores: Float[np.ndarray, ' n'], reference_null: Float[np.ndarray, ' r'], false_alarm_rate: float
) -> Threshold:
  """That which a share of `usual` scores exceed, on the scale of a site's scores f[n].

  The bound on this detector's own rate is Clopper & Pearson's (1934), of how many of f[n] exceed
  it.
  """
  location, scale = location_and_scale(scores)
  value = location + scale * calibration.conformal_threshold(reference_null, false_alarm_rate).value
  count, above = len(scores), int((scores > value).sum())
  bound = 1.0
  if above < count:
    bound = float(scipy.stats.beta.ppf(calibration.CONFIDENCE, above + 1, count - above))
  return Threshold(value, false_alarm_rate, count, bound, GUARANTEE)


def usual_tails(
  reference_null: Float[np.ndarray, ' r'], count: int, seed: int
) -> Float[np.ndarray, ' t']:
  """How far the highest of `count` usual scores reach, in draws of as many."""
  rng = streams.generator(seed, 'usual tails')
  return np.array([_reach(rng.choice(reference_null, count)) for _ in range(DRAWS)])


def outlier_p_value(scores: Float[np.ndarray, ' n'], tails: Float[np.ndarray, ' t']) -> float:
  """p-value of how far the highest of f[n] reach, against `usual_tails` of n scores."""
  return float((1 + np.sum(tails >= _reach(scores))) / (1 + len(tails)))


def _reach(scores: np.ndarray) -> float:
  """Mean of the highest `TAIL` of standardised scores."""
  return float(np.sort(_standard(scores))[-max(round(TAIL * len(scores)), 1) :].mean())
