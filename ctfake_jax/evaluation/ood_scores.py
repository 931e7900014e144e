"""How unlike the training data one image looks to a classifier: three scores per image.

In go logits or features of a trained network, out comes a score of each image; higher is more
suspicious. None of them is told anything about fakes.
"""

import dataclasses

import numpy as np
import scipy.linalg
import scipy.special
import sklearn.covariance
from jaxtyping import Float, Float64, Int
from scipy.spatial.distance import cdist

from ctfake_jax.types import UserError


def max_softmax(logits: Float[np.ndarray, 'n c']) -> Float64[np.ndarray, ' n']:
  """1 - the largest softmax probability, in [0, 1 - 1/c].

  Hendrycks & Gimpel, *A Baseline for Detecting Misclassified and Out-of-Distribution Examples
  in Neural Networks*, ICLR 2017.
  """
  logits = np.asarray(logits, np.float64)
  # 1 - p rounds to 0 for every sure image, which ties them all; the sum of the others does not.
  others = np.sort(logits - logits.max(axis=1, keepdims=True), axis=1)[:, :-1]
  odds = np.exp(others).sum(axis=1)
  return odds / (1 + odds)


def energy(logits: Float[np.ndarray, 'n c']) -> Float64[np.ndarray, ' n']:
  """-log sum exp of the logits, at temperature 1; any sign.

  Liu et al., *Energy-based Out-of-distribution Detection*, NeurIPS 2020.
  """
  return -scipy.special.logsumexp(np.asarray(logits, np.float64), axis=1)


@dataclasses.dataclass(frozen=True)
class MahalanobisScore:
  """Squared Mahalanobis distance to the nearest class mean, one covariance for all classes.

  Lee et al., *A Simple Unified Framework for Detecting Out-of-Distribution Samples and
  Adversarial Attacks*, NeurIPS 2018, on one layer and without input perturbation. The
  covariance is shrunk (Ledoit & Wolf 2004), since features often outnumber images.

  Attributes:
    means: of the classes that occur in training.
    factor: lower Cholesky factor of the covariance.
  """

  means: Float64[np.ndarray, 'c d']
  factor: Float64[np.ndarray, 'd d']

  @classmethod
  def fit(
    cls, features: Float[np.ndarray, 'n d'], labels: Int[np.ndarray, ' n']
  ) -> 'MahalanobisScore':
    """Means and covariance of training features.

    Raises:
      UserError: the features do not vary within any class, or are not finite.
    """
    features = np.asarray(features, np.float64)
    classes, index = np.unique(labels, return_inverse=True)
    means = np.stack([features[index == k].mean(axis=0) for k in range(len(classes))])
    residuals = features - means[index]
    if not np.isfinite(residuals).all() or not residuals.any():
      raise UserError(
        'features: constant within every class or not finite, so they have no distance;'
        ' use a trained checkpoint and several images per class'
      )
    covariance, _ = sklearn.covariance.ledoit_wolf(residuals, assume_centered=True)
    return cls(means, np.linalg.cholesky(covariance))

  def __call__(self, features: Float[np.ndarray, 'n d']) -> Float64[np.ndarray, ' n']:
    """At least 0."""
    return cdist(self._whiten(features), self._whiten(self.means), 'sqeuclidean').min(axis=1)

  def _whiten(self, features: np.ndarray) -> np.ndarray:
    rows = np.asarray(features, np.float64).T
    return scipy.linalg.solve_triangular(self.factor, rows, lower=True).T


@dataclasses.dataclass(frozen=True)
class NeighboursScore:
  """Distance to the k-th nearest training image, features scaled to length 1.

  Sun et al., *Out-of-distribution Detection with Deep Nearest Neighbors*, ICML 2022.

  Attributes:
    reference: unit rows.
    k: at least 1; fewer training images than k: the farthest of them.
  """

  reference: Float64[np.ndarray, 'm d']
  k: int = 10

  @classmethod
  def fit(cls, features: Float[np.ndarray, 'm d']) -> 'NeighboursScore':
    """Keeps the training features."""
    return cls(_unit(features))

  def __call__(self, features: Float[np.ndarray, 'n d']) -> Float64[np.ndarray, ' n']:
    """From 0 to 2."""
    k = min(self.k, len(self.reference))
    distances = cdist(_unit(features), self.reference)
    return np.partition(distances, k - 1, axis=1)[:, k - 1]


def _unit(features: np.ndarray) -> np.ndarray:
  rows = np.asarray(features, np.float64)
  return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def image_scores(
  logits: Float[np.ndarray, 'n c'],
  features: Float[np.ndarray, 'n d'],
  mahalanobis: MahalanobisScore,
) -> dict[str, Float64[np.ndarray, ' n']]:
  """Every score by name."""
  return {
    'max_softmax': max_softmax(logits),
    'energy': energy(logits),
    'mahalanobis': mahalanobis(features),
  }
