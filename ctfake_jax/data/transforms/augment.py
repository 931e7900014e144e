"""Random changes of training images in [-1, 1], pure and jitted.

Shift, scale, rotation and flip are one bilinear resampling; what comes from outside is the
nearest edge pixel. Resampling blurs, and what a network is tested on is not blurred: a share of the
images moves by whole pixels, unturned and unscaled, and stays as sharp as it was. Intensity is a
random contrast and brightness.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Key

from ctfake_jax.config.keys import AugmentConfig


def augment(
  images: Float32[Array | np.ndarray, 'b h w 1'], key: Key[Array, ''], config: AugmentConfig
) -> Float32[Array, 'b h w 1']:
  """A random variant of each image within the bounds of `config.augment`."""
  # One draw for all: each call of a generator is much code to compile.
  *geometry, contrast, brightness, blur = jax.random.uniform(key, (8, len(images)), minval=-1.0)
  sharp = (1 + blur) / 2 < config.integer_shift_fraction
  images = _resample(images, _inverse_maps(geometry, sharp, images, config))
  gain, offset = 1 + config.intensity * contrast, config.intensity * brightness
  return jnp.clip(images * gain[:, None, None, None] + offset[:, None, None, None], -1, 1)


def mixup(
  images: Float32[Array | np.ndarray, 'b h w 1'],
  targets: Float32[Array | np.ndarray, 'b c'],
  key: Key[Array, ''],
  alpha: float,
) -> tuple[Float32[Array, 'b h w 1'], Float32[Array, 'b c']]:
  """Convex pairs of images and of their targets (Zhang et al. 2018, arXiv:1710.09412)."""
  share = jax.random.beta(key, alpha, alpha, (images.shape[0], 1))
  share = jnp.maximum(share, 1 - share)
  mixed = share[..., None, None] * images + (1 - share[..., None, None]) * images[::-1]
  return mixed, share * targets + (1 - share) * targets[::-1]


def discriminator_view(
  images: Float32[Array | np.ndarray, 'b h w 1'], key: Key[Array, '']
) -> Float32[Array, 'b h w 1']:
  """Differentiable translation and cutout for a GAN's discriminator.

  Zhao et al. 2020 (arXiv:2006.10738): shifts up to an eighth of the side, a square of half the
  side cut out. Their changes of brightness and contrast are left out: in CT a grey value is the
  measurement, and a discriminator that forgives its scale lets the generator drift.
  """
  # One draw for all: each call of a generator is much code to compile.
  down, right, top, left = jax.random.uniform(key, (4, len(images), 1))
  images = _shifted(_shifted(images, down, axis=1), right, axis=2)
  rows = _outside_window(top, images.shape[1])[:, :, None, None]
  columns = _outside_window(left, images.shape[2])[:, None, :, None]
  return images * (rows | columns)


def _shifted(images: jax.Array | np.ndarray, draw: jax.Array | np.ndarray, axis: int) -> jax.Array:
  """Each image moved along an axis by up to an eighth of its length, zeros behind.

  `draw` f32[b, 1] in [0, 1) tells how far.
  """
  side = images.shape[axis]
  shift = _whole(draw, -(side // 8), side // 8 + 1)
  source = jnp.arange(side)[None] - shift
  inside = (source >= 0) & (source < side)
  around = tuple(i for i in (1, 2, 3) if i != axis)
  rows = jnp.expand_dims(jnp.clip(source, 0, side - 1), around)
  moved = jnp.take_along_axis(images, rows, axis=axis)
  return jnp.where(jnp.expand_dims(inside, around), moved, 0.0)


def _outside_window(draw: jax.Array, side: int) -> jax.Array:
  """bool[b, side], False within the window of half the side that `draw` f32[b, 1] places."""
  start = _whole(draw, -(side // 4), side - side // 4)
  position = jnp.arange(side)[None]
  return (position < start) | (position >= start + side // 2)


def _whole(draw: jax.Array | np.ndarray, low: int, end: int) -> jax.Array:
  """Integers from `low` to below `end`, evenly, from draws in [0, 1)."""
  return low + jnp.floor(draw * (end - low)).astype(jnp.int32)


def _inverse_maps(draws, sharp, images, config) -> jax.Array:
  """f32[b, 2, 3]: where each output pixel comes from, in pixels about the centre.

  `draws` are five of f32[b] in [-1, 1]; where `sharp` bool[b], pixels come from pixels.
  """
  _, height, width, _ = images.shape
  turn, grow, side, down, right = draws
  angle = jnp.where(sharp, 0.0, jnp.deg2rad(config.rotate_degrees * turn))
  zoom = jnp.where(sharp, 1.0, 1 / (1 + config.scale * grow))
  mirror = jnp.where(side < 0, -1.0, 1.0) if config.flip else 1.0
  dy, dx = config.shift * height * down, config.shift * width * right
  dy, dx = jnp.where(sharp, jnp.round(dy), dy), jnp.where(sharp, jnp.round(dx), dx)
  cos, sin = zoom * jnp.cos(angle), zoom * jnp.sin(angle)
  rows = jnp.stack([cos, sin * mirror, dy], -1)
  columns = jnp.stack([-sin, cos * mirror, dx], -1)
  return jnp.stack([rows, columns], 1)


def _resample(images, maps) -> jax.Array:
  b, height, width, _ = images.shape
  centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
  y, x = jnp.meshgrid(jnp.arange(height) - centre_y, jnp.arange(width) - centre_x, indexing='ij')
  grid = jnp.stack([y.ravel(), x.ravel(), jnp.ones(height * width)])
  source = jnp.einsum('bij,jp->bip', maps, grid)
  y = jnp.clip(source[:, 0] + centre_y, 0, height - 1)
  x = jnp.clip(source[:, 1] + centre_x, 0, width - 1)
  y0, x0 = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
  y1, x1 = jnp.minimum(y0 + 1, height - 1), jnp.minimum(x0 + 1, width - 1)
  fy, fx = y - y0, x - x0
  flat = images.reshape(b, height * width)

  def at(rows, columns):
    return jnp.take_along_axis(flat, rows * width + columns, axis=1)

  top = at(y0, x0) * (1 - fx) + at(y0, x1) * fx
  bottom = at(y1, x0) * (1 - fx) + at(y1, x1) * fx
  return (top * (1 - fy) + bottom * fy).reshape(images.shape)
