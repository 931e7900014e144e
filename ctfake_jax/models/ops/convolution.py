"""Convolution: matrix products of gathered pixels and minimal filtering on CPUs, cuDNN's on GPUs.

Images are [b, h, w, c] in the compute dtype, kernels [kh, kw, c_in, c_out] in the same. On NVIDIA
GPUs those of grey images have a form of their own (`single_channel`).

The convolutions are jitted for the sake of tracing: layers of one shape are then traced once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

from ctfake_jax.models.ops import single_channel, winograd
from ctfake_jax.models.ops.platform import by_platform

NHWC = ('NHWC', 'HWIO', 'NHWC')
# Fewer output pixels or channels than these are not worth minimal filtering's transforms.
SMALL_IMAGE_PIXELS = 64
FEW_CHANNELS = 16


@functools.partial(jax.jit, static_argnames=('stride', 'padding'))
def conv(
  x: Float[Array, 'b h w i'],
  kernel: Float[Array, 'kh kw i o'],
  *,
  stride: int = 1,
  padding: int = 0,
) -> Float[Array, 'b rows columns o']:
  """Cross-correlation with `padding` zeros on each side."""

  def on_cpu(x, kernel):
    kernel, pads = trim_to_input(x.shape, kernel, stride, padding)
    if stride == 1 and kernel.shape[:2] != (1, 1):
      return stride1_conv(x, kernel, pads)
    wide = winograd.padded(x, pads)
    if kernel.shape[:2] == (1, 1):
      return product(wide[:, ::stride, ::stride], kernel[0, 0])
    if all(side % stride == 0 for side in wide.shape[1:3] + kernel.shape[:2]):
      return stride1_conv(*_strides_as_channels(wide, kernel, stride))
    return _patches_conv(x, kernel, stride, pads)

  def plain(x, kernel):
    return lax_conv(x, kernel, stride=stride, padding=padding)

  forms = {'cpu': on_cpu}
  if single_channel.fits(x.shape, kernel.shape, stride, padding):
    forms['cuda'] = functools.partial(single_channel.correlate, stride=stride, padding=padding)
  return by_platform(x, kernel, plain=plain, **forms)


def lax_conv(
  x: Float[Array, 'b h w i'],
  kernel: Float[Array, 'kh kw i//{groups} o'],
  *,
  stride: int = 1,
  padding: int = 0,
  groups: int = 1,
) -> Float[Array, 'b rows columns o']:
  """XLA's own."""
  pads = ((padding, padding), (padding, padding))
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), pads, dimension_numbers=NHWC, feature_group_count=groups
  )


def trim_to_input(
  image_shape, kernel: Float[Array, 'kh kw i o'], stride: int, padding: int
) -> tuple[Float[Array, 'trimmed_h trimmed_w i o'], winograd.Pads]:
  """The kernel without the taps that see nothing but padding, and the zeros still needed.

  A 3x3 kernel over a single pixel is its centre: a ninth of the products.
  """
  taps, pads = [], []
  for side, width in zip(image_shape[1:3], kernel.shape[:2]):
    reach = (side + 2 * padding - width) // stride * stride
    first, end = max(0, padding - reach), min(width, padding + side)
    taps.append(slice(first, end))
    before = padding - first
    pads.append((before, max(0, reach + end - first - side - before)))
  return kernel[tuple(taps)], (pads[0], pads[1])


def stride1_conv(
  x: Float[Array, 'b h w i'],
  kernel: Float[Array, 'kh kw i o'],
  pads: winograd.Pads = winograd.NO_PADS,
) -> Float[Array, 'b rows columns o']:
  """Convolution at stride 1, by minimal filtering where there is enough to share."""
  height, width = winograd.output_sides(x.shape, kernel.shape, pads)
  square = kernel.shape[0] == kernel.shape[1] and kernel.shape[0] in winograd.KERNEL_SIDES
  large = height * width >= SMALL_IMAGE_PIXELS and min(kernel.shape[2:]) >= FEW_CHANNELS
  if square and large and x.dtype == jnp.float32:
    return winograd.correlate(x, kernel, pads)
  return _patches_conv(x, kernel, 1, pads)


def _patches_conv(x, kernel, stride: int, pads=winograd.NO_PADS):
  """Convolution as one matrix product of all patches with the kernel."""
  window, flat = kernel.shape[:2], kernel.reshape(-1, kernel.shape[-1])
  if x.shape[-1] < FEW_CHANNELS:
    return product(_patches_by_rows(winograd.padded(x, pads), window, stride), flat)
  return product(_patches(x, window, stride, pads), flat)


