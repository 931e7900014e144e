"""Harmless changes of real images: what makes a classifier fall without any fakery.

Each takes and returns images in [-1, 1].
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from ctfake_jax.data.preprocess import from_uint8, to_uint8
from ctfake_jax.data.transforms import file_degradations
from ctfake_jax.runtime import streams

JPEG_QUALITY = 75
BLUR_SIGMA_PIXELS = 1.0
NOISE_SHARE = 0.05  # of the range, standard deviation


def through_png(images: Float32[np.ndarray, 'n h w 1']) -> Float32[np.ndarray, 'n h w 1']:
  """The 8-bit rounding that every stored fake has been through."""
  return from_uint8(to_uint8(images))


def jpeg(images: Float32[np.ndarray, 'n h w 1'], seed: int) -> Float32[np.ndarray, 'n h w 1']:
  """Encoded at quality 75 and decoded."""
  del seed
  return _each(lambda levels: file_degradations.jpeg(levels, JPEG_QUALITY), images)


def blurred(images: Float32[np.ndarray, 'n h w 1'], seed: int) -> Float32[np.ndarray, 'n h w 1']:
  """Gaussian of one pixel."""
  del seed
  return _each(lambda levels: file_degradations.blurred(levels, BLUR_SIGMA_PIXELS), images)


def noisy(images: Float32[np.ndarray, 'n h w 1'], seed: int) -> Float32[np.ndarray, 'n h w 1']:
  """White noise of a twentieth of the range."""
  rng = streams.generator(seed, 'noise')
  return _each(lambda levels: file_degradations.noisy(levels, NOISE_SHARE, rng), images)


def _each(change: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
  changed = [change((image + 1) / 2) for image in images[..., 0]]
  return (2 * np.stack(changed) - 1)[..., None].astype(np.float32)


CONTROLS: dict[
  str, Callable[[Float32[np.ndarray, 'n h w 1'], int], Float32[np.ndarray, 'n h w 1']]
] = {
  'jpeg_75': jpeg,
  'blur_1px': blurred,
  'noise': noisy,
}
