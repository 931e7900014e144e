"""Autoencoders of several kinds that rebuild images: fakes that keep their originals' anatomy.

How narrow a code is and how a decoder enlarges it leave traces of their own, and traces of many
kinds teach a detector more than those of one (FingerprintNet, Jeong et al., ECCV 2022). So every
image of a batch is rebuilt by another member in turn, and from more or less noise (denoising:
Vincent et al. 2008, doi:10.1145/1390156.1390294): the texture that noise hides must be invented.
Sides are multiples of 4.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float32, Key

from ctfake_jax.models import layers
from ctfake_jax.models.resize_gan import doubled

# In use as in training images and bounded codes get noise; standard deviations up to these.
NOISE_OF_IMAGES, NOISE_OF_CODES = 0.5, 0.3
CODE_BOUND = 3.0

# Of each member: halvings of the side, channels of the code, and how it is enlarged again. Narrow
# codes lose texture; wide ones keep it, so their members learn to take noise away.
MEMBERS = (
  (2, 4, 'transposed'),
  (2, 4, 'repeated'),
  (2, 8, 'bilinear'),
  (2, 16, 'shuffled'),
  (1, 1, 'shuffled'),
  (1, 2, 'bilinear'),
  (1, 8, 'repeated'),
  (1, 8, 'transposed'),
)


class Autoencoder(nn.Module):
  """All members side by side.

  Attributes:
    width: channels next to the image; doubles while the side halves.
    dtype: compute dtype.
  """

  width: int = 24
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float32[Array, 'b h w 1'], key: Key[Array, '']
  ) -> Float32[Array, 'b h w 1']:
    """Images in [-1, 1], b a multiple of the members' number, rebuilt.

    What comes out may leave the range a little: bounded by a curve it would hardly reach white,
    and grey values alone would tell it from originals.
    """
    key_image, key_code = jax.random.split(key)
    noisy = _with_noise(x, NOISE_OF_IMAGES, key_image)
    turns = noisy.reshape(-1, len(MEMBERS), *x.shape[1:])
    rebuilt = [
      _Member(*kind, self.width, self.dtype, name=f'member{i}')(
        turns[:, i], jax.random.fold_in(key_code, i)
      )
      for i, kind in enumerate(MEMBERS)
    ]
    return jnp.stack(rebuilt, 1).reshape(x.shape)


class _Member(nn.Module):
  halvings: int
  code: int
  enlarge: str
  width: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x, key):
    conv = functools.partial(layers.Conv, dtype=self.dtype)
    widths = [self.width * 2**i for i in range(self.halvings)]
    for width in widths:
      x = nn.silu(conv(width, kernel_size=4, stride=2, padding=1)(x))
    x = nn.silu(conv(widths[-1])(x))
    code = conv(self.code, kernel_size=1)(x).astype(jnp.float32)
    code = _with_noise(CODE_BOUND * jnp.tanh(code / CODE_BOUND), NOISE_OF_CODES, key)
    x = nn.silu(conv(widths[-1])(code))
    for width in (self.width, *widths)[-2::-1]:
      x = nn.silu(_ENLARGE[self.enlarge](conv, width, x))
    return conv(1)(x).astype(jnp.float32)


def _with_noise(x: jax.Array, most: float, key: jax.Array) -> jax.Array:
  """f32[b, h, w, c] with white noise of another strength for each; little is likelier than much."""
  key_strength, key_noise = jax.random.split(key)
  strength = most * jax.random.uniform(key_strength, (len(x), 1, 1, 1)) ** 2
  return x + strength * jax.random.normal(key_noise, x.shape)


def _shuffled(conv: Callable, width: int, x: jax.Array) -> jax.Array:
  """Four times the channels, dealt to the pixels of squares (Shi et al. 2016, arXiv:1609.05158)."""
  x = conv(4 * width)(x)
  b, height, wide, _ = x.shape
  squares = x.reshape(b, height, wide, 2, 2, width).transpose(0, 1, 3, 2, 4, 5)
  return squares.reshape(b, 2 * height, 2 * wide, width)


def _bilinear(conv: Callable, width: int, x: jax.Array) -> jax.Array:
  b, height, wide, channels = x.shape
  return conv(width)(jax.image.resize(x, (b, 2 * height, 2 * wide, channels), 'linear'))


_ENLARGE: dict[str, Callable[[Callable, int, jax.Array], jax.Array]] = {
  'transposed': lambda conv, width, x: conv(
    width, kernel_size=4, stride=2, padding=1, transpose=True
  )(x),
  'repeated': lambda conv, width, x: conv(width)(doubled(x)),
  'bilinear': _bilinear,
  'shuffled': _shuffled,
}


class PatchDiscriminator(nn.Module):
  """Real or rebuilt, place by place: logits (Isola et al. 2017, arXiv:1611.07004).

  Attributes: as of `Autoencoder`.
  """

  width: int = 24
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float32[Array, 'b h w 1']) -> Float32[Array, 'b h//4 w//4']:
    conv = functools.partial(layers.Conv, dtype=self.dtype)
    for width in (self.width, 2 * self.width):
      x = nn.leaky_relu(conv(width, kernel_size=4, stride=2, padding=1)(x), 0.2)
    x = nn.leaky_relu(conv(4 * self.width)(x), 0.2)
    return conv(1)(x)[..., 0].astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def rebuild(
  network: Autoencoder, variables: dict, images: Float32[Array, 'b h w 1'], key: Key[Array, '']
) -> Float32[Array, 'b h w 1']:
  """`network` applied to images, in [-1, 1]."""
  return jnp.clip(jnp.asarray(network.apply(variables, images, key)), -1.0, 1.0)
