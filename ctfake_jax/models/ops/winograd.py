"""Convolution by minimal filtering: fewer multiplications, and all of them in matrix products.

F(m, r) makes an m x m tile of outputs of an r x r kernel from (m + r - 1)^2 products per channel
instead of m^2 r^2 (Winograd 1980; Lavin & Gray 2016, arXiv:1509.09308). Input tiles, kernel and
outputs pass through small fixed matrices; in between stands one matrix product over the channels
for each of the (m + r - 1)^2 positions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float64

# Interpolation points by tile side m + r - 1; one more lies at infinity. Chosen from fractions up
# to 3 for the least float32 rounding, which stays within a few times that of a direct sum.
POINTS = {
  3: (0.0, 1.0),
  4: (0.0, 1.0, -1.0),
  5: (1.5, -1.5, 1 / 3, -1 / 3),
  6: (0.0, 1.5, -1.5, 2 / 3, -2 / 3),
}
KERNEL_SIDES = (2, 3)

Pads = tuple[tuple[int, int], tuple[int, int]]  # zeros above and below, left and right
NO_PADS: Pads = ((0, 0), (0, 0))


def transforms(
  m: int, r: int
) -> tuple[
  Float64[np.ndarray, 'outputs tile'],
  Float64[np.ndarray, 'tile kernel'],
  Float64[np.ndarray, 'tile tile'],
]:
  """Matrices of F(m, r) for whole tiles, flattened row by row.

  With n = m + r - 1: outputs [m^2, n^2], kernel [n^2, r^2], inputs [n^2, n^2], so that
  `outputs @ ((kernel @ g) * (inputs @ d))` is the valid correlation of a tile d with g
  (Cook-Toom: evaluate polynomials at the points, multiply, interpolate; then transpose).
  """
  n = m + r - 1

  def evaluate(terms: int) -> np.ndarray:
    powers = np.asarray(POINTS[n])[:, None] ** np.arange(terms)
    return np.vstack([powers, np.eye(terms)[-1]])

  inputs = np.linalg.inv(evaluate(n)).T
  scale = np.abs(inputs).max(1, keepdims=True)  # into the kernel's matrix: even magnitudes
  one_axis = evaluate(m).T, evaluate(r) * scale, inputs / scale
  outputs, kernel, inputs = (np.kron(a, a) for a in one_axis)
  return outputs, kernel, inputs


def tile_side(height: int, width: int, r: int) -> int:
  """The m whose tiles cover height x width outputs with the fewest products."""

  def products(m: int) -> int:
    return (m + r - 1) ** 2 * _tiles(height, m) * _tiles(width, m)

  return min((n - r + 1 for n in POINTS if n > r), key=products)


def padded(
  x: Float[Array, 'b h w c'], pads: Pads, value: float = 0.0
) -> Float[Array, 'b rows columns c']:
  """Images with `value` around them; where a number is negative, so much is cut off."""
  around = ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0))
  return lax.pad(x, jnp.asarray(value, x.dtype), around)


def output_sides(image_shape, kernel_shape, pads: Pads) -> tuple[int, int]:
  """Height and width of the correlation of padded images with the kernel."""
  height, width = (
    side + sum(pad) - taps + 1 for side, taps, pad in zip(image_shape[1:3], kernel_shape, pads)
  )
  return height, width


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def correlate(
  x: Float[Array, 'b h w i'], kernel: Float[Array, 'r r i o'], pads: Pads = NO_PADS
) -> Float[Array, 'b rows columns o']:
  """Stride-1 correlation of padded images with square kernels.

  r is one of `KERNEL_SIDES`. A value that is not finite spreads over the outputs of its tile.
  """
  return _forward(x, kernel, pads)[0]


def _forward(x, kernel, pads):
  c_in, c_out = kernel.shape[2:]
  b, r = x.shape[0], kernel.shape[0]
  out = output_sides(x.shape, kernel.shape, pads)
  m = tile_side(*out, r)
  to_outputs, to_kernel, to_inputs = _matrices(m, r, x.dtype)
  tiles = to_inputs @ _overlapping_tiles(x, m, r, pads)
  by_column = kernel.transpose(1, 0, 2, 3).reshape(r * r, -1)
  weights = (to_kernel @ by_column).reshape(-1, c_in, c_out)
  products = tiles.reshape(len(tiles), -1, c_in) @ weights
  y = to_outputs @ products.reshape(len(products), -1)
  rows, columns = _tiles(out[0], m), _tiles(out[1], m)
  y = y.reshape(m, m, b, rows, columns, c_out).transpose(2, 3, 1, 4, 0, 5)
  y = y.reshape(b, rows * m, columns * m, c_out)[:, : out[0], : out[1]]
  return y, (tiles, kernel)


def _backward(pads, residuals, cotangent):
  tiles, kernel = residuals
  r, _, c_in, c_out = kernel.shape
  # What falls on the padding is not asked for: a fifth to a half of the products.
  (up, down), (left, right) = pads
  around = ((r - 1 - up, r - 1 - down), (r - 1 - left, r - 1 - right))
  dx = correlate(cotangent, kernel[::-1, ::-1].transpose(0, 1, 3, 2), around)
  m = tile_side(cotangent.shape[1], cotangent.shape[2], r)
  to_outputs, to_kernel, _ = _matrices(m, r, cotangent.dtype)
  d_products = to_outputs.T @ _tiles_apart(cotangent, m)
  d_weights = jnp.einsum(
    'pti,pto->pio',
    tiles.reshape(len(tiles), -1, c_in),
    d_products.reshape(len(tiles), -1, c_out),
  )
  d_kernel = to_kernel.T @ d_weights.reshape(len(tiles), -1)
  return dx, d_kernel.reshape(kernel.shape).transpose(1, 0, 2, 3)


correlate.defvjp(_forward, _backward)


@functools.cache
def _transforms(m: int, r: int):
  return transforms(m, r)


def _matrices(m: int, r: int, dtype):
  return tuple(jnp.asarray(matrix, dtype) for matrix in _transforms(m, r))


def _tiles(length: int, m: int) -> int:
  return -(-length // m)


def _overlapping_tiles(x, m: int, r: int, pads: Pads):
  """Tiles of side n = m + r - 1 at distance m, of padded images: f[n * n, b * tiles * c].

  The position within a tile comes first, column before row.
  """
  n, ((up, down), (left, right)) = m + r - 1, pads
  height, width = output_sides(x.shape, (r, r), pads)
  rows, columns = _tiles(height, m), _tiles(width, m)
  whole = (up, down + rows * m - height), (left, right + columns * m - width)
  x = padded(x, whole)
  x = jnp.stack([x[:, i : i + rows * m : m] for i in range(n)])
  x = jnp.stack([x[:, :, :, j : j + columns * m : m] for j in range(n)])
  return x.reshape(n * n, -1)


def _tiles_apart(y, m: int):
  """Tiles of side m side by side, in the same order: f[m * m, b * tiles * c]."""
  return _overlapping_tiles(y, m, 1, NO_PADS)
