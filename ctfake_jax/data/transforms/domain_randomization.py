"""How pictures differ from site to site, as pure functions: tone, field of view, size in the frame.

A detector that saw one site's pictures alone takes another's for fakes. These changes, drawn at
random, stand in for the sites that are not at hand (domain randomisation: Tobin et al. 2017,
arXiv:1703.06907). Each takes images in [-1, 1], -1 for black, and does the same to all channels of
an image.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Key

# Chance of each change, and its bounds.
TONE_CHANCE, BLACK, WHITE, LOG_GAMMA = 0.5, (0.0, 0.15), (0.35, 1.1), (-0.5, 0.5)
FIELD_CHANCE, MIDDLE, HALF_AXIS = 0.35, (0.42, 0.58), (0.3, 0.52)
ZOOM_CHANCE, ZOOM = 0.3, (0.6, 1.0)


def toned(
  images: Float32[Array, 'b h w c'], key: Key[Array, ''], white: tuple[float, float] = WHITE
) -> Float32[Array, 'b h w c']:
  """Another window and curve: grey shares g become black + (white - black) g ** gamma."""
  keys = jax.random.split(key, 4)
  darkest, brightest, log_gamma = (
    _draw(k, images, bounds) for k, bounds in zip(keys, (BLACK, white, LOG_GAMMA))
  )
  share = jnp.clip((images + 1) / 2, 1e-4, 1.0)
  curve = darkest + (brightest - darkest) * share ** jnp.exp(log_gamma)
  changed = jnp.clip(2 * curve - 1, -1, 1)
  return jnp.where(_chosen(keys[3], images, TONE_CHANCE), changed, images)


def in_field(images: Float32[Array, 'b h w c'], key: Key[Array, '']) -> Float32[Array, 'b h w c']:
  """Black outside of an ellipse, as scanners leave what is outside of the patient or the field."""
  keys = jax.random.split(key, 5)
  _, height, width, _ = images.shape
  places = ((jnp.arange(n) + 0.5) / n for n in (height, width))
  rows, columns = jnp.meshgrid(*places, indexing='ij')
  y, x = (_draw(k, images, MIDDLE) for k in keys[:2])
  tall, broad = (_draw(k, images, HALF_AXIS) for k in keys[2:4])
  down, across = (rows[None, ..., None] - y) / tall, (columns[None, ..., None] - x) / broad
  outside = (down**2 + across**2 > 1) & _chosen(keys[4], images, FIELD_CHANCE)
  return jnp.where(outside, -1.0, images)


def zoomed_out(images: Float32[Array, 'b h w c'], key: Key[Array, '']) -> Float32[Array, 'b h w c']:
  """Made smaller about the middle, black around."""
  key_zoom, key_chosen = jax.random.split(key)
  shape = jnp.array(images.shape[1:3])

  def one(image, zoom):
    scale = jnp.full(2, zoom)
    shift = shape * (1 - scale) / 2
    return jax.image.scale_and_translate(image + 1, image.shape, (0, 1), scale, shift, 'linear') - 1

  changed = jax.vmap(one)(images, _draw(key_zoom, images, ZOOM)[:, 0, 0, 0])
  return jnp.where(_chosen(key_chosen, images, ZOOM_CHANCE), changed, images)


def _draw(key: jax.Array, images: jax.Array, bounds: tuple[float, float]) -> jax.Array:
  low, high = bounds
  return jax.random.uniform(key, (len(images), 1, 1, 1), minval=low, maxval=high)


def _chosen(key: jax.Array, images: jax.Array, chance: float) -> jax.Array:
  return jax.random.bernoulli(key, chance, (len(images), 1, 1, 1))
