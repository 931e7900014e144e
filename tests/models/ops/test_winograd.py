"""Minimal filtering against its closed form and against direct convolution."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_equal_with_gradients
from jax import lax

from ctfake_jax.models.ops import convolution, winograd

TILES = [(n - r + 1, r) for n in winograd.POINTS for r in winograd.KERNEL_SIDES if n > r]


@pytest.mark.parametrize(('m', 'r'), TILES)
def test_transforms_give_the_exact_correlation_of_a_tile(m, r):
  outputs, kernel, inputs = winograd.transforms(m, r)
  rng = np.random.default_rng(m * 10 + r)
  n = m + r - 1
  d, g = rng.normal(size=(n, n)), rng.normal(size=(r, r))
  windows = np.lib.stride_tricks.sliding_window_view(d, (r, r))
  got = outputs @ ((kernel @ g.ravel()) * (inputs @ d.ravel()))
  np.testing.assert_allclose(got.reshape(m, m), (windows * g).sum((2, 3)), atol=1e-12)
  assert outputs.shape == (m * m, n * n)


def test_the_cheapest_tile_is_taken():
  """Products per output of F(4, 3), 36 / 16, beat F(2, 3), 16 / 4, unless tiles overhang."""
  assert winograd.tile_side(8, 8, 3) == 4
  assert winograd.tile_side(2, 2, 3) == 2
  assert winograd.tile_side(9, 9, 2) == 3
  assert winograd.tile_side(16, 16, 2) == 4


def direct(x, kernel, stride=1, padding=0):
  pads = [(padding, padding)] * 2
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def arrays(b, height, width, side, c_in, c_out):
  keys = jax.random.split(jax.random.key(height * 100 + width))
  x = jax.random.normal(keys[0], (b, height, width, c_in))
  return x, jax.random.normal(keys[1], (side, side, c_in, c_out))


PADS = st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2)


@pytest.mark.slow
@hypothesis.settings(max_examples=4, deadline=None)
@hypothesis.given(
  height=st.integers(3, 14), width=st.integers(3, 14), side=st.sampled_from([2, 3]), pads=PADS
)
def test_correlation_of_padded_images_equals_xla(height, width, side, pads):
  assert_equal_with_gradients(
    lambda x, w: winograd.correlate(x, w, pads),
    lambda x, w: direct(winograd.padded(x, pads), w),
    *arrays(2, height, width, side, 5, 3),
  )


def test_the_gradient_in_the_images_leaves_out_what_falls_on_the_padding():
  """Four tiles of 4 x 4 cover 8 x 8 pixels; with a border of one it would take nine."""
  x, kernel = arrays(2, 8, 8, 3, 16, 16)

  def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()['flops']

  def forward(x):
    return winograd.correlate(x, kernel, ((1, 1), (1, 1)))

  def backward(cotangent):
    return jax.vjp(forward, x)[1](cotangent)

  assert flops(backward, forward(x)) < 1.5 * flops(forward, x)


@pytest.mark.parametrize(('height', 'width', 'side', 'stride'), [(9, 12, 3, 1), (16, 18, 4, 2)])
def test_a_layer_wide_enough_takes_it_and_equals_xla(height, width, side, stride):
  x, kernel = arrays(2, height, width, side, 16, 16)

  def ours(x, w):
    return convolution.conv(x, w, stride=stride, padding=1)

  assert_equal_with_gradients(ours, lambda x, w: direct(x, w, stride, 1), x, kernel)
  assert 'custom_vjp' in str(jax.make_jaxpr(ours)(x, kernel))


def test_a_nan_is_not_lost():
  x, kernel = arrays(1, 10, 10, 3, 4, 4)
  x = x.at[0, 5, 5, 0].set(jnp.nan)
  poisoned = jnp.isnan(direct(x, kernel))
  assert bool(jnp.isnan(winograd.correlate(x, kernel))[poisoned].all())
