"""The custom CNN: a plain stack of blocks, then global pooling, dropout and a dense layer.

Enters f[b, h, w, c] in [-1, 1]; leaves logits f32[b, classes] and named features. Each block is
some times (3x3 convolution, batch norm, ReLU) and a 2x2 maximum pooling. Lesions are told by
texture and density at a few pixels' scale wherever they lie, so the filters stay 3x3, the widths
double while the resolution halves, and global average pooling throws the position away; batch
norm and dropout stand against the small data sets of this field.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from ctfake_jax.models import layers
from ctfake_jax.models.ops.pooling import max_pool


class CNN(nn.Module):
  """Plain convolutional classifier.

  Attributes:
    num_classes: length of the logits.
    widths: channels of each block.
    convs: convolutions in each block; the last number holds for the blocks that remain.
    stem_stride: of the first convolution; 2 halves large images at once.
    dropout: rate before the dense layer.
    dtype: compute dtype.
  """

  num_classes: int
  widths: tuple[int, ...] = (32, 64, 128, 256)
  convs: tuple[int, ...] = (1,)
  stem_stride: int = 1
  dropout: float = 0.5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> tuple[Float32[Array, 'b classes'], layers.Features]:
    features: layers.Features = {}
    for i, width in enumerate(self.widths, 1):
      for j in range(self.convs[min(i, len(self.convs)) - 1]):
        stride = self.stem_stride if i == 1 and j == 0 else 1
        x = layers.Conv(width, stride=stride, dtype=self.dtype, name=f'block{i}_conv{j + 1}')(x)
        x = nn.relu(layers.BatchNorm(dtype=self.dtype, name=f'block{i}_bn{j + 1}')(x, train=train))
      x = max_pool(x, window=2, stride=2)
      x = layers.stage(self, features, f'stage{i}', x)
    x = features['pre_logits'] = x.mean((1, 2)).astype(jnp.float32)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return layers.Dense(self.num_classes, name='fc')(x), features
