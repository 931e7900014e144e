"""Convolution of grey images with pixels as channels, against direct convolution."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctfake_jax import cost
from ctfake_jax.models import grey, lowering

LAYERS = [(3, 1, 1), (3, 2, 1), (4, 2, 1), (7, 2, 3)]


def assert_equal_with_gradients(ours, reference, x, kernel):
  """Equal to float32 rounding, relative to the largest value."""
  want, pull_want = jax.vjp(reference, x, kernel)
  got, pull_got = jax.vjp(ours, x, kernel)
  cotangent = jax.random.normal(jax.random.key(2), want.shape)
  for g, w in zip((got, *pull_got(cotangent)), (want, *pull_want(cotangent)), strict=True):
    np.testing.assert_allclose(g / jnp.abs(w).max(), w / jnp.abs(w).max(), atol=1e-5)


def arrays(*shapes):
  return [jax.random.normal(key, s) for key, s in zip(jax.random.split(jax.random.key(0)), shapes)]


@pytest.mark.parametrize(('side', 'stride', 'padding'), LAYERS)
def test_the_first_layers_of_the_shipped_networks_fit(side, stride, padding):
  assert grey.fits((2, 32, 32, 1), side, stride, padding)
  assert not grey.fits((2, 32, 32, 2), side, stride, padding)
  assert not grey.fits((2, 32, 36, 1), side, stride, padding)
  assert not grey.fits((2, 32, 32, 1), side, stride, padding + stride)


@pytest.mark.slow
@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(
  height=st.integers(8, 12),
  blocks=st.integers(1, 3),
  side=st.integers(2, 9),
  stride=st.sampled_from([1, 2, 4]),
  padding=st.integers(0, 4),
)
def test_correlation_is_the_convolution(height, blocks, side, stride, padding):
  shape = (2, height, grey.BLOCK * blocks, 1)
  hypothesis.assume(grey.fits(shape, side, stride, padding) and height + 2 * padding >= side)
  assert_equal_with_gradients(
    lambda x, w: grey.correlate(x, w, stride=stride, padding=padding),
    lambda x, w: lowering._lax_conv(x, w, stride=stride, padding=padding),
    *arrays(shape, (side, side, 1, 3)),
  )


@pytest.mark.parametrize(('side', 'stride', 'padding'), LAYERS)
def test_first_layers_and_their_transposes(side, stride, padding):
  options = {'stride': stride, 'padding': padding}
  x, kernel = arrays((2, 16, 16, 1), (side, side, 1, 3))
  assert_equal_with_gradients(
    lambda x, w: grey.correlate(x, w, **options),
    lambda x, w: lowering._lax_conv(x, w, **options),
    x,
    kernel,
  )


def test_stamping_is_the_transposed_convolution():
  assert_equal_with_gradients(
    lambda x, w: grey.stamp(x, w, stride=2, padding=1),
    lambda x, w: lowering.conv_transpose(x, w, stride=2, padding=1),
    *arrays((2, 8, 8, 5), (4, 4, 5, 1)),
  )


def test_a_gpu_gets_pixels_as_channels_and_others_do_not():
  x, kernel = arrays((2, 16, 16, 1), (3, 3, 1, 4))
  traced = jax.jit(lambda x, w: lowering.conv(x, w, padding=1)).trace(x, kernel)
  texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ('cuda', 'tpu', 'cpu')}
  assert {p for p, text in texts.items() if 'tensor<2x16x2x8xf32>' in text} == {'cuda'}


def test_flops_are_counted_before_a_library_hides_them():
  x, kernel = arrays((2, 10, 10, 8), (3, 3, 8, 16))
  counted = cost.uncompiled_flops(jax.jit(lowering.conv), (x, kernel), 'tpu')
  assert counted == 2 * 2 * 8 * 8 * 9 * 8 * 16
