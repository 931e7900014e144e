"""Transposed convolution: on CPUs a matrix product whose results are added where they overlap."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ctfake_jax.models.ops import single_channel
from ctfake_jax.models.ops.convolution import NHWC, SMALL_IMAGE_PIXELS, product, stride1_conv
from ctfake_jax.models.ops.platform import by_platform


@functools.partial(jax.jit, static_argnames=('stride', 'padding'))
def conv_transpose(
  x: Float[Array, 'b h w i'], kernel: Float[Array, 'kh kw i o'], *, stride: int, padding: int
) -> Float[Array, 'b rows columns o']:
  """Gradient of `conv` with respect to its input: side h -> (h - 1) * stride + k - 2 * padding.

  Every input pixel stamps the kernel onto the output at `stride`, as in PyTorch's
  ConvTranspose2d.
  """

  def on_cpu(x, kernel):
    full = _stamp(x, kernel, stride)
    return full[:, padding : full.shape[1] - padding, padding : full.shape[2] - padding]

  def plain(x, kernel):
    around = [(k - 1 - padding, k - 1 - padding) for k in kernel.shape[:2]]
    return lax.conv_general_dilated(
      x, kernel[::-1, ::-1], (1, 1), around, lhs_dilation=(stride, stride), dimension_numbers=NHWC
    )

  forms = {'cpu': on_cpu}
  images = single_channel.stamped_shape(x, kernel, stride=stride, padding=padding)
  if single_channel.fits(images, kernel.shape, stride, padding):
    forms['cuda'] = functools.partial(single_channel.stamp, stride=stride, padding=padding)
  return by_platform(x, kernel, plain=plain, **forms)


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
    phases = stride1_conv(x, flipped, ((qh - 1, qh - 1), (qw - 1, qw - 1)))
  phases = phases.reshape(b, rows, columns, stride, stride, c_out).transpose(0, 1, 3, 2, 4, 5)
  full = phases.reshape(b, rows * stride, columns * stride, c_out)
  return full[:, : (h - 1) * stride + kh, : (w - 1) * stride + kw]


def _stamp_by_products(x, taps):
  """The same for few pixels or channels: one matrix product, then shifted sums."""
  b, h, w, c_in = x.shape
  qh, stride, qw, _, _, c_out = taps.shape
  by_phase = taps.transpose(4, 0, 2, 1, 3, 5).reshape(c_in, -1)
  products = product(x, by_phase).reshape(b, h, w, qh, qw, stride * stride * c_out)
  stamps = [
    jnp.pad(products[:, :, :, i, j], ((0, 0), (i, qh - 1 - i), (j, qw - 1 - j), (0, 0)))
    for i in range(qh)
    for j in range(qw)
  ]
  return functools.reduce(jnp.add, stamps)
