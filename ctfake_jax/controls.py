"""Harmless changes of real images: what makes a classifier fall without any fakery.

Each takes and returns f32[n, h, w, 1] in [-1, 1].
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from ctfake_jax import streams
from ctfake_jax.data.preprocess import from_uint8, to_uint8

JPEG_QUALITY = 75
BLUR_SIGMA_PIXELS = 1.0
NOISE_STANDARD_DEVIATION = 0.1


def through_png(images: np.ndarray) -> np.ndarray:
  """The 8-bit rounding that every stored fake has been through."""
  return from_uint8(to_uint8(images))


def jpeg(images: np.ndarray, seed: int) -> np.ndarray:
  """Encoded at quality 75 and decoded."""
  del seed
  return np.stack([from_uint8(_jpeg_round_trip(image)) for image in to_uint8(images[..., 0])])[
    ..., None
  ]


def blurred(images: np.ndarray, seed: int) -> np.ndarray:
  """Gaussian of one pixel."""
  del seed
  return ndimage.gaussian_filter(images, (0, BLUR_SIGMA_PIXELS, BLUR_SIGMA_PIXELS, 0))


def noisy(images: np.ndarray, seed: int) -> np.ndarray:
  """White noise of a twentieth of the range."""
  noise = streams.generator(seed, 'noise').normal(0, NOISE_STANDARD_DEVIATION, images.shape)
  return (images + noise).clip(-1, 1).astype(np.float32)


CONTROLS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
  'jpeg_75': jpeg,
  'blur_1px': blurred,
  'noise': noisy,
}


def _jpeg_round_trip(pixels: np.ndarray) -> np.ndarray:
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, 'JPEG', quality=JPEG_QUALITY)
  return np.asarray(Image.open(stream))
