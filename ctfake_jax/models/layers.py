"""Convolution and normalisation as Flax modules; `ops` decides how they are computed."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ctfake_jax.models import initializers
from ctfake_jax.models.ops.convolution import conv
from ctfake_jax.models.ops.depthwise import depthwise_conv
from ctfake_jax.models.ops.platform import has_own_forms
from ctfake_jax.models.ops.transposed import conv_transpose

# Share of the running statistics that a training step keeps.
MOMENTUM = 0.9
# Collection of what a caller adds to stages, to learn how the output answers (`attribution`).
PERTURBATIONS = 'perturbations'

# What a network says of its input beside its output, by name.
Features = dict[str, Float[Array, '...']]

Dense = functools.partial(
  nn.Dense, kernel_init=initializers.fan_in_normal, bias_init=initializers.zeros
)


def stage(
  module: nn.Module, features: Features, name: str, x: Float[Array, 'b h w c']
) -> Float[Array, 'b h w c']:
  """Names a map of activations; a perturbation of that name, if the caller has one, is added."""
  if module.has_variable(PERTURBATIONS, name):
    x = x + module.get_variable(PERTURBATIONS, name)
  features[name] = x
  return x


class Conv(nn.Module):
  """Convolution without bias (a normalisation follows), symmetric zero padding.

  Attributes:
    features: output channels.
    kernel_size: side of the square kernel.
    stride: step in pixels.
    padding: zeros on each side; -1 stands for kernel_size // 2.
    depthwise: one filter per input channel.
    transpose: the input's gradient of a convolution, for generators.
    dtype: compute dtype; parameters stay float32.
    kernel_init: initialiser of the kernel.
  """

  features: int
  kernel_size: int = 3
  stride: int = 1
  padding: int = -1
  depthwise: bool = False
  transpose: bool = False
  dtype: DTypeLike = jnp.float32
  kernel_init: Callable = initializers.fan_out_normal

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b rows columns features']:
    c_in = 1 if self.depthwise else x.shape[-1]
    shape = (self.kernel_size, self.kernel_size, c_in, self.features)
    kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
    padding = self.kernel_size // 2 if self.padding < 0 else self.padding
    operation = depthwise_conv if self.depthwise else conv_transpose if self.transpose else conv
    return operation(
      x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, padding=padding
    )


class BatchNorm(nn.Module):
  """Batch normalisation (Ioffe & Szegedy 2015) with float32 statistics.

  Under `jit` over a mesh the mean runs over the global batch. With `train=False` the running
  statistics of the collection `batch_stats` are used.
  """

  momentum: float = MOMENTUM
  epsilon: float = 1e-5
  dtype: DTypeLike = jnp.float32
  scale_init: Callable = initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], *, train: bool) -> Float[Array, 'b h w c']:
    shape = (x.shape[-1],)
    running_mean: nn.Variable = self.variable(
      'batch_stats', 'mean', initializers.zeros, None, shape
    )
    running_var: nn.Variable = self.variable('batch_stats', 'var', initializers.ones, None, shape)
    scale = self.param('scale', self.scale_init, shape, jnp.float32)
    bias = self.param('bias', initializers.zeros, shape, jnp.float32)
    if train:
      normalise = _normalised_once if has_own_forms() else _by_own_statistics
      y, mean, var = normalise(x, scale, bias, self.epsilon)
      if not self.is_initializing():
        running_mean.value = self._blend(running_mean.value, mean)
        running_var.value = self._blend(running_var.value, var)
    else:
      mean, var = running_mean.value, running_var.value
      y = _standardised(x, mean, var, scale, bias, self.epsilon)
    return y.astype(self.dtype)

  def _blend(self, old: jax.Array | np.ndarray, new: jax.Array) -> jax.Array:
    return self.momentum * jnp.asarray(old) + (1 - self.momentum) * new


def _by_own_statistics(x, scale, bias, epsilon: float) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Standardised by the batch's own statistics, and these."""
  mean, var = _moments(x)
  return _standardised(x, mean, var, scale, bias, epsilon), mean, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalised(x, scale, bias, epsilon: float) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The same; no gradient flows through the statistics alone.

  Its derivative (Ioffe & Szegedy 2015, section 3) is written out as one line in x and the
  cotangent: JAX's own passes mean, variance, their limit and the root one by one, and each such
  step would be compiled for every number of channels.
  """
  return _by_own_statistics(x, scale, bias, epsilon)


def _normalised_forward(x, scale, bias, epsilon):
  y, mean, var = _normalised(x, scale, bias, epsilon)
  return (y, mean, var), (x, scale, mean, var)


def _normalised_backward(epsilon, residuals, cotangents):
  x, scale, mean, var = residuals
  dy, count = cotangents[0], x.size // x.shape[-1]
  inverse = lax.rsqrt(var + epsilon)
  d_bias = dy.sum((0, 1, 2))
  d_scale = (dy * ((x - _over_pixels(mean)) * _over_pixels(inverse))).sum((0, 1, 2))
  factor = scale * inverse
  slope = -factor * inverse * d_scale / count
  offset = -factor * d_bias / count - slope * mean
  dx = _over_pixels(factor) * dy + _over_pixels(slope) * x + _over_pixels(offset)
  return dx.astype(x.dtype), d_scale, d_bias


_normalised.defvjp(_normalised_forward, _normalised_backward)
# Jitted, like the convolutions of `ops`: layers of one shape are then traced once.
_normalised_once = jax.jit(_normalised, static_argnums=3)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and variance per channel, float32, in one pass over the batch."""
  x = x.astype(jnp.float32)
  mean = x.mean((0, 1, 2))
  var = (x * x).mean((0, 1, 2)) - mean * mean
  return mean, jnp.maximum(var, 0.0)


@jax.jit
def _standardised(x, mean, var, scale, bias, epsilon) -> jax.Array:
  factor = scale * lax.rsqrt(var + epsilon)
  offset = bias - mean * factor
  return x * _over_pixels(factor) + _over_pixels(offset)


def _over_pixels(values: jax.Array) -> jax.Array:
  """f[c] as f[1, 1, 1, c]."""
  return values.reshape(1, 1, 1, -1)
