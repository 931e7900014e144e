"""Edited against untouched, pixel by pixel, at the resolution that a scanner gave.

Enters HU of slices with their neighbours; leaves log odds of having been edited, one for each
square of four by four pixels. Beside HU the network sees what smoothing takes away from them, as it
is and relative to the noise of the slice's lung, that noise, and the same of the neighbours.
Squares of four pixels are folded into channels, so that no layer runs at the full resolution and
nothing is averaged away before the first convolution; context comes from a stage at an eighth.
Second moments of residuals (how strong they are, in two bands, and how alike a pixel's is to its
neighbours' along rows, columns and slices) are given to the stage at a quarter: rectified sums
learn such products slowly, and they are what hand-made statistics of edits are made of.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32

from ctfake_jax.models import layers
from ctfake_jax.models.ops.pooling import max_pool
from ctfake_jax.models.patch_net import folded, smoothed

STRIDE = 4  # of the map
MULTIPLE = 8  # of which sides must be
NEIGHBOURS = 3  # slices that are seen: the one below, the one itself, the one above
LIMITS_HU = -1024.0, 600.0  # what lies beyond is cut off
LUNG_HU = -1000.0, -500.0  # where the noise of a slice is measured
LEAST_NOISE_HU, MOST_NOISE_HU = 2.0, 150.0
MOST_DEVIATIONS = 6.0  # of a residual from the noise
USUAL_NOISE_HU, USUAL_LUNG_HU, SPREAD_HU = 20.0, -300.0, 700.0
RAW_HU = 40.0  # residuals are divided by


class ForensicNet(nn.Module):
  """Fully convolutional; sees about 100 pixels round each square.

  Attributes:
    width: channels at half the resolution; doubled once.
    dtype: compute dtype.
  """

  width: int = 32
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, hu: Float[Array, 'b 3 h w'], present: Bool[Array, 'b 3'], *, train: bool
  ) -> Float32[Array, 'b h//4 w//4']:
    """Log odds of having been edited; sides are multiples of `MULTIPLE`."""

    def conv(x, name: str, width: int):
      x = layers.Conv(width, dtype=self.dtype, name=f'{name}_conv')(x)
      return nn.relu(layers.BatchNorm(dtype=self.dtype, name=f'{name}_bn')(x, train=train))

    def halved(x):
      return max_pool(x, window=2, stride=2)

    x = conv(folded(channels(hu, present)), 'half_1', self.width)
    x = halved(conv(x, 'half_2', self.width))
    moments = second_moments(hu, present).astype(x.dtype)
    x = conv(jnp.concatenate([x, moments], -1), 'quarter_1', 2 * self.width)
    near = conv(x, 'quarter_2', 2 * self.width)
    far = halved(near)
    for i in range(4):
      far = conv(far, f'eighth_{i + 1}', 2 * self.width)
    x = conv(near + far.repeat(2, axis=1).repeat(2, axis=2), 'quarter_3', 2 * self.width)
    return layers.Dense(1, dtype=jnp.float32, name='logit')(x.astype(jnp.float32))[..., 0]


def channels(hu: Float[Array, 'b 3 h w'], present: Bool[Array, 'b 3']) -> Float32[Array, 'b h w c']:
  """What the network sees of slices: HU, residuals and noise of the middle one, and neighbours."""
  hu = jnp.clip(hu.astype(jnp.float32), *LIMITS_HU)
  smooth = _smooth(hu, 1)
  residual = hu - smooth
  noise = lung_noise(smooth[:, 1], residual[:, 1])[:, None, None]
  relative = jnp.clip(residual / noise[:, None], -MOST_DEVIATIONS, MOST_DEVIATIONS) / 2
  relative = jnp.where(present[:, :, None, None], relative, 0.0)
  parts = (
    (hu[:, 1] - USUAL_LUNG_HU) / SPREAD_HU,
    residual[:, 1] / RAW_HU,
    relative[:, 1],
    jnp.broadcast_to(jnp.log(noise / USUAL_NOISE_HU), hu[:, 1].shape),
    relative[:, 0],
    relative[:, 2],
  )
  return jnp.stack(parts, -1)


def second_moments(
  hu: Float[Array, 'b 3 h w'], present: Bool[Array, 'b 3']
) -> Float32[Array, 'b h//4 w//4 7']:
  """Of residuals about squares of `STRIDE` pixels.

  Returns:
    Logarithm of the power, absolute and relative to the noise of the lung; that of a lower band
    relative to it; correlations with the pixel to the right, below, and in the slices before and
    after (0 where there are none).
  """
  hu = jnp.clip(hu.astype(jnp.float32), *LIMITS_HU)
  smooth = _smooth(hu, 1)
  residual = hu - smooth
  own, lower = residual[:, 1], (smooth - _smooth(smooth, 2))[:, 1]
  noise = lung_noise(smooth[:, 1], own)[:, None, None]
  power, low = _block_mean(own * own) + 1.0, _block_mean(lower * lower) + 1.0
  right, below = (_block_mean(own * jnp.roll(own, -1, axis)) for axis in (2, 1))
  apart = [
    jnp.where(
      present[:, i, None, None],
      _block_mean(own * residual[:, i])
      / jnp.sqrt(power * (_block_mean(jnp.square(residual[:, i])) + 1.0)),
      0.0,
    )
    for i in (0, 2)
  ]
  parts = (
    jnp.log(power) / 2 - jnp.log(USUAL_NOISE_HU),
    jnp.log(power) / 2 - jnp.log(noise),
    jnp.log(low / power) / 2,
    right / power,
    below / power,
    *apart,
  )
  return jnp.stack(parts, -1)


def _smooth(hu: Float[Array, 'b k h w'], step: int) -> Float[Array, 'b k h w']:
  b, slices, height, width = hu.shape
  return smoothed(hu.reshape(b * slices, height, width, 1), step).reshape(hu.shape)


def _block_mean(values: Float[Array, 'b h w']) -> Float[Array, 'b h//4 w//4']:
  """Over squares of `STRIDE` pixels and, with falling weight, the eight round each."""
  b, height, width = values.shape
  blocks = values.reshape(b, height // STRIDE, STRIDE, width // STRIDE, STRIDE).mean((2, 4))
  return smoothed(blocks[..., None], 1)[..., 0]


def lung_noise(
  smooth: Float[Array, 'b h w'], residual: Float[Array, 'b h w']
) -> Float32[Array, ' b']:
  """Mean absolute residual where a slice is as airy as lung, HU; bounded."""
  airy = ((smooth > LUNG_HU[0]) & (smooth < LUNG_HU[1])).astype(jnp.float32)
  size = jnp.minimum(jnp.abs(residual), MOST_NOISE_HU)
  mean = (size * airy).sum((1, 2)) / jnp.maximum(airy.sum((1, 2)), 1.0)
  return jnp.clip(mean, LEAST_NOISE_HU, MOST_NOISE_HU)
