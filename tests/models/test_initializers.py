"""Initialisers: their moments, and the same numbers however a module is initialised."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctfake_jax.models import dcgan, initializers, layers, registry

SPREADS = {
  'fan_out': (initializers.fan_out_normal, lambda h, w, i, o: math.sqrt(2 / (h * w * o))),
  'fan_in': (initializers.fan_in_normal, lambda h, w, i, o: math.sqrt(1 / (h * w * i))),
}


@pytest.mark.parametrize('name', SPREADS)
@settings(max_examples=10, deadline=None)
@given(st.tuples(*[st.integers(1, 5)] * 2, *[st.integers(1, 40)] * 2), st.integers(0, 2**31))
def test_kernels_have_the_spread_of_their_fan(name, shape, seed):
  init, spread = SPREADS[name]
  kernel = init(jax.random.key(seed), shape, jnp.float32) / spread(*shape)
  assert kernel.shape == shape
  assert kernel.dtype == np.float32
  # Six standard errors of mean and variance of `size` normal numbers.
  assert abs(kernel.mean()) < 6 / math.sqrt(kernel.size)
  assert abs((kernel**2).mean() - 1) < 6 * math.sqrt(2 / kernel.size)


def test_scales_lie_around_their_mean():
  scale = dcgan.around_one(jax.random.key(0), (10_000,), jnp.float32)
  np.testing.assert_allclose([scale.mean(), scale.std()], [1.0, 0.02], atol=1e-3)


def test_a_traced_key_draws_what_a_known_one_draws():
  def draw(key):
    return initializers.fan_out_normal(key, (3, 3, 2, 4), jnp.float32)

  keys = jax.random.split(jax.random.key(3), 2)
  together = jax.jit(jax.vmap(draw))(keys)
  np.testing.assert_array_equal(together, [draw(key) for key in keys])
  np.testing.assert_array_equal(draw(jax.random.PRNGKey(3)), draw(jax.random.key(3)))
  assert (together[0] != together[1]).all()


@pytest.mark.parametrize(
  'module', [layers.Conv(4), layers.Dense(4), layers.Conv(4, depthwise=True)]
)
def test_variables_are_those_of_init_without_running_the_module(module):
  images = jnp.full((1, 8, 8, 4), jnp.nan)
  expected = module.init(jax.random.key(1), images)
  shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
  found = initializers.variables(module, jax.random.key(1), shape)
  chex.assert_trees_all_equal(found, expected)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))


def test_no_two_layers_of_a_network_are_alike():
  network = registry.MODELS['cnn'](num_classes=2, widths=(8, 8), convs=(2,))
  variables = initializers.variables(
    network, jax.random.key(0), np.zeros((1, 16, 16, 1), 'f4'), train=False
  )
  kernels = [leaf for leaf in jax.tree.leaves(variables['params']) if leaf.ndim == 4]
  assert len({leaf.tobytes()[:16] for leaf in kernels}) == len(kernels)
