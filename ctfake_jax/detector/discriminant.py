"""From the network's features to the score: how far an image lies from reals towards some fakes.

For each family of fakes one direction (linear discriminant analysis: Fisher 1936,
doi:10.1111/j.1469-1809.1936.tb02137.x), along which images spread by 1 within a kind; the score is
the soft maximum of an image's distances from the reals' centre along them. What fakes add to an
image is learnt once; how images spread and where their centre lies, a site's own reals say too.
"""

import dataclasses

import flax.linen as nn
import numpy as np
from jaxtyping import Float, Shaped
from sklearn.covariance import ledoit_wolf

from ctfake_jax.data.transforms import degradations
from ctfake_jax.detector import training
from ctfake_jax.detector.dataset import REAL, DetectorDataset
from ctfake_jax.models.patch_net import DISCRIMINANT

SITE_SHARE = 0.5  # of a site's own covariance in the one that its directions are made of


@dataclasses.dataclass(frozen=True)
class ClassStatistics:
  """What directions are made of.

  Attributes:
    mean_differences: of the families of fakes from reals.
    covariance: within kinds.
  """

  mean_differences: Float[np.ndarray, 'k d']
  covariance: Float[np.ndarray, 'd d']

  @property
  def directions(self) -> Float[np.ndarray, 'k d']:
    """Those of the source site."""
    return _directions(self.mean_differences, self.covariance)


def fit_discriminant(
  model: nn.Module, variables: dict, train: DetectorDataset, validation: DetectorDataset, seed: int
) -> tuple[dict, ClassStatistics]:
  """The variables with a discriminant, by which the network answers from now on, and its origin.

  Directions come from `train`, the centre from the reals of `validation`. The covariance is the
  mean of four: reals and fakes (within families), as they are and harmlessly changed, more than the
  network was in training, so that such changes count for little; each shrunk (Ledoit & Wolf 2004).
  """
  changed = degradations.at_random(train.images, seed, wide=True)
  features, of_changed = (
    training.predict(model, variables, images)[1] for images in (train.images, changed)
  )
  within = [_less_own_mean(found, train.families) for found in (features, of_changed)]
  kinds = [found[train.fake == fake] for found in within for fake in (False, True)]
  covariance = np.mean([ledoit_wolf(kind, assume_centered=True)[0] for kind in kinds], 0)
  class_statistics = ClassStatistics(differences(features, train.families), covariance)
  source_reals = training.predict(model, variables, validation.of(REAL).images)[1]
  return with_discriminant(
    variables, source_reals.mean(0), class_statistics.directions
  ), class_statistics


def for_site(
  class_statistics: ClassStatistics, features: Float[np.ndarray, 'n d']
) -> tuple[Float[np.ndarray, ' d'], Float[np.ndarray, 'k d']]:
  """Centre and directions at a site, of whose reals the features are given."""
  own = ledoit_wolf(features)[0]
  covariance = (1 - SITE_SHARE) * class_statistics.covariance + SITE_SHARE * own
  return features.mean(0), _directions(class_statistics.mean_differences, covariance)


def _directions(mean_differences: np.ndarray, covariance: np.ndarray) -> np.ndarray:
  directions = np.linalg.solve(covariance, mean_differences.T).T
  spread = np.sqrt((directions * mean_differences).sum(1, keepdims=True))
  return directions / np.maximum(spread, 1e-9)


def differences(
  features: Float[np.ndarray, 'n d'], families: Shaped[np.ndarray, ' n']
) -> Float[np.ndarray, 'k d']:
  """Mean features of each family less those of the reals."""
  real = features[families == REAL].mean(0)
  names = sorted(set(families) - {REAL})
  return np.stack([features[families == name].mean(0) - real for name in names])


def _less_own_mean(features: np.ndarray, families: np.ndarray) -> np.ndarray:
  _, kinds = np.unique(families.astype(str), return_inverse=True)
  means = np.stack([features[kinds == kind].mean(0) for kind in range(int(np.max(kinds)) + 1)])
  return features - means[kinds]


def with_discriminant(
  variables: dict, centre: Float[np.ndarray, ' d'], directions: Float[np.ndarray, 'k d']
) -> dict:
  """The network's variables with `centre` and `directions`."""
  found = {'centre': centre.astype(np.float32), 'directions': directions.astype(np.float32)}
  return {**variables, DISCRIMINANT: found}
