"""A generator that enlarges by repeating pixels and then convolves, instead of DCGAN's strides.

Odena, Dumoulin & Olah 2016 (doi:10.23915/distill.00003): transposed convolutions overlap unevenly
and leave checkerboards; nearest-neighbour enlargement before a plain convolution leaves other
traces. The discriminator is DCGAN's.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from ctfake_jax.models import dcgan, layers
from ctfake_jax.models.dcgan import around_one, doublings, normal_002, with_labels


class Generator(dcgan.Generator):
  """From a latent to images in [-1, 1], with the attributes of DCGAN's."""

  @nn.compact
  def __call__(
    self, latent: Float[Array, 'b l'], labels: Int[Array, ' b'] | None = None, *, train: bool
  ) -> tuple[Float32[Array, 'b size size channels'], layers.Features]:
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


def doubled(x: Float[Array, 'b h w c']) -> Float[Array, 'b 2*h 2*w c']:
  """Every pixel becomes a square of four."""
  b, height, width, channels = x.shape
  wide = jnp.broadcast_to(x[:, :, None, :, None], (b, height, 2, width, 2, channels))
  return wide.reshape(b, 2 * height, 2 * width, channels)
