"""Densely connected networks (Huang et al. 2017, arXiv:1608.06993).

Enters f[b, h, w, c] in [-1, 1]; leaves logits f32[b, classes] and named features. Modules bear
torchvision's names with '_' for '.'.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from ctfake_jax.models import layers
from ctfake_jax.models.ops.pooling import max_pool

BOTTLENECK = 4  # channels of a layer's 1x1 convolution, in growths


class DenseNet(nn.Module):
  """DenseNet with bottlenecks and halving transitions.

  Attributes:
    num_classes: length of the logits.
    block_sizes: layers of each block.
    growth: channels that a layer adds.
    dtype: compute dtype.
  """

  num_classes: int
  block_sizes: tuple[int, ...]
  growth: int = 32
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> tuple[Float32[Array, 'b classes'], layers.Features]:
    conv = functools.partial(layers.Conv, dtype=self.dtype)

    def normed(x, name: str):
      return nn.relu(layers.BatchNorm(dtype=self.dtype, name=name)(x, train=train))

    x = normed(conv(2 * self.growth, 7, 2, name='features_conv0')(x), 'features_norm0')
    x = max_pool(x, window=3, stride=2, padding=1)
    features = {'stem': x}
    for i, size in enumerate(self.block_sizes, 1):
      for j in range(1, size + 1):
        name = f'features_denseblock{i}_denselayer{j}'
        new = conv(BOTTLENECK * self.growth, 1, name=f'{name}_conv1')(normed(x, f'{name}_norm1'))
        new = conv(self.growth, 3, name=f'{name}_conv2')(normed(new, f'{name}_norm2'))
        x = jnp.concatenate([x, new], -1)
      x = layers.stage(self, features, f'stage{i}', x)
      if i < len(self.block_sizes):
        name = f'features_transition{i}'
        x = conv(x.shape[-1] // 2, 1, name=f'{name}_conv')(normed(x, f'{name}_norm'))
        x = nn.avg_pool(x, (2, 2), (2, 2))
    x = normed(x, 'features_norm5')
    x = features['pre_logits'] = x.mean((1, 2)).astype(jnp.float32)
    return layers.Dense(self.num_classes, name='classifier')(x), features


DenseNet121 = functools.partial(DenseNet, block_sizes=(6, 12, 24, 16))
DenseNet201 = functools.partial(DenseNet, block_sizes=(6, 12, 48, 32))
