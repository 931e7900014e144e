"""From the network's features to the score: how far an image lies from reals towards some fakes.

For each family of fakes one direction (linear discriminant analysis: Fisher 1936,
doi:10.1111/j.1469-1809.1936.tb02137.x), along which what was learnt from spreads by 1 within a
kind; the score is the largest of an image's distances from the reals' centre along them. The
directions are learnt once. The centre is a site's own: on other images features move, and it with
them.
"""

import flax.linen as nn
import numpy as np
from sklearn.covariance import ledoit_wolf

from ctfake_jax.data import degrade
from ctfake_jax.detector import training
from ctfake_jax.detector.exhibits import REAL, Exhibits
from ctfake_jax.models.patch_net import DISCRIMINANT, largest_projection
from ctfake_jax.types import UserError


def fit(model: nn.Module, variables: dict, learn: Exhibits, choose: Exhibits, seed: int) -> dict:
  """The variables with a discriminant, by which the network answers from now on.

  Directions come from `learn`, the centre from the reals of `choose`. The covariance is that within
  the kinds, of the images as they are and of as many harmlessly changed ones, so that such changes
  count for little; shrunk (Ledoit & Wolf 2004).
  """
  changed = degrade.at_random(learn.images, seed)
  features, of_changed = (
    training.judge(model, variables, images)[1] for images in (learn.images, changed)
  )
  within = [_less_own_mean(found, learn.families) for found in (features, of_changed)]
  covariance = ledoit_wolf(np.concatenate(within), assume_centered=True)[0]
  apart = differences(features, learn.families)
  directions = np.linalg.solve(covariance, apart.T).T
  spread = np.sqrt((directions * apart).sum(1, keepdims=True))
  home = training.judge(model, variables, choose.of(REAL).images)[1]
  return with_discriminant(variables, home.mean(0), directions / np.maximum(spread, 1e-9))


def differences(features: np.ndarray, families: np.ndarray) -> np.ndarray:
  """Mean features of each family less those of the reals, f32[k, d], from features f32[n, d]."""
  real = features[families == REAL].mean(0)
  names = sorted(set(families) - {REAL})
  return np.stack([features[families == name].mean(0) - real for name in names])


def _less_own_mean(features: np.ndarray, families: np.ndarray) -> np.ndarray:
  _, kinds = np.unique(families.astype(str), return_inverse=True)
  means = np.stack([features[kinds == kind].mean(0) for kind in range(kinds.max() + 1)])
  return features - means[kinds]


def with_discriminant(variables: dict, centre: np.ndarray, directions: np.ndarray) -> dict:
  """The network's variables with `centre` f[d] and `directions` f[k, d]."""
  found = {'centre': centre.astype(np.float32), 'directions': directions.astype(np.float32)}
  return {**variables, DISCRIMINANT: found}


def left_out_scores(features: np.ndarray, directions: np.ndarray) -> np.ndarray:
  """Scores of reals f32[n, d], each as a new image to the centre of the others.

  The centre without image i is (n c - x_i) / (n - 1), so that every distance grows by n / (n - 1).

  Raises:
    UserError: there is one real.
  """
  count = len(features)
  if count < 2:
    raise UserError(f'{count} independent real: there must be two, or many more for low rates')
  scores = np.asarray(largest_projection(features, features.mean(0), directions))
  return scores * count / (count - 1)
