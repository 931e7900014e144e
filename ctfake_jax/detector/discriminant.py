"""From the network's features to the score: how far an image lies from reals towards some fakes.

For each family of fakes one direction (linear discriminant analysis: Fisher 1936,
doi:10.1111/j.1469-1809.1936.tb02137.x), along which images spread by 1 within a kind; the score is
the soft maximum of an image's distances from the reals' centre along them. What fakes add to an
image is learnt once; how images spread and where their centre lies, a site's own reals say too.
"""

import dataclasses

import flax.linen as nn
import numpy as np
from sklearn.covariance import ledoit_wolf

from ctfake_jax.data.transforms import degradations
from ctfake_jax.detector import training
from ctfake_jax.detector.dataset import REAL, DetectorDataset
from ctfake_jax.models.patch_net import DISCRIMINANT

SITE_SHARE = 0.5  # of a site's own covariance in the one that its directions are made of


@dataclasses.dataclass(frozen=True)
class Learnt:
  """What directions are made of.

  Attributes:
    apart: differences of the families of fakes from reals, f32[k, d].
    covariance: within kinds, f32[d, d].
  """

  apart: np.ndarray
  covariance: np.ndarray

  @property
  def directions(self) -> np.ndarray:
    """Those at home, f[k, d]."""
    return _directions(self.apart, self.covariance)


def fit(
  model: nn.Module, variables: dict, learn: DetectorDataset, choose: DetectorDataset, seed: int
) -> tuple[dict, Learnt]:
  """The variables with a discriminant, by which the network answers from now on, and its origin.

  Directions come from `learn`, the centre from the reals of `choose`. The covariance is the mean of
  four: reals and fakes (within families), as they are and harmlessly changed, more than the network
  was in training, so that such changes count for little; each shrunk (Ledoit & Wolf 2004).
  """
  changed = degradations.at_random(learn.images, seed, wide=True)
  features, of_changed = (
    training.judge(model, variables, images)[1] for images in (learn.images, changed)
  )
  within = [_less_own_mean(found, learn.families) for found in (features, of_changed)]
  kinds = [found[learn.fake == fake] for found in within for fake in (False, True)]
  covariance = np.mean([ledoit_wolf(kind, assume_centered=True)[0] for kind in kinds], 0)
  learnt = Learnt(differences(features, learn.families), covariance)
  home = training.judge(model, variables, choose.of(REAL).images)[1]
  return with_discriminant(variables, home.mean(0), learnt.directions), learnt


def for_site(learnt: Learnt, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Centre f[d] and directions f[k, d] at a site of whose reals f[n, d] are given."""
  own = ledoit_wolf(features)[0]
  covariance = (1 - SITE_SHARE) * learnt.covariance + SITE_SHARE * own
  return features.mean(0), _directions(learnt.apart, covariance)


def _directions(apart: np.ndarray, covariance: np.ndarray) -> np.ndarray:
  directions = np.linalg.solve(covariance, apart.T).T
  spread = np.sqrt((directions * apart).sum(1, keepdims=True))
  return directions / np.maximum(spread, 1e-9)


def differences(features: np.ndarray, families: np.ndarray) -> np.ndarray:
  """Mean features of each family less those of the reals, f32[k, d], from features f32[n, d]."""
  real = features[families == REAL].mean(0)
  names = sorted(set(families) - {REAL})
  return np.stack([features[families == name].mean(0) - real for name in names])


def _less_own_mean(features: np.ndarray, families: np.ndarray) -> np.ndarray:
  _, kinds = np.unique(families.astype(str), return_inverse=True)
  means = np.stack([features[kinds == kind].mean(0) for kind in range(int(np.max(kinds)) + 1)])
  return features - means[kinds]


def with_discriminant(variables: dict, centre: np.ndarray, directions: np.ndarray) -> dict:
  """The network's variables with `centre` f[d] and `directions` f[k, d]."""
  found = {'centre': centre.astype(np.float32), 'directions': directions.astype(np.float32)}
  return {**variables, DISCRIMINANT: found}
