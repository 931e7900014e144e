"""Harmless changes of images as pure, jitted functions: what happens to a picture on its way.

Each takes images in [-1, 1] and one strength for each image and returns the same range. Blur and
resizing are linear along each axis, so they are a matrix for the rows and one for the columns; JPEG
is the luminance path of ITU-T T.81 (1992): 8x8 cosine transform, quantisation by Table K.1 scaled
as libjpeg scales it, and back.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Key

from ctfake_jax.runtime import batching, streams

BLOCK = 8
# ITU-T T.81, Table K.1.
LUMINANCE = np.array([
  [16, 11, 10, 16, 24, 40, 51, 61],
  [12, 12, 14, 19, 26, 58, 60, 55],
  [14, 13, 16, 24, 40, 57, 69, 56],
  [14, 17, 22, 29, 51, 87, 80, 62],
  [18, 22, 37, 56, 68, 109, 103, 77],
  [24, 35, 55, 64, 81, 104, 113, 92],
  [49, 64, 78, 87, 103, 121, 120, 101],
  [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
# What training does to real and fake alike: chance of each change, and its bounds.
CHANCE = 0.25
QUALITY, BLUR_PIXELS, FACTOR, NOISE, GAIN, OFFSET = (
  (40.0, 100.0), (0.0, 1.2), (0.65, 1.4), (0.0, 0.06), (0.85, 1.15), (-0.1, 0.1)
)  # fmt: skip
# What must be no sign of a fake reaches further than what a network can learn under.
WIDE_BLUR_PIXELS, WIDE_NOISE = (0.0, 2.0), (0.0, 0.1)


def jpeg(
  images: Float32[Array, 'b h w 1'], quality: Float[Array, ' b']
) -> Float32[Array, 'b h w 1']:
  """Encoded and decoded at a quality from 1 to 100; sides are filled up to multiples of 8."""
  b, height, width, _ = images.shape
  grey = jnp.round((images[..., 0] + 1) * 127.5) - 128
  padded = jnp.pad(grey, ((0, 0), (0, -height % BLOCK), (0, -width % BLOCK)), mode='edge')
  rows, columns = padded.shape[1] // BLOCK, padded.shape[2] // BLOCK
  blocks = padded.reshape(b, rows, BLOCK, columns, BLOCK)
  cosines = jnp.asarray(_cosines())
  table = _table(quality)[:, None, :, None, :]
  spectrum = jnp.einsum('ui,bricj,vj->brucv', cosines, blocks, cosines)
  stored = jnp.round(spectrum / table) * table
  decoded = jnp.einsum('ui,brucv,vj->bricj', cosines, stored, cosines).reshape(padded.shape)
  pixels = jnp.clip(jnp.round(decoded[:, :height, :width]) + 128, 0, 255)
  return (pixels / 127.5 - 1)[..., None]


def blur(images: Float32[Array, 'b h w 1'], sigma: Float[Array, ' b']) -> Float32[Array, 'b h w 1']:
  """Gaussian of `sigma` pixels, 0 for none; the edge goes on outside as its last pixel."""

  def matrix(length: int) -> jax.Array:
    distance = jnp.arange(length)[:, None] - jnp.arange(-length, 2 * length)[None]
    width = jnp.maximum(sigma, 1e-3)[:, None, None]
    weights = jnp.exp(-0.5 * (distance[None] / width) ** 2)
    before, inside, after = jnp.split(weights, 3, axis=2)
    folded = inside.at[:, :, 0].add(before.sum(2)).at[:, :, -1].add(after.sum(2))
    return folded / folded.sum(2, keepdims=True)

  return _along_axes(images, matrix)


def resized(
  images: Float32[Array, 'b h w 1'], factor: Float[Array, ' b']
) -> Float32[Array, 'b h w 1']:
  """Resampled to `factor` times the side (0.25 to 2) and back, bilinear with antialias."""

  def matrix(length: int) -> jax.Array:
    longest = 2 * length
    middle = jnp.round(factor * length)
    there = jax.vmap(lambda m: _triangles(length, m, longest))(middle)
    back = jax.vmap(lambda m: _triangles_from(m, longest, length))(middle)
    return jnp.einsum('bom,bmi->boi', back, there)

  return _along_axes(images, matrix)


def noisy(
  images: Float32[Array, 'b h w 1'], deviation: Float[Array, ' b'], key: Key[Array, '']
) -> Float32[Array, 'b h w 1']:
  """White noise of a standard deviation in units of the model's range."""
  noise = jax.random.normal(key, images.shape)
  return jnp.clip(images + deviation[:, None, None, None] * noise, -1, 1)


def windowed(
  images: Float32[Array, 'b h w 1'], gain: Float[Array, ' b'], offset: Float[Array, ' b']
) -> Float32[Array, 'b h w 1']:
  """Another window: contrast times `gain`, level by `offset`."""
  return jnp.clip(gain[:, None, None, None] * images + offset[:, None, None, None], -1, 1)


def mirrored(
  images: Float32[Array, 'b h w c'], yes: Float[Array, ' b'] | Bool[Array, ' b']
) -> Float32[Array, 'b h w c']:
  """Left and right exchanged where `yes` is true, or above 0."""
  return jnp.where(yes[:, None, None, None] > 0, images[:, :, ::-1], images)


