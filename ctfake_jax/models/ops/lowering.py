"""Convolution and pooling, and how each is lowered on each platform.

Images are [b, h, w, c] in the compute dtype, kernels [kh, kw, c_in, c_out] in the same. On TPU
every operation is the plain XLA one. XLA's CPU backend is slow in the gradients of convolutions, in
depthwise, transposed and small-image convolutions and in pooling; there the same sums are written
as matrix products of gathered pixels and as shifted slices. On NVIDIA GPUs convolutions are
cuDNN's, but those of grey images and transposed ones to them (`single_channel`); depthwise ones and
pooling are shifted slices, which XLA fuses into one pass.

The convolutions are jitted for the sake of tracing: layers of one shape are then traced once.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from ctfake_jax.models.ops import single_channel, winograd

NHWC = ('NHWC', 'HWIO', 'NHWC')
# Fewer output pixels or channels than these are not worth minimal filtering's transforms.
SMALL_IMAGE_PIXELS = 64
FEW_CHANNELS = 16
# `with every_platform(True):` traces programs for other platforms than the one at hand. JAX keeps
# its caches apart by it.
every_platform = jax.make_user_context(False)


def _by_platform(*arguments, default, **forms):
  """The result in the form of the platform that the program runs on.

  On a CPU the forms of others are not even traced: differentiated and compiled with the rest, they
  were a tenth and more of a first step's time.
  """
  if jax.default_backend() == 'cpu' and not every_platform.value:
    return forms.get('cpu', default)(*arguments)
  return lax.platform_dependent(*arguments, default=default, **forms)


@functools.partial(jax.jit, static_argnames=('stride', 'padding'))
def conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
  """Cross-correlation with `padding` zeros on each side: f[b, h, w, i] -> f[b, h', w', o]."""

  def on_cpu(x, kernel):
    kernel, pads = _seen_taps(x.shape, kernel, stride, padding)
    if stride == 1 and kernel.shape[:2] != (1, 1):
      return _stride1_conv(x, kernel, pads)
    wide = winograd.padded(x, pads)
    if kernel.shape[:2] == (1, 1):
      return _product(wide[:, ::stride, ::stride], kernel[0, 0])
    if all(side % stride == 0 for side in wide.shape[1:3] + kernel.shape[:2]):
      return _stride1_conv(*_strides_as_channels(wide, kernel, stride))
    return _patches_conv(x, kernel, stride, pads)

  def elsewhere(x, kernel):
    return _lax_conv(x, kernel, stride=stride, padding=padding)

  forms = {'cpu': on_cpu}
  if single_channel.fits(x.shape, kernel.shape, stride, padding):
    forms['cuda'] = functools.partial(single_channel.correlate, stride=stride, padding=padding)
  return _by_platform(x, kernel, **forms, default=elsewhere)


@functools.partial(jax.jit, static_argnames=('stride', 'padding'))
def depthwise_conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
  """One filter per channel: f[b, h, w, c] with kernel f[kh, kw, 1, c] -> f[b, h', w', c]."""

  def shifted(x, kernel):
    return _depthwise(winograd.padded(x, 2 * ((padding, padding),)), kernel, stride)

  def on_tpu(x, kernel):
    return _lax_conv(x, kernel, stride=stride, padding=padding, groups=x.shape[-1])

  return _by_platform(x, kernel, tpu=on_tpu, default=shifted)


@functools.partial(jax.jit, static_argnames=('stride', 'padding'))
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

  forms = {'cpu': on_cpu}
  images = single_channel.stamped_shape(x, kernel, stride=stride, padding=padding)
  if single_channel.fits(images, kernel.shape, stride, padding):
    forms['cuda'] = functools.partial(single_channel.stamp, stride=stride, padding=padding)
  return _by_platform(x, kernel, **forms, default=elsewhere)


def max_pool(x: jax.Array, *, window: int, stride: int, padding: int = 0) -> jax.Array:
  """Maximum over square windows; the padding never wins."""

  def shifted(x):
    wide = winograd.padded(x, 2 * ((padding, padding),), -jnp.inf)
    return functools.reduce(jnp.maximum, _shifted_slices(wide, (window, window), stride))

  def on_tpu(x):
    pads = ((padding, padding), (padding, padding))
    return nn.max_pool(x, (window, window), (stride, stride), pads)

  return _by_platform(x, tpu=on_tpu, default=shifted)


def _lax_conv(x, kernel, *, stride=1, padding=0, groups=1):
  pads = ((padding, padding), (padding, padding))
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), pads, dimension_numbers=NHWC, feature_group_count=groups
  )


def _seen_taps(image_shape, kernel, stride: int, padding: int):
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
  return kernel[tuple(taps)], tuple(pads)


def _stride1_conv(x, kernel, pads=winograd.NO_PADS):
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
    return _product(_patches_by_rows(winograd.padded(x, pads), window, stride), flat)
  return _product(_patches(x, window, stride, pads), flat)


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
    return jnp.concatenate(_shifted_slices(winograd.padded(x, pads), window, stride), -1)

  return jax.linear_transpose(slices, x)(cotangent)


_patches.defvjp(_patches_forward, _patches_backward)


@jax.custom_vjp
def _product(x, weights):
  """f[b, h, w, i] @ f[i, o], with gradients as products that XLA need not transpose for."""
  return (x.reshape(-1, x.shape[-1]) @ weights).reshape(*x.shape[:-1], -1)


def _product_forward(x, weights):
  return _product(x, weights), (x, weights)


def _product_backward(residuals, cotangent):
  x, weights = residuals
  c_in, c_out = weights.shape
  flat = cotangent.reshape(-1, c_out)
  dx = lax.dot_general(flat, weights, (((1,), (1,)), ((), ())))
  d_weights = lax.dot_general(x.reshape(-1, c_in), flat, (((0,), (0,)), ((), ())))
  return dx.reshape(x.shape), d_weights


_product.defvjp(_product_forward, _product_backward)


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


def _shifted_slices(x, window: tuple[int, int], stride: int) -> list[jax.Array]:
  """The input seen through each tap of the window, row by row: kh * kw of f[b, h', w', c]."""
  rows = (x.shape[1] - window[0]) // stride * stride + 1
  columns = (x.shape[2] - window[1]) // stride * stride + 1
  return [
    x[:, i : i + rows : stride, j : j + columns : stride]
    for i in range(window[0])
    for j in range(window[1])
  ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x, kernel, stride: int):
  """Valid depthwise convolution as a sum of shifted products, and so is its gradient in x.

  All three sums run in float32.
  """
  taps = _shifted_slices(x.astype(jnp.float32), kernel.shape[:2], stride)
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
    return [tap * cotangent for tap in _shifted_slices(x, window, stride)]

  def on_cpu(x, cotangent):
    return _sums_over_pixels(products(x, cotangent))

  def elsewhere(x, cotangent):
    return jnp.stack([product.sum((0, 1, 2)) for product in products(x, cotangent)])

  return _by_platform(x, cotangent, cpu=on_cpu, default=elsewhere)


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
    phases = _stride1_conv(x, flipped, ((qh - 1, qh - 1), (qw - 1, qw - 1)))
  phases = phases.reshape(b, rows, columns, stride, stride, c_out).transpose(0, 1, 3, 2, 4, 5)
  full = phases.reshape(b, rows * stride, columns * stride, c_out)
  return full[:, : (h - 1) * stride + kh, : (w - 1) * stride + kw]


def _stamp_by_products(x, taps):
  """The same for few pixels or channels: one matrix product, then shifted sums."""
  b, h, w, c_in = x.shape
  qh, stride, qw, _, _, c_out = taps.shape
  by_phase = taps.transpose(4, 0, 2, 1, 3, 5).reshape(c_in, -1)
  products = _product(x, by_phase).reshape(b, h, w, qh, qw, stride * stride * c_out)
  stamps = [
    jnp.pad(products[:, :, :, i, j], ((0, 0), (i, qh - 1 - i), (j, qw - 1 - j), (0, 0)))
    for i in range(qh)
    for j in range(qw)
  ]
  return functools.reduce(jnp.add, stamps)
