"""Layers on matrix units whose images are grey: eight pixels of a row become channels.

These are convolutions of grey images and transposed convolutions to them.

Matrix units multiply channels, and a grey image has one; on a GPU such a layer runs far below the
speed of the memory. Eight neighbours of a row can be taken for channels without moving anything.
The kernel then becomes a band: it joins a few such blocks with the outputs of one block, again
side by side as channels. That is more products, but fast ones (measured: docs/performance.md).
"""

import functools
from typing import SupportsInt

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# A row's pixels in a block: 16 bytes of bfloat16, what tensor cores load at once.
BLOCK = 8


def fits(image_shape, kernel_shape, stride: int, padding: int) -> bool:
  """Whether images [b, h, w, c] are grey and their rows and results are whole blocks.

  Kernels [k, k, ...] must be square and larger than a pixel.
  """
  *_, width, channels = image_shape
  side = kernel_shape[0]
  outputs = (width + 2 * padding - side) // stride + 1
  whole = width % BLOCK == 0 and BLOCK % stride == 0 and outputs * stride == width
  return channels == 1 and side == kernel_shape[1] > 1 and whole


def correlate(
  x: Float[Array, 'b h w 1'], kernel: Float[Array, 'k k 1 o'], *, stride: int, padding: int
) -> Float[Array, 'b rows columns o']:
  """`convolution.conv` of images which `fits`."""
  b, h, w, _ = x.shape
  side, _, _, c_out = kernel.shape
  band, before, behind = _band(side, stride, padding)
  # The band's ones pick values: nothing is rounded at the highest precision.
  weights = jnp.einsum(
    'iko,knqj->inqjo', kernel[:, :, 0], band.astype(kernel.dtype), precision='highest'
  )
  y = lax.conv_general_dilated(
    x.reshape(b, h, w // BLOCK, BLOCK),
    weights.reshape(side, -1, BLOCK, BLOCK // stride * c_out),
    (stride, 1),
    ((padding, padding), (before, behind)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  return y.reshape(b, y.shape[1], w // stride, c_out)


def stamped_shape(
  x: Float[Array, 'b h w i'], kernel: Float[Array, 'kh kw i o'], *, stride: int, padding: int
) -> tuple[SupportsInt, int, int, int]:
  """Shape of `transposed.conv_transpose`'s result; an exported program's batch is a symbol."""
  height, width = (
    (side - 1) * stride + taps - 2 * padding for side, taps in zip(x.shape[1:3], kernel.shape[:2])
  )
  return x.shape[0], height, width, kernel.shape[-1]


def stamp(
  x: Float[Array, 'b h w i'], kernel: Float[Array, 'k k i 1'], *, stride: int, padding: int
) -> Float[Array, 'b rows columns 1']:
  """`transposed.conv_transpose` to grey images that fit: the transpose of `correlate`."""
  shape = stamped_shape(x, kernel, stride=stride, padding=padding)
  down = functools.partial(
    correlate, kernel=kernel.transpose(0, 1, 3, 2), stride=stride, padding=padding
  )
  (images,) = jax.linear_transpose(down, jax.ShapeDtypeStruct(shape, x.dtype))(x)
  return images


def _band(side: int, stride: int, padding: int) -> tuple[np.ndarray, int, int]:
  """Which tap joins which pixel with which output, and how many blocks of padding that takes.

  f32[tap, block, pixel, output], 1 where they meet; output j of a block sees pixels from
  `stride * j - padding` on.
  """
  first = -padding // BLOCK
  last = (BLOCK - stride - padding + side - 1) // BLOCK
  tap, block, pixel, output = np.ogrid[:side, first : last + 1, :BLOCK, : BLOCK // stride]
  meets = tap == BLOCK * block + pixel - (stride * output - padding)
  return meets.astype(np.float32), -first, last
