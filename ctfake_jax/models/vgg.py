"""VGG19 (Simonyan & Zisserman 2015, arXiv:1409.1556, column E), without normalisation.

Enters f[b, h, w, c] in [-1, 1], sides of at least 32; leaves logits f32[b, classes] and named
features. Whatever the image's side, the dense layers see 7x7 averages of the last convolutions.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from ctfake_jax.models import initializers, layers
from ctfake_jax.models.ops.pooling import max_pool

CONVS = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))
GRID = 7
HIDDEN = 4096


class VGG19(nn.Module):
  """Sixteen 3x3 convolutions and three dense layers.

  Attributes:
    num_classes: length of the logits.
    stages: convolutions and width of each; a 2x2 maximum pooling follows.
    hidden: width of the two dense layers between.
    dropout: rate after each hidden dense layer.
    dtype: compute dtype.
  """

  num_classes: int
  stages: tuple[tuple[int, int], ...] = CONVS
  hidden: int = HIDDEN
  dropout: float = 0.5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> tuple[Float32[Array, 'b classes'], layers.Features]:
    features: layers.Features = {}
    for i, (convs, width) in enumerate(self.stages, 1):
      for j in range(1, convs + 1):
        x = layers.Conv(width, dtype=self.dtype, name=f'stage{i}_conv{j}')(x)
        bias = self.param(f'stage{i}_bias{j}', initializers.zeros, (width,), jnp.float32)
        x = nn.relu(x + bias.astype(self.dtype).reshape(1, 1, 1, -1))
      x = max_pool(x, window=2, stride=2)
      x = layers.stage(self, features, f'stage{i}', x)
    x = adaptive_average(x.astype(jnp.float32), GRID).reshape(len(x), -1)
    for i in (1, 2):
      x = nn.relu(layers.Dense(self.hidden, name=f'hidden{i}')(x))
      x = features['pre_logits'] = nn.Dropout(self.dropout, deterministic=not train)(x)
    return layers.Dense(self.num_classes, name='fc')(x), features


def adaptive_average(x: Float[Array, 'b h w c'], side: int) -> Float[Array, 'b {side} {side} c']:
  """Means of `side` x `side` windows that cover the image evenly."""

  def windows(length: int) -> np.ndarray:
    rows = np.zeros((side, length), np.float32)
    for i in range(side):
      start, end = i * length // side, -(-(i + 1) * length // side)
      rows[i, start:end] = 1 / (end - start)
    return rows

  return jnp.einsum('ih,jw,bhwc->bijc', windows(x.shape[1]), windows(x.shape[2]), x)