def _patches_by_rows(x, window: tuple[int, int], stride: int):
  """What each output pixel sees, f[b, h', w', kh * kw * c], for few channels.

  XLA copies the channels of each tap one after the other, so a row of taps is gathered first and
  copied at once: a grey image's 7x7 patches take a third of the time.
  """
  for axis, taps in ((2, window[1]), (1, window[0])):
    reach = (x.shape[axis] - taps) // stride * stride + 1
    views = [lax.slice_in_dim(x, i, i + reach, stride, axis) for i in range(taps)]
    x = jnp.concatenate(views, -1)
  return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _patches(x, window: tuple[int, int], stride: int, pads):
  """The same for many channels, of images with zeros around them: one gather of pixels.

  As slices, each tap's would be a program of its own to compile. The gather is kept a function of
  its own in the program, too: XLA would otherwise repeat the normalisation before it for each tap.
  """
  with set_xla_metadata(inlineable='false'):
    return _gathered(x, window, stride, pads)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _gathered(x, window, stride, pads):
  b, height, width, c = x.shape
  pixels = height * width
  rows = x.reshape(b, pixels, c)
  if any(map(any, pads)):
    rows = jnp.concatenate([rows, jnp.zeros((b, 1, c), x.dtype)], 1)
  places = np.pad(np.arange(pixels).reshape(height, width), pads, constant_values=pixels)
  taps = np.lib.stride_tricks.sliding_window_view(places, window)[::stride, ::stride]
  seen = rows.at[:, taps.ravel()].get(mode='promise_in_bounds')
  return seen.reshape(b, *taps.shape[:2], window[0] * window[1] * c)


def _patches_forward(x, window, stride, pads):
  return _patches(x, window, stride, pads), x


def _patches_backward(window, stride, pads, x, cotangent):
  """Every tap's cotangents added where it looked: XLA makes one sum of all."""

  def slices(x):
    return jnp.concatenate(shifted_slices(winograd.padded(x, pads), window, stride), -1)

  return jax.linear_transpose(slices, x)(cotangent)


_patches.defvjp(_patches_forward, _patches_backward)


@jax.custom_vjp
def product(
  x: Float[Array, '*places i'], weights: Float[Array, 'i o']
) -> Float[Array, '*places o']:
  """`x @ weights`, with gradients as products that XLA need not transpose for."""
  return (x.reshape(-1, x.shape[-1]) @ weights).reshape(*x.shape[:-1], -1)


def _product_forward(x, weights):
  return product(x, weights), (x, weights)


def _product_backward(residuals, cotangent):
  x, weights = residuals
  c_in, c_out = weights.shape
  flat = cotangent.reshape(-1, c_out)
  dx = lax.dot_general(flat, weights, (((1,), (1,)), ((), ())))
  d_weights = lax.dot_general(x.reshape(-1, c_in), flat, (((0,), (0,)), ((), ())))
  return dx.reshape(x.shape), d_weights


product.defvjp(_product_forward, _product_backward)


def _strides_as_channels(x, kernel, stride: int):
  """The same convolution at stride 1 with stride^2 times the channels; all sides divide."""
  b, h, w, c = x.shape
  kh, kw, _, c_out = kernel.shape
  x = x.reshape(b, h // stride, stride, w // stride, stride, c).transpose(0, 1, 3, 2, 4, 5)
  kernel = kernel.reshape(kh // stride, stride, kw // stride, stride, c, c_out)
  kernel = kernel.transpose(0, 2, 1, 3, 4, 5)
  return (
    x.reshape(b, h // stride, w // stride, stride**2 * c),
    kernel.reshape(kh // stride, kw // stride, stride**2 * c, c_out),
  )


def shifted_slices(
  x: Float[Array, 'b h w c'], window: tuple[int, int], stride: int
) -> list[Float[Array, 'b rows columns c']]:
  """The input seen through each tap of the window, row by row."""
  rows = (x.shape[1] - window[0]) // stride * stride + 1
  columns = (x.shape[2] - window[1]) // stride * stride + 1
  return [
    x[:, i : i + rows : stride, j : j + columns : stride]
    for i in range(window[0])
    for j in range(window[1])
  ]
