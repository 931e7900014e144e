"""Convolution, pooling and normalisation, and how each is lowered on each platform.

Images are [b, h, w, c] in the compute dtype, kernels [kh, kw, c_in, c_out] in float32. On GPU and
TPU every operation is the plain XLA one. XLA's CPU backend is slow in the gradients of
convolutions, in depthwise, transposed and small-image convolutions and in pooling; there the same
sums are written as matrix products and shifted slices. Parameters never depend on the form.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

NHWC = ('NHWC', 'HWIO', 'NHWC')
# Below this many output pixels the patches of a 3x3 kernel fit the cache and beat XLA's loops.
SMALL_IMAGE_PIXELS = 64
# Share of the running statistics that a training step keeps.
MOMENTUM = 0.9


def conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
  """Cross-correlation with `padding` zeros on each side: f[b, h, w, i] -> f[b, h', w', o]."""

  def on_cpu(x, kernel):
    if kernel.shape[:2] == (1, 1) and padding == 0:
      return x[:, ::stride, ::stride] @ kernel[0, 0]
    x = _pad(x, padding, padding, 0.0)
    if stride == 1 and _output_pixels(x, kernel) >= SMALL_IMAGE_PIXELS and x.shape[-1] > 1:
      return _conv_stride1(x, kernel)
    return _patches(x, kernel.shape[:2], stride) @ kernel.reshape(-1, kernel.shape[-1])

  def elsewhere(x, kernel):
    return _lax_conv(x, kernel, stride=stride, padding=padding)

  return lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)


def depthwise_conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
  """One filter per channel: f[b, h, w, c] with kernel f[kh, kw, 1, c] -> f[b, h', w', c]."""

  def on_cpu(x, kernel):
    x = _pad(x, padding, padding, 0.0)
    taps = _shifted_slices(x, kernel.shape[:2], stride)
    weights = kernel.reshape(-1, 1, 1, 1, x.shape[-1])
    return functools.reduce(jnp.add, [tap * weight for tap, weight in zip(taps, weights)])

  def elsewhere(x, kernel):
    return _lax_conv(x, kernel, stride=stride, padding=padding, groups=x.shape[-1])

  return lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)


def conv_transpose(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
  """Gradient of `conv` with respect to its input: side h -> (h - 1) * stride + k - 2 * padding.

  Every input pixel stamps the kernel f[kh, kw, i, o] onto the output at `stride`, as in PyTorch's
  ConvTranspose2d.
  """

  def on_cpu(x, kernel):
    full = _stamp(x, kernel, stride)
    return full[:, padding : full.shape[1] - padding, padding : full.shape[2] - padding]

  def elsewhere(x, kernel):
    around = [(k - 1 - padding, k - 1 - padding) for k in kernel.shape[:2]]
    return lax.conv_general_dilated(
      x, kernel[::-1, ::-1], (1, 1), around, lhs_dilation=(stride, stride), dimension_numbers=NHWC
    )

  return lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)


def max_pool(x: jax.Array, *, window: int, stride: int, padding: int = 0) -> jax.Array:
  """Maximum over square windows; the padding never wins."""

  def on_cpu(x):
    slices = _shifted_slices(_pad(x, padding, padding, -jnp.inf), (window, window), stride)
    return functools.reduce(jnp.maximum, slices)

  def elsewhere(x):
    pads = ((padding, padding), (padding, padding))
    return nn.max_pool(x, (window, window), (stride, stride), pads)

  return lax.platform_dependent(x, cpu=on_cpu, default=elsewhere)


def _lax_conv(x, kernel, *, stride=1, padding=0, groups=1):
  pads = ((padding, padding), (padding, padding))
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), pads, dimension_numbers=NHWC, feature_group_count=groups
  )


def _pad(x, rows: int, columns: int, value: float):
  if not (rows or columns):
    return x
  pads = ((0, 0), (rows, rows), (columns, columns), (0, 0))
  return jnp.pad(x, pads, constant_values=jnp.asarray(value, x.dtype))


def _output_pixels(x, kernel) -> int:
  return (x.shape[1] - kernel.shape[0] + 1) * (x.shape[2] - kernel.shape[1] + 1)


def _shifted_slices(x, window: tuple[int, int], stride: int) -> list[jax.Array]:
  """The input seen through each tap of the window, row by row: kh * kw of f[b, h', w', c]."""
  rows = (x.shape[1] - window[0]) // stride * stride + 1
  columns = (x.shape[2] - window[1]) // stride * stride + 1
  return [
    x[:, i : i + rows : stride, j : j + columns : stride]
    for i in range(window[0])
    for j in range(window[1])
  ]


def _patches(x, window: tuple[int, int], stride: int) -> jax.Array:
  return jnp.concatenate(_shifted_slices(x, window, stride), axis=-1)


@jax.custom_vjp
def _conv_stride1(x, kernel):
  """Valid convolution whose gradients are a forward convolution and row-wise matrix products."""
  return _lax_conv(x, kernel)


def _conv_stride1_forward(x, kernel):
  return _lax_conv(x, kernel), (x, kernel)


def _conv_stride1_backward(residuals, cotangent):
  x, kernel = residuals
  kh, kw, c_in, c_out = kernel.shape
  flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
  dx = _lax_conv(_pad(cotangent, kh - 1, kw - 1, 0.0), flipped)
  rows = _patches(x, (1, kw), 1)
  flat = cotangent.reshape(-1, c_out)
  height = cotangent.shape[1]
  dkernel = [rows[:, i : i + height].reshape(-1, kw * c_in).T @ flat for i in range(kh)]
  return dx, jnp.stack(dkernel).reshape(kernel.shape)


_conv_stride1.defvjp(_conv_stride1_forward, _conv_stride1_backward)


def _stamp(x, kernel, stride: int):
  """Overlap-add of `x @ kernel` at `stride`, every output phase a channel group of its own.

  A kernel of side q * stride touches q inputs per output and axis, so the sum is a stride-1
  convolution of side q with stride^2 times the channels, whose channels are then laid out as
  pixels (Shi et al. 2016, arXiv:1609.05158).
  """
  b, h, w, c_in = x.shape
  kh, kw, _, c_out = kernel.shape
  qh, qw = -(-kh // stride), -(-kw // stride)
  kernel = jnp.pad(kernel, ((0, qh * stride - kh), (0, qw * stride - kw), (0, 0), (0, 0)))
  taps = kernel.reshape(qh, stride, qw, stride, c_in, c_out)
  rows, columns = h + qh - 1, w + qw - 1
  if c_out == 1 or rows * columns < SMALL_IMAGE_PIXELS:
    phases = _stamp_by_products(x, taps)
  else:
    flipped = taps[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5).reshape(qh, qw, c_in, -1)
    phases = _conv_stride1(_pad(x, qh - 1, qw - 1, 0.0), flipped)
  phases = phases.reshape(b, rows, columns, stride, stride, c_out).transpose(0, 1, 3, 2, 4, 5)
  full = phases.reshape(b, rows * stride, columns * stride, c_out)
  return full[:, : (h - 1) * stride + kh, : (w - 1) * stride + kw]


def _stamp_by_products(x, taps):
  """The same for few pixels or channels: one matrix product, then shifted sums."""
  b, h, w, c_in = x.shape
  qh, stride, qw, _, _, c_out = taps.shape
  by_phase = taps.transpose(4, 0, 2, 1, 3, 5).reshape(c_in, -1)
  products = (x @ by_phase).reshape(b, h, w, qh, qw, stride * stride * c_out)
  stamps = [
    jnp.pad(products[:, :, :, i, j], ((0, 0), (i, qh - 1 - i), (j, qw - 1 - j), (0, 0)))
    for i in range(qh)
    for j in range(qw)
  ]
  return functools.reduce(jnp.add, stamps)


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
  dtype: jnp.dtype = jnp.float32
  kernel_init: Callable = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
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
  dtype: jnp.dtype = jnp.float32
  scale_init: Callable = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    shape = (x.shape[-1],)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape)
    scale = self.param('scale', self.scale_init, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
    if train:
      mean, var = _moments(x)
      if not self.is_initializing():
        running_mean.value = self._blend(running_mean.value, mean)
        running_var.value = self._blend(running_var.value, var)
    else:
      mean, var = running_mean.value, running_var.value
    factor = scale * lax.rsqrt(var + self.epsilon)
    offset = bias - mean * factor
    return (x * factor.reshape(1, 1, 1, -1) + offset.reshape(1, 1, 1, -1)).astype(self.dtype)

  def _blend(self, old: jax.Array, new: jax.Array) -> jax.Array:
    return self.momentum * old + (1 - self.momentum) * new


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and variance per channel, float32, in one pass over the batch."""
  x = x.astype(jnp.float32)
  mean = x.mean((0, 1, 2))
  var = (x * x).mean((0, 1, 2)) - mean * mean
  return mean, jnp.maximum(var, 0.0)
