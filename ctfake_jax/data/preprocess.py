"""What a model sees: the one definition of the way from a decoded slice to its input, and back.

A `Slice` (HU or grey in [0, 1]) leaves as float32[size, size, 1] in [-1, 1]:
window in HU or range of grey, aspect, resize with antialiasing, range. The window is linear as in
DICOM PS3.3 C.11.2.1.3.2 (LINEAR_EXACT): centre - width / 2 maps to -1, centre + width / 2 to 1.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import DataConfig
from ctfake_jax.types import Plane, Slice, UserError

LEAST_SIDE = 0.5  # of the side that is seen; a detector's robustness is measured down to it
LEAST_SHARE = 0.1  # of a range of grey; pictures that use less are not taken in silence
# Of pixels brighter than a recorded range by more than a twentieth of it: a set's own are one in a
# thousand at most.
ODD_SHARE, IMPOSSIBLE_SHARE, BEYOND = 0.02, 0.2, 0.05
ONE_VALUE, TWO_VALUES = 'one grey value everywhere', 'two grey values only: a mask?'
USES_LITTLE = 'uses little of its range of grey (12-bit CT in 16 bits?): see data.grey_range'


@dataclasses.dataclass(frozen=True)
class GreyRange:
  """Stored values from `low` (black) to `high` (white) of a type whose maximum is `white`."""

  low: float
  high: float
  white: int

  @classmethod
  def parse(cls, text: str) -> 'GreyRange | None':
    """Of `data.grey_range`; None where the type's own range is meant."""
    if text == 'type':
      return None
    values = config_lib.parse_grey_range(text)
    if values is None:  # auto, which no training has replaced by what it found
      raise UserError(f'config.data.grey_range = {text!r}: give LOW-HIGH/MAXIMUM here')
    return cls(*values)

  def __str__(self) -> str:
    low, high = (f'{v:.5f}' if self.white == 1 else f'{v:.0f}' for v in (self.low, self.high))
    return f'{low}-{high}/{self.white}'

  @property
  def share(self) -> float:
    """Of the type's range."""
    return (self.high - self.low) / self.white

  def share_beyond(self, grey: Float[np.ndarray, 'h w']) -> float:
    """Of the pixels of the type's range, those clearly brighter than this one."""
    limit = self.high + BEYOND * (self.high - self.low)
    return float(np.mean(grey * self.white > limit))

  def __call__(self, grey: Float[np.ndarray, '*shape']) -> Float[np.ndarray, '*shape']:
    """Grey of the type's range to [0, 1] of this one, clipped."""
    return ((grey * self.white - self.low) / (self.high - self.low)).clip(0, 1)


Region = tuple[int, int, int, int]  # top, left, height, width; it may reach over the border


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """The view's parameters: side in pixels, window in HU, and how the aspect is kept.

  Attributes:
    aspect: 'crop' cuts the longer side about the centre, 'letterbox' pads the shorter with black,
      'stretch' squeezes the whole slice into the square.
    grey: what becomes black and white of grey values; None: 0 and the type's maximum.
  """

  size: int
  window_center_hu: float
  window_width_hu: float
  aspect: str
  grey: GreyRange | None = None

  @classmethod
  def from_config(cls, data: DataConfig) -> 'Preprocess':
    """Reads the keys of `config.data`."""
    grey = GreyRange.parse(data.grey_range)
    return cls(data.image_size, data.window_center_hu, data.window_width_hu, data.aspect, grey)

  def obstacle(self, image: Slice) -> str:
    """Why a slice cannot be shown: a range of other stored values than its own; '' else."""
    if image.unit == 'HU' or self.grey is None:
      return ''
    if self.grey.white == image.white:
      beyond = self.grey.share_beyond(image.pixels)
      return '' if beyond < IMPOSSIBLE_SHARE else self._stored_otherwise(beyond)
    return (
      f'is stored in values up to {image.white}, the range {self.grey} was found in values up to '
      f'{self.grey.white}; store all pictures alike'
    )

  def _stored_otherwise(self, beyond: float) -> str:
    return (
      f'{beyond:.0%} of its pixels are brighter than the range {self.grey} that the training '
      'images use: stored otherwise? Store all pictures alike'
    )

  def remarks(self, image: Slice) -> tuple[str, ...]:
    """What is odd about a slice that can be shown, its own remarks first."""
    low, high = image.pixels.min(), image.pixels.max()
    found = list(image.remarks)
    if low == high:
      found.append(ONE_VALUE)
    elif ((image.pixels == low) | (image.pixels == high)).all():
      found.append(TWO_VALUES)
    elif image.unit == 'grey':
      dark, bright = np.quantile(self.levels(image)[::4, ::4], (0.001, 0.999))
      if bright - dark < LEAST_SHARE:
        found.append(USES_LITTLE)
      if self.grey and self.grey.share_beyond(image.pixels) >= ODD_SHARE:
        found.append(f'many pixels brighter than the range {self.grey}: stored otherwise?')
    if self.shows_few(image.pixels.shape):
      found.append(self.too_few)
    return tuple(found)

  def shows_few(self, shape: tuple[int, ...]) -> bool:
    """Whether an image of `shape` has less than half the side that is seen."""
    return min(shape) < LEAST_SIDE * self.size

  @property
  def too_few(self) -> str:
    """A remark."""
    return f'too few pixels: less than half of {self.size} x {self.size}'

  def __call__(self, image: Slice) -> Float32[np.ndarray, 'size size 1']:
    """What a model sees, in [-1, 1]."""
    return self.frame(self.levels(image))

  def levels(self, image: Slice) -> Float[np.ndarray, 'h w']:
    """The grey levels in [0, 1] that are seen of a slice, at its own size."""
    scaled = self.window if image.unit == 'HU' else self.grey
    return scaled(image.pixels) if scaled else image.pixels

  def frame(self, levels: Float[np.ndarray, 'h w']) -> Float32[np.ndarray, 'size size 1']:
    """Grey levels in [0, 1] of any size to [-1, 1]."""
    framed = _framed(levels, *REGIONS[self.aspect](*levels.shape))
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

  def window(self, hu: Float[np.ndarray, '*shape']) -> Float[np.ndarray, '*shape']:
    """HU to [0, 1], clipped."""
    return ((hu - self.range_hu[0]) / self.window_width_hu).clip(0, 1)

  @property
  def range_hu(self) -> tuple[float, float]:
    """Lowest and highest HU that the window tells apart."""
    half = self.window_width_hu / 2
    return self.window_center_hu - half, self.window_center_hu + half

  def to_hu(self, images: Float[np.ndarray, '*shape']) -> Float[np.ndarray, '*shape']:
    """Model range [-1, 1] back to HU; what the window clipped stays clipped."""
    return images * (self.window_width_hu / 2) + self.window_center_hu


def resize(grey: Float[np.ndarray, 'h w'], size: int) -> Float32[np.ndarray, 'size size']:
  """Bilinear with the support of the coarser grid."""
  if grey.shape == (size, size):
    return grey.astype(np.float32)
  return np.asarray(
    Image.fromarray(grey.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
  )


def to_uint8(images: Float[np.ndarray, '*shape']) -> UInt8[np.ndarray, '*shape']:
  """Model range [-1, 1] to 0..255, rounded."""
  return np.round((np.asarray(images) + 1) * 127.5).clip(0, 255).astype(np.uint8)


def from_uint8(pixels: UInt8[np.ndarray, '*shape']) -> Float32[np.ndarray, '*shape']:
  """0..255 to the model range; the inverse of `to_uint8` on what it made."""
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
