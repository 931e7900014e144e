"""A denoising diffusion model (Ho, Jain & Abbeel 2020, arXiv:2006.11239) and its fast sampler.

Time runs from 0 (image) to 1 (noise) on the cosine schedule of Nichol & Dhariwal 2021
(arXiv:2102.09672): x(t) = signal(t) x(0) + noise(t) e. The U-Net predicts e. The sampler is the
deterministic one of Song, Meng & Ermon 2021 (DDIM, arXiv:2010.02502), with the image that each
step implies clipped to [-1, 1].
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from ctfake_jax.models import initializers, layers
from ctfake_jax.models.resize_gan import doubled

# Of the cosine schedule: keeps the noise above 0 at time 0 and the signal above 0 at time 1.
OFFSET = 0.008
LAST_TIME = 0.98
GROUP_CHANNELS = 8


def signal_and_noise(
  time: Float[Array, '*n'],
) -> tuple[Float[Array, '*n'], Float[Array, '*n']]:
  """Scales of image and noise at times in [0, 1]; their squares add up to 1."""
  angle = (time + OFFSET) / (1 + OFFSET) * (jnp.pi / 2)
  return jnp.cos(angle), jnp.sin(angle)


class UNet(nn.Module):
  """Predicts the noise in images at given times; sides are multiples of 4.

  Three resolutions of `width`, 2 and 4 `width` channels, a residual block at each on the way down
  and up, attention at the lowest.

  Attributes:
    width: channels at full resolution, a multiple of 8.
    num_classes: 0 for an unconditional model.
    dtype: compute dtype.
  """

  width: int = 32
  num_classes: int = 0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w 1'], time: Float[Array, ' b'], labels: Int[Array, ' b'] | None
  ) -> Float32[Array, 'b h w 1']:
    condition = layers.Dense(4 * self.width, name='time1')(_waves(time, self.width))
    condition = layers.Dense(4 * self.width, name='time2')(nn.silu(condition))
    if self.num_classes:
      condition += nn.Embed(self.num_classes, 4 * self.width, name='label')(labels)
    condition = nn.silu(condition)
    block = functools.partial(_Block, dtype=self.dtype)
    widths = (self.width, 2 * self.width, 4 * self.width)
    x = layers.Conv(self.width, dtype=self.dtype, name='conv_in')(x)
    skips = []
    for i, width in enumerate(widths[:-1]):
      x = block(width, name=f'down{i}')(x, condition)
      skips.append(x)
      x = nn.avg_pool(x, (2, 2), (2, 2))
    x = block(widths[-1], name='middle1')(x, condition)
    x = _Attention(dtype=self.dtype, name='attention')(x)
    x = block(widths[-1], name='middle2')(x, condition)
    for i, width in reversed(list(enumerate(widths[:-1]))):
      x = block(width, name=f'up{i}')(jnp.concatenate([doubled(x), skips[i]], -1), condition)
    x = nn.silu(_norm(self.dtype, 'norm_out', x))
    out = layers.Conv(1, dtype=self.dtype, kernel_init=initializers.zeros, name='conv_out')(x)
    return out.astype(jnp.float32)


class Sampler(nn.Module):
  """Deterministic images from noise, with the parameters of `unet` as its own.

  Attributes:
    unet: the noise predictor.
    steps: evaluations of it.
    size: side of the image.
  """

  unet: UNet
  steps: int
  size: int

  def setup(self):
    nn.share_scope(self, self.unet)

  def __call__(
    self, latent: Float[Array, 'b s'], labels: Int[Array, ' b'] | None = None, *, train: bool
  ) -> tuple[Float32[Array, 'b size size 1'], layers.Features]:
    """Images in [-1, 1] from noise of their pixels, s = size * size; no features."""
    x = latent.reshape(-1, self.size, self.size, 1)
    if self.is_initializing():
      return self.unet(x, jnp.zeros(len(x)), labels), {}
    variables = {'params': self.variables['params']}
    return denoise(self.unet.clone(parent=None), variables, x, labels, LAST_TIME, self.steps), {}


def denoise(
  unet: UNet,
  variables: dict,
  x: Float[Array, 'b h w 1'],
  labels: Int[Array, ' b'] | None,
  start: float,
  steps: int,
) -> Float32[Array, 'b h w 1']:
  """Images in [-1, 1] from x(start), in equal steps of time."""
  times = jnp.linspace(start, 0.0, steps + 1)

  def step(x, now_and_next):
    signal_next, noise_next = signal_and_noise(now_and_next[1])
    image, noise = implied(unet, variables, x, jnp.full(len(x), now_and_next[0]), labels)
    return signal_next * image + noise_next * noise, None

  return jnp.clip(lax.scan(step, x, (times[:-1], times[1:]))[0], -1, 1)


def implied(
  unet: UNet,
  variables: dict,
  x: Float[Array, 'b h w 1'],
  time: Float[Array, ' b'],
  labels: Int[Array, ' b'] | None,
) -> tuple[Float[Array, 'b h w 1'], Float[Array, 'b h w 1']]:
  """The image in [-1, 1] that x(t) holds by the network's word, and the noise that fits it."""
  signal, noise = (scale[:, None, None, None] for scale in signal_and_noise(time))
  predicted: jax.Array = unet.apply(variables, x, time, labels)  # type: ignore[assignment]
  image = jnp.clip((x - noise * predicted) / signal, -1, 1)
  return image, (x - signal * image) / noise


class _Block(nn.Module):
  """Residual: (norm, SiLU, 3x3 convolution) twice, shifted by the condition f[b, c] between."""

  width: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x, condition):
    h = nn.silu(_norm(self.dtype, 'norm1', x))
    h = layers.Conv(self.width, dtype=self.dtype, name='conv1')(h)
    h += layers.Dense(self.width, dtype=self.dtype, name='condition')(condition)[:, None, None, :]
    h = nn.silu(_norm(self.dtype, 'norm2', h))
    last = functools.partial(layers.Conv, kernel_init=initializers.zeros)
    h = last(self.width, dtype=self.dtype, name='conv2')(h)
    if x.shape[-1] != self.width:
      x = layers.Dense(self.width, use_bias=False, dtype=self.dtype, name='skip')(x)
    return x + h


class _Attention(nn.Module):
  """Self-attention with one head between all pixels, added to them."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x):
    b, height, width, channels = x.shape
    flat = _norm(self.dtype, 'norm', x).reshape(b, height * width, channels)
    heads = nn.MultiHeadDotProductAttention(num_heads=1, dtype=self.dtype, name='heads')
    return x + heads(flat).reshape(x.shape)


def _norm(dtype, name: str, x: jax.Array) -> jax.Array:
  groups = max(1, x.shape[-1] // GROUP_CHANNELS)
  return nn.GroupNorm(num_groups=groups, dtype=dtype, name=name)(x)


def _waves(time: jax.Array, width: int) -> jax.Array:
  """f32[b, width]: sines and cosines of times f[b] at frequencies from 1 to 1000."""
  frequencies = jnp.exp(jnp.linspace(0.0, math.log(1000.0), width // 2))
  angles = 2 * jnp.pi * time[:, None] * frequencies[None]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
