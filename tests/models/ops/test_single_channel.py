"""Convolution of grey images with pixels as channels, against direct convolution."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_equal_with_gradients

from ctfake_jax.models.ops import convolution, platform, single_channel, transposed
from ctfake_jax.runtime import flops
from ctfake_jax.runtime import mesh as mesh_lib

LAYERS = [(3, 1, 1), (3, 2, 1), (4, 2, 1), (7, 2, 3)]


def arrays(*shapes):
  return [jax.random.normal(key, s) for key, s in zip(jax.random.split(jax.random.key(0)), shapes)]


@pytest.mark.parametrize(('side', 'stride', 'padding'), LAYERS)
def test_the_first_layers_of_the_shipped_networks_fit(side, stride, padding):
  square = (side, side, 1, 8)
  assert single_channel.fits((2, 32, 32, 1), square, stride, padding)
  assert not single_channel.fits((2, 32, 32, 2), square, stride, padding)
  assert not single_channel.fits((2, 32, 36, 1), square, stride, padding)
  assert not single_channel.fits((2, 32, 32, 1), square, stride, padding + stride)
  assert not single_channel.fits((2, 32, 32, 1), (side, side + 1, 1, 8), stride, padding)


FITTING = [
  (side, stride, padding)
  for side in range(2, 10)
  for stride in (1, 2, 4)
  for padding in range(5)
  if single_channel.fits((1, 8, 8, 1), (side, side, 1, 1), stride, padding)
]


@pytest.mark.slow
@hypothesis.settings(max_examples=5, deadline=None)
@hypothesis.given(
  height=st.integers(9, 12), blocks=st.integers(1, 3), layer=st.sampled_from(FITTING)
)
def test_correlation_is_the_convolution(height, blocks, layer):
  side, stride, padding = layer
  shape = (2, height, single_channel.BLOCK * blocks, 1)
  assert_equal_with_gradients(
    lambda x, w: single_channel.correlate(x, w, stride=stride, padding=padding),
    lambda x, w: convolution.lax_conv(x, w, stride=stride, padding=padding),
    *arrays(shape, (side, side, 1, 3)),
  )


@pytest.mark.parametrize(('side', 'stride', 'padding'), LAYERS)
def test_bfloat16_rounds_the_result_alone(side, stride, padding):
  x, kernel = (a.astype(jnp.bfloat16) for a in arrays((2, 16, 16, 1), (side, side, 1, 3)))
  got = single_channel.correlate(x, kernel, stride=stride, padding=padding)
  wide = [a.astype(jnp.float32) for a in (x, kernel)]
  want = convolution.lax_conv(*wide, stride=stride, padding=padding)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-8, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(('side', 'stride', 'padding'), LAYERS)
def test_first_layers_and_their_transposes(side, stride, padding):
  options = {'stride': stride, 'padding': padding}
  x, kernel = arrays((2, 16, 16, 1), (side, side, 1, 3))
  assert_equal_with_gradients(
    lambda x, w: single_channel.correlate(x, w, **options),
    lambda x, w: convolution.lax_conv(x, w, **options),
    x,
    kernel,
  )


def test_stamping_is_the_transposed_convolution():
  assert_equal_with_gradients(
    lambda x, w: single_channel.stamp(x, w, stride=2, padding=1),
    lambda x, w: transposed.conv_transpose(x, w, stride=2, padding=1),
    *arrays((2, 8, 8, 5), (4, 4, 5, 1)),
  )


def test_a_gpu_gets_pixels_as_channels_and_others_do_not():
  x, kernel = arrays((2, 16, 16, 1), (3, 3, 1, 4))
  with platform.every_platform(True):
    traced = jax.jit(lambda x, w: convolution.conv(x, w, padding=1)).trace(x, kernel)
  texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ('cuda', 'tpu', 'cpu')}
  assert {p for p, text in texts.items() if 'tensor<2x16x2x8xf32>' in text} == {'cuda'}


def test_flops_are_counted_before_a_library_hides_them(monkeypatch):
  """On a GPU the steps of a trainer: a donated state, images on all devices, a grey layer."""
  mesh = mesh_lib.data_mesh()
  x, kernel = arrays((8, 16, 16, 1), (3, 3, 1, 4))
  images = mesh_lib.shard_batch(mesh, {'image': np.asarray(x)})['image']
  kernel = jax.device_put(kernel, mesh_lib.replicated(mesh))
  step = jax.jit(lambda w, x: (w, convolution.conv(x, w, padding=1)), donate_argnums=0)
  compiled = step.lower(kernel, images).compile()
  taken = flops.shapes((kernel, images))
  compiled(kernel, images)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  plain = 2 * 8 * 4 * (9 * 16 * 16 - 4 * 3 * 16 + 4)  # taps on the padding are not counted
  assert flops.of(step, taken, compiled).flops == plain
