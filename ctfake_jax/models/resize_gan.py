"""A generator that enlarges by repeating pixels and then convolves, instead of DCGAN's strides.

Odena, Dumoulin & Olah 2016 (doi:10.23915/distill.00003): transposed convolutions overlap unevenly
and leave checkerboards; nearest-neighbour enlargement before a plain convolution leaves other
traces. The discriminator is DCGAN's.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ctfake_jax.models import layers
from ctfake_jax.models.dcgan import around_one, doublings, normal_002, with_labels


class Generator(nn.Module):
  """From a latent f[b, latent] to images f32[b, size, size, channels] in [-1, 1].

  Attributes: as of `dcgan.Generator`.
  """

  size: int
  width: int = 64
  channels: int = 1
  num_classes: int = 0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, latent: jax.Array, labels: jax.Array | None = None, *, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    conv = functools.partial(layers.Conv, kernel_init=normal_002, dtype=self.dtype)
    norm = functools.partial(layers.BatchNorm, scale_init=around_one, dtype=self.dtype)
    stages, features = doublings(self.size), {}
    x = with_labels(latent, labels, self.num_classes)[:, None, None, :]
    for i in range(stages + 1):
      width = self.width * 2 ** (stages - i)
      if i == 0:
        x = conv(width, kernel_size=4, padding=0, transpose=True, name='conv0')(x)
      else:
        x = conv(width, name=f'conv{i}')(doubled(x))
      x = features[f'stage{i + 1}'] = nn.relu(norm(name=f'bn{i}')(x, train=train))
    x = conv(self.channels, name=f'conv{stages + 1}')(doubled(x))
    return jnp.tanh(x.astype(jnp.float32)), features


def doubled(x: jax.Array) -> jax.Array:
  """f[b, h, w, c] to f[b, 2h, 2w, c], every pixel a square of four."""
  b, height, width, channels = x.shape
  wide = jnp.broadcast_to(x[:, :, None, :, None], (b, height, 2, width, 2, channels))
  return wide.reshape(b, 2 * height, 2 * width, channels)
