"""What happens to a picture in its file, before any network's view: JPEG, blur, resampling, noise.

Each takes grey levels in [0, 1] at the size they are stored in, and returns such. A change of the
file is weaker than the same change of a network's small view, in which a pixel stands for many.
(`degradations` changes batches of views within a training step.)
"""

import io

import numpy as np
from jaxtyping import Float32
from PIL import Image
from scipy import ndimage

RE_ENCODINGS = (90, 75)  # JPEG qualities that must not change a verdict


def jpeg(levels: Float32[np.ndarray, 'h w'], quality: int) -> Float32[np.ndarray, 'h w']:
  """Encoded at a quality from 1 to 100 and decoded (8 bits)."""
  stream = io.BytesIO()
  Image.fromarray(np.round(255 * levels.clip(0, 1)).astype(np.uint8)).save(
    stream, 'JPEG', quality=quality
  )
  with Image.open(stream, formats=('JPEG',)) as image:
    return np.asarray(image, np.float32) / np.float32(255)


def blurred(levels: Float32[np.ndarray, 'h w'], sigma: float) -> Float32[np.ndarray, 'h w']:
  """By a Gaussian of `sigma` pixels."""
  return ndimage.gaussian_filter(levels, sigma, mode='nearest')


def resampled(
  levels: Float32[np.ndarray, 'h w'], factor: float
) -> Float32[np.ndarray, 'rows columns']:
  """To `factor` times its sides, bilinear with the support of the coarser grid."""
  height, width = (max(1, round(factor * side)) for side in levels.shape)
  image = Image.fromarray(levels.astype(np.float32))
  return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)


def noisy(
  levels: Float32[np.ndarray, 'h w'], deviation: float, rng: np.random.Generator
) -> Float32[np.ndarray, 'h w']:
  """With white noise of a standard deviation in units of the range."""
  noise = rng.normal(0, deviation, levels.shape)
  return (levels + noise).clip(0, 1).astype(np.float32)
