"""A convolutional variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114).

This is the encoder: from images f[b, size, size, 1] to mean and log-variance of their latents. The
decoder is the generator of `resize_gan`, so that it samples as every other generator does.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from ctfake_jax.models import layers
from ctfake_jax.models.dcgan import doublings


class Encoder(nn.Module):
  """Strided convolutions and a dense layer.

  Attributes:
    size: side of the image.
    latent: length of a latent.
    width: channels of the first layer; doubles while the side halves.
    dtype: compute dtype.
  """

  size: int
  latent: int
  width: int = 32
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b size size 1'], *, train: bool
  ) -> tuple[Float32[Array, 'b latent'], Float32[Array, 'b latent']]:
    """Mean and log-variance."""
    conv = functools.partial(layers.Conv, kernel_size=4, stride=2, padding=1, dtype=self.dtype)
    for i in range(doublings(self.size) + 1):
      x = conv(self.width * 2**i, name=f'conv{i}')(x)
      x = nn.leaky_relu(layers.BatchNorm(dtype=self.dtype, name=f'bn{i}')(x, train=train), 0.2)
    flat = x.reshape(len(x), -1).astype(jnp.float32)
    mean, log_var = jnp.split(layers.Dense(2 * self.latent, name='fc')(flat), 2, axis=-1)
    return mean, log_var
