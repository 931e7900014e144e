"""From images to at most 64 whitened features: the eye of the texture Fréchet distance (not FID).

The kernel distance sees by it, too.

In: square images in [-1, 1]. Out: features.

An extractor is fitted once, on a reference of its own (phantom images), never on the fakes nor on
the reals that they are held against: so no run can bend its own reference. The fit is a principal
component analysis with unit variance. Whitened, all 64 directions count; unwhitened, the two or
three that vary most make up nearly all of the distance, and blur or noise hide behind them.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Float64
from scipy.linalg import toeplitz

from ctfake_jax.runtime import batching

MAX_DIMENSIONS = 64
# Squared grey difference below which texture does not count: sd of 1.6 % of the grey range.
_TEXTURE_FLOOR = 1e-3

Features = Callable[[Float32[np.ndarray, 'n h h 1']], Float[np.ndarray, 'n D']]


@runtime_checkable
class Extractor(Protocol):
  """A named map from images to features, d <= 64."""

  @property
  def name(self) -> str:
    """What a result cites."""

  def __call__(self, images: Float32[np.ndarray, 'n h h 1']) -> Float[np.ndarray, 'n d']:
    """Features of each image."""


@dataclasses.dataclass(frozen=True)
class WhitenedExtractor:
  """Raw features of one or more kinds, each centred and projected as fitted.

  Attributes:
    name: what a result cites, such as 'texture + phantom encoder, 64'.
    parts: (features, center f64[D], projection f64[D, d]) of each kind.
  """

  name: str
  parts: tuple[tuple[Features, Float64[np.ndarray, ' _'], Float64[np.ndarray, '_ _']], ...]

  def __call__(self, images: Float32[np.ndarray, 'n h h 1']) -> Float64[np.ndarray, 'n d']:
    """The parts side by side."""
    return np.concatenate(
      [
        (np.asarray(features(images), np.float64) - center) @ projection
        for features, center, projection in self.parts
      ],
      axis=1,
    )


def reduce_dimensions(
  reference: Float[np.ndarray, 'n D'], dims: int = MAX_DIMENSIONS
) -> tuple[Float64[np.ndarray, ' D'], Float64[np.ndarray, 'D d']]:
  """Centre and whitening projection onto the leading principal components of a reference.

  Args:
    reference: of images that are neither fakes nor the reals to be compared with; a thousand or
      more for 64 dimensions.
    dims: at most this many; fewer where the reference varies in fewer.

  Returns:
    (center, projection): (x - center) @ projection has mean 0 and covariance 1 on the reference.
  """
  reference = np.asarray(reference, np.float64)
  center = reference.mean(0)
  values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(reference, rowvar=False)))
  values, vectors = values[::-1][:dims], vectors[:, ::-1][:, :dims]
  kept = values > 1e-8 * values[0]
  if not kept.any():
    raise ValueError('the reference does not vary: give different images')
  return center, vectors[:, kept] / np.sqrt(values[kept])


def fit_extractor(
  name: str,
  features: Sequence[Features],
  reference: Float32[np.ndarray, 'n h h 1'],
  dims: int = MAX_DIMENSIONS,
) -> WhitenedExtractor:
  """An extractor of `dims` dimensions, shared equally among the kinds of features.

  Args:
    name: what a result cites.
    features: of each kind, callables on images.
    reference: in [-1, 1], the extractor's own images.
    dims: in all, at most 64.
  """
  if not len(features) <= dims <= MAX_DIMENSIONS:
    raise ValueError(f'dims must be from {len(features)} to {MAX_DIMENSIONS}, not {dims}')
  share = dims // len(features)
  parts = [(each, *reduce_dimensions(each(reference), share)) for each in features]
  return WhitenedExtractor(name, tuple(parts))


def texture_features(images: Float32[np.ndarray, 'n h w 1']) -> Float32[np.ndarray, 'n D']:
  """Grey and texture on a coarse grid at each octave: features that need no training.

  At each octave down to 8 px, the log energy of the band-pass and of both gradients in 4 x 4 cells
  (2 x 2 at 8 px), then the grey of 4 x 4 cells. They see what trained encoders learn to ignore
  (noise, blur) and where it is.

  Args:
    images: square, in [-1, 1], the side a power of two, at least 16.

  Returns:
    D = 124 at 32 px, 172 at 64 px.
  """
  side = images.shape[1]
  if side != images.shape[2] or side < 16 or side & (side - 1):
    raise ValueError(f'texture needs square images of 16, 32, 64, ... px, not {images.shape[1:3]}')
  return batching.map_batches(lambda _, number, batch: _textures(batch), (), images[..., 0])


@jax.jit
@jax.vmap
def _textures(image: jax.Array) -> jax.Array:
  found = []
  while (side := image.shape[0]) >= 8:
    smooth = _smoothing(side)
    low = jnp.matmul(jnp.matmul(smooth, image, precision='highest'), smooth.T, precision='highest')
    down, across = jnp.diff(image, axis=0), jnp.diff(image, axis=1)
    cells = 4 if side >= 16 else 2
    for energy in (
      (image - low) ** 2,
      jnp.pad(down**2, ((0, 1), (0, 0))),
      jnp.pad(across**2, ((0, 0), (0, 1))),
    ):
      found.append(jnp.log(_cells(energy, cells) + _TEXTURE_FLOOR))
    image = low[::2, ::2]
  return jnp.concatenate([*found, _cells(image, 4)])


@functools.cache
def _smoothing(side: int) -> np.ndarray:
  """f32[side, side]: binomial smoothing 1 4 6 4 1 that keeps constants at the edges."""
  first_row = np.zeros(side, np.float32)
  first_row[:3] = 6.0, 4.0, 1.0
  matrix = toeplitz(first_row)
  return matrix / matrix.sum(1, keepdims=True)


def _cells(image: jax.Array, cells: int) -> jax.Array:
  size = image.shape[0] // cells
  return image.reshape(cells, size, cells, size).mean((1, 3)).ravel()
