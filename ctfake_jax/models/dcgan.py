"""DCGAN (Radford, Metz & Chintala 2016, arXiv:1511.06434), any power-of-two side from 32 to 256.

The generator maps a latent f[b, latent] to images f[b, size, size, channels] in [-1, 1], the
discriminator maps such images to one logit each. Kernels and normalisation scales start from
N(0, 0.02) around 0 and 1. With `num_classes` > 0 both take labels: the generator beside its
latent, the discriminator by projection (Miyato & Koyama 2018, arXiv:1802.05637), whose products
with every class are its feature `class_logits`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from ctfake_jax.models import initializers, layers

MIN_SIZE, MAX_SIZE = 32, 256
normal_002 = initializers.normal(0.02)
around_one = initializers.normal(0.02, mean=1.0)


def doublings(size: int) -> int:
  """Stages between 4x4 and half of `size`; ValueError unless a power of two in 32..256."""
  if size & (size - 1) or not MIN_SIZE <= size <= MAX_SIZE:
    raise ValueError(f'image size {size} must be a power of two from {MIN_SIZE} to {MAX_SIZE}')
  return size.bit_length() - 4


def with_labels(
  latent: Float[Array, 'b l'], labels: Int[Array, ' b'] | None, num_classes: int
) -> Float[Array, 'b l+{num_classes}']:
  """Latents with one-hot labels behind them."""
  return (
    jnp.concatenate([latent, jax.nn.one_hot(labels, num_classes)], -1) if num_classes else latent
  )


class Generator(nn.Module):
  """Fractionally strided convolutions from a 1x1 latent to the image, tanh at the end.

  Attributes:
    size: side of the image.
    width: channels before the last layer; doubles towards the latent.
    channels: of the image.
    num_classes: 0 for an unconditional generator.
    dtype: compute dtype.
  """

  size: int
  width: int = 64
  channels: int = 1
  num_classes: int = 0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, latent: Float[Array, 'b l'], labels: Int[Array, ' b'] | None = None, *, train: bool
  ) -> tuple[Float32[Array, 'b size size channels'], layers.Features]:
    conv = functools.partial(
      layers.Conv, kernel_size=4, transpose=True, kernel_init=normal_002, dtype=self.dtype
    )
    norm = functools.partial(layers.BatchNorm, scale_init=around_one, dtype=self.dtype)
    stages = doublings(self.size)
    x = with_labels(latent, labels, self.num_classes)[:, None, None, :]
    features = {}
    for i in range(stages + 1):
      stride, padding = (1, 0) if i == 0 else (2, 1)
      width = self.width * 2 ** (stages - i)
      x = conv(width, stride=stride, padding=padding, name=f'conv{i}')(x)
      x = features[f'stage{i + 1}'] = nn.relu(norm(name=f'bn{i}')(x, train=train))
    x = conv(self.channels, stride=2, padding=1, name=f'conv{stages + 1}')(x)
    return jnp.tanh(x.astype(jnp.float32)), features


class Discriminator(nn.Module):
  """Strided convolutions with leaky ReLU down to one logit; attributes as `Generator`."""

  size: int
  width: int = 64
  num_classes: int = 0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b size size channels'],
    labels: Int[Array, ' b'] | None = None,
    *,
    train: bool,
  ) -> tuple[Float32[Array, ' b'], layers.Features]:
    conv = functools.partial(layers.Conv, kernel_size=4, kernel_init=normal_002, dtype=self.dtype)
    norm = functools.partial(layers.BatchNorm, scale_init=around_one, dtype=self.dtype)
    features = {}
    for i in range(doublings(self.size) + 1):
      x = conv(self.width * 2**i, stride=2, padding=1, name=f'conv{i}')(x)
      if i > 0:
        x = norm(name=f'bn{i}')(x, train=train)
      x = features[f'stage{i + 1}'] = nn.leaky_relu(x, 0.2)
    logits = conv(1, padding=0, name=f'conv{i + 1}')(x)[:, 0, 0, 0].astype(jnp.float32)
    pooled = features['pre_logits'] = x.mean((1, 2)).astype(jnp.float32)
    if self.num_classes:
      embed = nn.Embed(self.num_classes, pooled.shape[-1], embedding_init=normal_002, name='embed')
      class_logits = features['class_logits'] = embed.attend(pooled)
      logits = logits + (class_logits * jax.nn.one_hot(labels, self.num_classes)).sum(-1)
    return logits, features
