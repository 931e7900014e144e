"""Depthwise convolution as shifted slices, which XLA fuses into one pass."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ctfake_jax.models.ops import winograd
from ctfake_jax.models.ops.convolution import lax_conv, shifted_slices
from ctfake_jax.models.ops.platform import by_platform


@functools.partial(jax.jit, static_argnames=('stride', 'padding'))
def depthwise_conv(
  x: Float[Array, 'b h w c'], kernel: Float[Array, 'kh kw 1 c'], *, stride: int, padding: int
) -> Float[Array, 'b rows columns c']:
  """One filter per channel."""

  def shifted(x, kernel):
    return _depthwise(winograd.padded(x, 2 * ((padding, padding),)), kernel, stride)

  def plain(x, kernel):
    return lax_conv(x, kernel, stride=stride, padding=padding, groups=x.shape[-1])

  return by_platform(x, kernel, plain=plain, cpu=shifted, cuda=shifted)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x, kernel, stride: int):
  """Valid depthwise convolution as a sum of shifted products, and so is its gradient in x.

  All three sums run in float32.
  """
  taps = shifted_slices(x.astype(jnp.float32), kernel.shape[:2], stride)
  weights = kernel.astype(jnp.float32).reshape(-1, 1, 1, 1, x.shape[-1])
  products = [tap * weight for tap, weight in zip(taps, weights)]
  return functools.reduce(jnp.add, products).astype(x.dtype)


def _depthwise_forward(x, kernel, stride: int):
  return _depthwise(x, kernel, stride), (x, kernel)


def _depthwise_backward(stride: int, residuals, cotangent):
  x, kernel, cotangent = (array.astype(jnp.float32) for array in (*residuals, cotangent))
  dx = _depthwise_input_gradient(x, kernel, stride, cotangent)
  d_kernel = _depthwise_kernel_gradient(x, kernel.shape[:2], stride, cotangent)
  gradients = (dx, d_kernel.reshape(kernel.shape))
  return tuple(g.astype(value.dtype) for g, value in zip(gradients, residuals))


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise_kernel_gradient(x, window: tuple[int, int], stride: int, cotangent):
  """f[kh * kw, c], sums over pixels of what each tap saw times the cotangent."""

  def products(x, cotangent):
    return [tap * cotangent for tap in shifted_slices(x, window, stride)]

  def on_cpu(x, cotangent):
    return _sums_over_pixels(products(x, cotangent))

  def plain(x, cotangent):
    return jnp.stack([product.sum((0, 1, 2)) for product in products(x, cotangent)])

  return by_platform(x, cotangent, plain=plain, cpu=on_cpu)


def _sums_over_pixels(images: list[jax.Array]) -> jax.Array:
  """f[len, c] from f[b, h, w, c] each; one reduction of all, for XLA copies each one's slice."""
  zeros = [jnp.zeros((), images[0].dtype)] * len(images)
  over_width = lax.reduce(images, zeros, lambda a, b: [x + y for x, y in zip(a, b)], (2,))
  return jnp.stack(over_width).sum((1, 2))


def _depthwise_input_gradient(x, kernel, stride: int, cotangent):
  """Input pixels at one offset to the stride see the same taps: one sum of shifts each."""
  b, h, w, c = x.shape
  kh, kw = kernel.shape[:2]
  rows, columns = -(-h // stride), -(-w // stride)
  up, left = (kh - 1) // stride, (kw - 1) // stride
  below, right = rows - cotangent.shape[1], columns - cotangent.shape[2]
  padded = jnp.pad(cotangent, ((0, 0), (up, below), (left, right), (0, 0)))

  def pixels_at(row: int, column: int):
    terms = [
      padded[:, up - i : up - i + rows, left - j : left - j + columns]
      * kernel[row + i * stride, column + j * stride].reshape(1, 1, 1, c)
      for i in range(-(-(kh - row) // stride))
      for j in range(-(-(kw - column) // stride))
    ]
    return functools.reduce(jnp.add, terms, jnp.zeros((), x.dtype))

  phases = [
    jnp.broadcast_to(pixels_at(row, column), (b, rows, columns, c))
    for row in range(stride)
    for column in range(stride)
  ]
  if stride == 1:
    return phases[0]
  grid = jnp.stack(phases).reshape(stride, stride, b, rows, columns, c)
  grid = grid.transpose(2, 3, 0, 4, 1, 5)
  return grid.reshape(b, rows * stride, columns * stride, c)[:, :h, :w]
