"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381).

Enters f[b, h, w, c] in [-1, 1]; leaves logits f32[b, classes] and named features. Modules bear
torchvision's names with '_' for '.', so that published weights map one to one.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from ctfake_jax.models import layers

# Table 2 of the paper: expansion, output channels, repeats, stride of the first repeat.
STAGES = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
  """1x1 expansion, depthwise 3x3, linear 1x1 projection; shortcut where shapes agree."""

  width: int
  stride: int
  expansion: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> Float[Array, 'b rows columns width']:
    conv = functools.partial(layers.Conv, dtype=self.dtype)
    norm = functools.partial(layers.BatchNorm, dtype=self.dtype)
    shortcut, hidden, i = x, x.shape[-1] * self.expansion, 0
    if self.expansion != 1:
      x = nn.relu6(norm(name='conv_0_1')(conv(hidden, 1, name='conv_0_0')(x), train=train))
      i = 1
    x = conv(hidden, 3, self.stride, depthwise=True, name=f'conv_{i}_0')(x)
    x = nn.relu6(norm(name=f'conv_{i}_1')(x, train=train))
    x = norm(name=f'conv_{i + 2}')(conv(self.width, 1, name=f'conv_{i + 1}')(x), train=train)
    return x + shortcut if self.stride == 1 and shortcut.shape == x.shape else x


class MobileNetV2(nn.Module):
  """MobileNetV2 at width multiplier 1.

  Attributes:
    num_classes: length of the logits.
    stages: rows of (expansion, channels, repeats, stride).
    last_width: channels before the pooling.
    dropout: rate before the dense layer.
    dtype: compute dtype.
  """

  num_classes: int
  stages: tuple[tuple[int, int, int, int], ...] = STAGES
  last_width: int = 1280
  dropout: float = 0.2
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> tuple[Float32[Array, 'b classes'], layers.Features]:
    x = layers.Conv(32, 3, 2, dtype=self.dtype, name='features_0_0')(x)
    x = nn.relu6(layers.BatchNorm(dtype=self.dtype, name='features_0_1')(x, train=train))
    features, index = {'stem': x}, 1
    for i, (expansion, width, repeats, stride) in enumerate(self.stages, 1):
      for j in range(repeats):
        block = InvertedResidual(
          width, stride if j == 0 else 1, expansion, self.dtype, name=f'features_{index}'
        )
        x, index = block(x, train=train), index + 1
      x = layers.stage(self, features, f'stage{i}', x)
    x = layers.Conv(self.last_width, 1, dtype=self.dtype, name=f'features_{index}_0')(x)
    x = nn.relu6(layers.BatchNorm(dtype=self.dtype, name=f'features_{index}_1')(x, train=train))
    x = features['pre_logits'] = x.mean((1, 2)).astype(jnp.float32)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return layers.Dense(self.num_classes, name='classifier_1')(x), features
