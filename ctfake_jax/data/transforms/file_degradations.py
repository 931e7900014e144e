"""What happens to a picture in its file, before any network's view: JPEG, blur, resampling, noise.

Each takes grey levels float32[h, w] in [0, 1] at the size they are stored in, and returns such. A
change of the file is weaker than the same change of a network's small view, in which a pixel stands
for many. (`degradations` changes batches of views within a training step.)
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

RE_ENCODINGS = (90, 75)  # JPEG qualities that must not change a verdict


def jpeg(levels: np.ndarray, quality: int) -> np.ndarray:
  """Encoded at a quality from 1 to 100 and decoded (8 bits)."""
  stream = io.BytesIO()
  Image.fromarray(np.round(255 * levels.clip(0, 1)).astype(np.uint8)).save(
    stream, 'JPEG', quality=quality
  )
  with Image.open(stream, formats=('JPEG',)) as image:
    return np.asarray(image, np.float32) / np.float32(255)


def blurred(levels: np.ndarray, sigma: float) -> np.ndarray:
  """By a Gaussian of `sigma` pixels."""
  return ndimage.gaussian_filter(levels, sigma, mode='nearest')


def resampled(levels: np.ndarray, factor: float) -> np.ndarray:
  """To `factor` times its sides, bilinear with the support of the coarser grid."""
  height, width = (max(1, round(factor * side)) for side in levels.shape)
  image = Image.fromarray(levels.astype(np.float32))
  return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)


def noisy(levels: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
  """With white noise of a standard deviation in units of the range."""
  noise = rng.normal(0, deviation, levels.shape)
  return (levels + noise).clip(0, 1).astype(np.float32)
