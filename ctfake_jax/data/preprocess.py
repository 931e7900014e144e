"""What a model sees: the one definition of the way from a decoded slice to its input, and back.

A `Slice` (float32[h, w], HU or grey in [0, 1]) leaves as float32[size, size, 1] in [-1, 1]:
window in HU, aspect, resize with antialiasing, range. The window is linear as in DICOM PS3.3
C.11.2.1.3.2 (LINEAR_EXACT): centre - width / 2 maps to -1, centre + width / 2 to 1.
"""

import dataclasses

import ml_collections
import numpy as np
from PIL import Image

from ctfake_jax.geometry import Plane
from ctfake_jax.types import Slice

Region = tuple[int, int, int, int]  # top, left, height, width; it may reach over the border


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """The view's parameters: side in pixels, window in HU, and how the aspect is kept.

  Attributes:
    aspect: 'crop' cuts the longer side about the centre, 'letterbox' pads the shorter with black,
      'stretch' squeezes the whole slice into the square.
  """

  size: int
  window_center_hu: float
  window_width_hu: float
  aspect: str

  @classmethod
  def from_config(cls, data: ml_collections.ConfigDict) -> 'Preprocess':
    """Reads the keys of `config.data`."""
    return cls(data.image_size, data.window_center_hu, data.window_width_hu, data.aspect)

  def __call__(self, image: Slice) -> np.ndarray:
    """float32[size, size, 1] in [-1, 1]."""
    grey = self.window(image.pixels) if image.unit == 'HU' else image.pixels
    framed = _framed(grey, *REGIONS[self.aspect](*grey.shape))
    return (2 * resize(framed, self.size) - 1).clip(-1, 1)[..., None].astype(np.float32)

  def seen(self, plane: Plane) -> Plane:
    """Where its pixels lie for a slice whose stored pixels lie in `plane`."""
    shown = plane.turned(plane.display)
    # A slice comes with square pixels, which a region is given in.
    square = shown.square_shape
    top, left, height, width = REGIONS[self.aspect](*square)
    rows, columns = (n / of for n, of in zip(shown.shape, square))
    side = self.size, self.size
    return shown.cut(top * rows, left * columns, height * rows, width * columns, side)

  def window(self, hu: np.ndarray) -> np.ndarray:
    """HU to [0, 1], clipped."""
    return ((hu - self.range_hu[0]) / self.window_width_hu).clip(0, 1)

  @property
  def range_hu(self) -> tuple[float, float]:
    """Lowest and highest HU that the window tells apart."""
    half = self.window_width_hu / 2
    return self.window_center_hu - half, self.window_center_hu + half

  def to_hu(self, images: np.ndarray) -> np.ndarray:
    """Model range [-1, 1] back to HU; what the window clipped stays clipped."""
    return images * (self.window_width_hu / 2) + self.window_center_hu


def resize(grey: np.ndarray, size: int) -> np.ndarray:
  """float32[h, w] to float32[size, size], bilinear with the support of the coarser grid."""
  if grey.shape == (size, size):
    return grey.astype(np.float32)
  return np.asarray(
    Image.fromarray(grey.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
  )


def to_uint8(images: np.ndarray) -> np.ndarray:
  """Model range [-1, 1] to 0..255, rounded."""
  return np.round((np.asarray(images) + 1) * 127.5).clip(0, 255).astype(np.uint8)


def from_uint8(pixels: np.ndarray) -> np.ndarray:
  """0..255 to the model range, float32; the inverse of `to_uint8` on what it made."""
  return (pixels.astype(np.float32) / 127.5 - 1).astype(np.float32)


def _centre_crop(height: int, width: int) -> Region:
  side = min(height, width)
  return (height - side) // 2, (width - side) // 2, side, side


def _letterbox(height: int, width: int) -> Region:
  side = max(height, width)
  return -((side - height) // 2), -((side - width) // 2), side, side


def _stretch(height: int, width: int) -> Region:
  return 0, 0, height, width


# What of a slice is seen, by `aspect`.
REGIONS = {'crop': _centre_crop, 'letterbox': _letterbox, 'stretch': _stretch}


def _framed(grey: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
  """The region, black where it reaches over the border."""
  inside = grey[max(top, 0) : top + height, max(left, 0) : left + width]
  if inside.shape == (height, width):
    return inside
  framed = np.zeros((height, width), grey.dtype)
  top, left = max(-top, 0), max(-left, 0)
  framed[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
  return framed
