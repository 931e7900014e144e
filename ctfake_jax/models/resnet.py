"""Residual networks (He, Zhang, Ren & Sun 2015, arXiv:1512.03385).

Enters f[b, h, w, c] in [-1, 1]; leaves logits f32[b, classes] and named features. The bottleneck
strides in its 3x3 convolution, as torchvision's weights expect. Modules bear torchvision's names
with '_' for '.', so that published weights map one to one.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from ctfake_jax.models import initializers, layers
from ctfake_jax.models.ops.pooling import max_pool


class ResidualBlock(nn.Module):
  """Two 3x3 convolutions, or 1x1, 3x3, 1x1 where `bottleneck`, around a shortcut."""

  width: int
  stride: int
  bottleneck: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> Float[Array, 'b rows columns width']:
    conv = functools.partial(layers.Conv, dtype=self.dtype)
    norm = functools.partial(layers.BatchNorm, dtype=self.dtype)
    out = self.width * (4 if self.bottleneck else 1)
    plan = (
      [(self.width, 1, 1), (self.width, 3, self.stride), (out, 1, 1)]
      if self.bottleneck
      else [(self.width, 3, self.stride), (out, 3, 1)]
    )
    shortcut = x
    if self.stride > 1 or x.shape[-1] != out:
      shortcut = conv(out, 1, self.stride, name='downsample_0')(x)
      shortcut = norm(name='downsample_1')(shortcut, train=train)
    for i, (width, size, stride) in enumerate(plan, 1):
      x = conv(width, size, stride, name=f'conv{i}')(x)
      # Blocks start as identities (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
      last = i == len(plan)
      scale_init = initializers.zeros if last else initializers.ones
      x = norm(name=f'bn{i}', scale_init=scale_init)(x, train=train)
      x = x if last else nn.relu(x)
    return nn.relu(x + shortcut)


class ResNet(nn.Module):
  """ResNet with four stages.

  Attributes:
    num_classes: length of the logits.
    stage_sizes: blocks per stage.
    bottleneck: three-convolution blocks of four times the width.
    width: channels of the first stage; doubles from stage to stage.
    dtype: compute dtype.
  """

  num_classes: int
  stage_sizes: tuple[int, ...]
  bottleneck: bool
  width: int = 64
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> tuple[Float32[Array, 'b classes'], layers.Features]:
    x = layers.Conv(self.width, 7, 2, dtype=self.dtype, name='conv1')(x)
    x = nn.relu(layers.BatchNorm(dtype=self.dtype, name='bn1')(x, train=train))
    x = max_pool(x, window=3, stride=2, padding=1)
    features = {'stem': x}
    for i, blocks in enumerate(self.stage_sizes):
      for j in range(blocks):
        stride = 2 if i > 0 and j == 0 else 1
        block = ResidualBlock(
          self.width * 2**i, stride, self.bottleneck, self.dtype, name=f'layer{i + 1}_{j}'
        )
        x = block(x, train=train)
      x = layers.stage(self, features, f'stage{i + 1}', x)
    x = features['pre_logits'] = x.mean((1, 2)).astype(jnp.float32)
    return layers.Dense(self.num_classes, name='fc')(x), features


ResNet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), bottleneck=False)
ResNet50 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), bottleneck=True)
ResNet101 = functools.partial(ResNet, stage_sizes=(3, 4, 23, 3), bottleneck=True)
