"""Pure functions give the same numbers compiled or not, on a device, or spread over all of them.

By chex's variants; that of pmap is left out, which JAX keeps for old programs only.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from conftest import make_images

from ctfake_jax.config.keys import AugmentConfig
from ctfake_jax.data.transforms import augment, degradations, domain_randomization
from ctfake_jax.detector import training
from ctfake_jax.models import diffusion, patch_net
from ctfake_jax.models.ops import (
  convolution,
  depthwise,
  pooling,
  single_channel,
  transposed,
  winograd,
)
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.train import vae

SIDE, BATCH = 16, 8
IMAGES = make_images(BATCH, size=SIDE).images
CHANNELS = np.random.default_rng(0).normal(size=(BATCH, SIDE, SIDE, 4)).astype(np.float32)
PATCHES = CHANNELS[:, :4, :4, 0]


def kernel(*shape):
  return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def strengths(low, high):
  return np.linspace(low, high, BATCH, dtype=np.float32)


def keyed(function, *arguments):
  """With a key that is made inside: key and batch need not lie on the same devices."""
  return lambda x: function(x, jax.random.key(3), *arguments)


def by_place(function):
  """Of the values and of a second argument that goes with each image."""
  return lambda x: function(x[..., :1], x[:, 0, 0, 1])


def with_strengths(low, high):
  """The images, and behind them the strength for each as one more channel."""
  own = np.broadcast_to(strengths(low, high)[:, None, None, None], IMAGES.shape)
  return np.concatenate([IMAGES, own], -1)


def ops_of(function, *shape, **options):
  return lambda x: function(x, kernel(*shape), **options)


# Name -> a function of one array with a batch axis, and the array.
FUNCTIONS = {
  'jpeg': (by_place(degradations.jpeg), with_strengths(11, 43)),
  'blur': (by_place(degradations.blur), with_strengths(0, 2)),
  'resized': (by_place(degradations.resized), with_strengths(0.5, 1.5)),
  'cropped': (by_place(degradations.cropped), with_strengths(0.5, 1)),
  'noisy': (keyed(lambda x, k: degradations.noisy(x, jnp.full(len(x), 0.1), k)), IMAGES),
  'degrade': (keyed(degradations.degrade), IMAGES),
  'toned': (keyed(domain_randomization.toned), IMAGES),
  'in_field': (keyed(domain_randomization.in_field), IMAGES),
  'zoomed_out': (keyed(domain_randomization.zoomed_out), IMAGES),
  'augment': (keyed(lambda x, k: augment.augment(x, k, AugmentConfig())), IMAGES),
  'discriminator_view': (keyed(augment.discriminator_view), IMAGES),
  'moved': (keyed(training.moved), IMAGES),
  'patch_losses': (lambda x: training.patch_losses(x, jax.nn.sigmoid(3 * x)), PATCHES),
  'shares': (lambda x: training.shares(x > 0), IMAGES[..., 0]),
  'divergence': (lambda x: vae.divergence(x[..., 0], x[..., 1]), CHANNELS[:, 0]),
  'signal_and_noise': (lambda x: diffusion.signal_and_noise(x), strengths(0.1, 0.9)),
  'with_residuals': (patch_net.with_residuals, IMAGES),
  'log_moments': (patch_net.log_moments, CHANNELS),
  'conv': (ops_of(convolution.conv, 3, 3, 4, 8, stride=2, padding=1), CHANNELS),
  'winograd': (ops_of(winograd.correlate, 3, 3, 4, 8), CHANNELS),
  'depthwise': (ops_of(depthwise.depthwise_conv, 3, 3, 1, 4, stride=1, padding=1), CHANNELS),
  'transposed': (ops_of(transposed.conv_transpose, 4, 4, 4, 2, stride=2, padding=1), CHANNELS),
  'single_channel': (ops_of(single_channel.correlate, 4, 4, 1, 8, stride=2, padding=1), IMAGES),
  'max_pool': (lambda x: pooling.max_pool(x, window=2, stride=2), CHANNELS),
}


class VariantsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True, with_device=True)
  @parameterized.parameters(*FUNCTIONS)
  def test_numbers_are_the_same(self, name):
    function, x = FUNCTIONS[name]
    x = jnp.asarray(x)
    expected = jax.jit(function)(x)
    chex.assert_trees_all_close(self.variant(function)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_a_batch_spread_over_devices_gives_the_same_with_one_trace(name):
  function, x = FUNCTIONS[name]
  expected = jax.jit(function)(jnp.asarray(x))
  spread = jax.jit(chex.assert_max_traces(function, n=1))
  chex.clear_trace_counter()
  sharded = mesh_lib.shard_batch(mesh_lib.data_mesh(), x)
  assert len(sharded.sharding.device_set) == jax.device_count() == BATCH
  for _ in range(2):
    chex.assert_trees_all_close(spread(sharded), expected, rtol=1e-5, atol=1e-5)
