"""Testing on several shifted views of an image, whose outputs are averaged.

Krizhevsky, Sutskever & Hinton 2012 averaged the predictions of ten crops; here the image moves by
a fortieth of its side, along the axes (5 views) and the diagonals (9).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from ctfake_jax.models.layers import Features

DIRECTIONS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
SIDES_PER_SHIFT = 40


class TestTimeAugmentation(nn.Module):
  """A classifier that is trained as it is and tested on `views` views; parameters are its own.

  Attributes:
    network: of images to logits and named features.
    views: how many of `DIRECTIONS`.
  """

  network: nn.Module
  views: int

  def setup(self):
    nn.share_scope(self, self.network)

  def __call__(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> tuple[Float32[Array, 'b classes'], Features]:
    if train:
      return self.network(x, train=True)
    outputs = self.network(shifted(x, self.views), train=False)
    return jax.tree.map(lambda out: out.reshape(self.views, -1, *out.shape[1:]).mean(0), outputs)


def shifted(x: Float[Array, 'b h w c'], views: int) -> Float[Array, '{views}*b h w c']:
  """All images of a view together; edge pixels fill what is left free."""
  height, width = x.shape[1:3]
  by = max(1, round(min(height, width) / SIDES_PER_SHIFT))
  padded = jnp.pad(x, ((0, 0), (by, by), (by, by), (0, 0)), mode='edge')
  return jnp.concatenate(
    [
      padded[:, by + by * down : by + by * down + height, by + by * right : by + by * right + width]
      for down, right in DIRECTIONS[:views]
    ]
  )
