"""Maximum pooling as shifted slices, whose gradient is cheap."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctfake_jax.models.ops import winograd
from ctfake_jax.models.ops.convolution import shifted_slices
from ctfake_jax.models.ops.platform import by_platform


def max_pool(
  x: Float[Array, 'b h w c'], *, window: int, stride: int, padding: int = 0
) -> Float[Array, 'b rows columns c']:
  """Maximum over square windows; the padding never wins."""

  def shifted(x):
    wide = winograd.padded(x, 2 * ((padding, padding),), -jnp.inf)
    return functools.reduce(jnp.maximum, shifted_slices(wide, (window, window), stride))

  def plain(x):
    pads = ((padding, padding), (padding, padding))
    return nn.max_pool(x, (window, window), (stride, stride), pads)

  return by_platform(x, plain=plain, cpu=shifted, cuda=shifted)