def cropped(
  images: Float32[Array, 'b h w 1'], share: Float[Array, ' b']
) -> Float32[Array, 'b h w 1']:
  """The middle `share` of each side, resampled to the whole side."""
  shape = jnp.array(images.shape[1:3])

  def one(image, share):
    zoom = jnp.full(2, 1 / share)
    shift = shape * (1 - zoom) / 2
    return jax.image.scale_and_translate(image, image.shape, (0, 1), zoom, shift, 'linear')

  return jax.vmap(one)(images, share)


def as_8_bit(images: Float32[Array, 'b h w 1']) -> Float32[Array, 'b h w 1']:
  """The rounding of a stored 8-bit picture."""
  return jnp.clip(jnp.round((images + 1) * 127.5) / 127.5 - 1, -1, 1)


def degrade(
  images: Float32[Array, 'b h w 1'],
  key: Key[Array, ''],
  *,
  blur_pixels: tuple[float, float] = BLUR_PIXELS,
  noise: tuple[float, float] = NOISE,
) -> Float32[Array, 'b h w 1']:
  """A random chain of changes for each image, each with the same chance, rounded to 8 bits."""
  count = len(images)
  key, key_noise = jax.random.split(key)
  chosen, strength = jax.random.uniform(key, (2, 6, count))
  on = chosen < CHANCE

  def between(i: int, bounds: tuple[float, float]) -> jax.Array:
    return bounds[0] + (bounds[1] - bounds[0]) * strength[i]

  def maybe(i: int, changed: jax.Array, images: jax.Array) -> jax.Array:
    return jnp.where(on[i][:, None, None, None], changed, images)

  images = maybe(0, windowed(images, between(0, GAIN), between(1, OFFSET)), images)
  images = maybe(2, resized(images, between(2, FACTOR)), images)
  images = maybe(3, blur(images, between(3, blur_pixels)), images)
  images = maybe(4, noisy(images, between(4, noise), key_noise), images)
  images = maybe(5, jpeg(images, jnp.round(between(5, QUALITY))), images)
  return as_8_bit(images)


def _along_axes(images: jax.Array, matrix) -> jax.Array:
  _, height, width, _ = images.shape
  return jnp.einsum('bij,bjkc,blk->bilc', matrix(height), images, matrix(width))


def _triangles(length: int, shorter: jax.Array, rows: int) -> jax.Array:
  """f32[rows, length]: the first `shorter` rows resample a line of `length`; the rest are 0."""
  scale = length / shorter
  centre = (jnp.arange(rows) + 0.5) * scale - 0.5
  reach = jnp.maximum(scale, 1.0)
  weights = jnp.maximum(1 - jnp.abs(jnp.arange(length)[None] - centre[:, None]) / reach, 0.0)
  weights = weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-6)
  return jnp.where(jnp.arange(rows)[:, None] < shorter, weights, 0.0)


def _triangles_from(shorter: jax.Array, columns: int, length: int) -> jax.Array:
  """f32[length, columns]: resamples a line whose first `shorter` of `columns` places are filled."""
  scale = shorter / length
  centre = (jnp.arange(length) + 0.5) * scale - 0.5
  reach = jnp.maximum(scale, 1.0)
  places = jnp.arange(columns)[None]
  weights = jnp.maximum(1 - jnp.abs(places - centre[:, None]) / reach, 0.0)
  weights = jnp.where(places < shorter, weights, 0.0)
  return weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-6)


def _cosines() -> np.ndarray:
  """f32[8, 8]: the orthonormal cosine transform, frequency by place."""
  frequency, place = np.mgrid[:BLOCK, :BLOCK]
  basis = np.cos((2 * place + 1) * frequency * np.pi / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
  basis[0] /= np.sqrt(2)
  return basis.astype(np.float32)


def _table(quality: jax.Array) -> jax.Array:
  """f32[b, 8, 8] of qualities f[b], as libjpeg's jpeg_quality_scaling."""
  quality = jnp.clip(quality, 1, 100)
  percent = jnp.where(quality < 50, jnp.floor(5000 / quality), 200 - 2 * quality)
  scaled = jnp.floor((LUMINANCE[None] * percent[:, None, None] + 50) / 100)
  return jnp.clip(scaled, 1, 255)


def in_batches(
  change: Callable, images: Float32[np.ndarray, 'n h w 1'], strength: float
) -> Float32[np.ndarray, 'n h w 1']:
  """A change of this module with one strength for all images, stored in 8 bits."""
  return batching.map_batches(
    lambda s, _, batch: _stored(change, batch, s), np.float32(strength), images
  )


def at_random(
  images: Float32[np.ndarray, 'n h w 1'], seed: int, *, wide: bool = False
) -> Float32[np.ndarray, 'n h w 1']:
  """Each image through a random chain of changes, once; `wide`: more blur, noise."""
  key = streams.key(seed, 'degradations', 'wide' if wide else 'usual')
  degraded = _degraded[wide]

  def changed(key, number, batch):
    return degraded(batch, jax.random.fold_in(key, number))

  return batching.map_batches(changed, key, images)


_degraded = {
  False: jax.jit(degrade),
  True: jax.jit(functools.partial(degrade, blur_pixels=WIDE_BLUR_PIXELS, noise=WIDE_NOISE)),
}


@functools.partial(jax.jit, static_argnums=0)
def _stored(change: Callable, images: jax.Array, strength: jax.Array) -> jax.Array:
  return as_8_bit(change(images, jnp.full(len(images), strength)))
