"""Training a denoising diffusion model (Ho et al. 2020): the network learns an image's noise."""

from collections.abc import Callable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from ctfake_jax.config.keys import Config
from ctfake_jax.models import diffusion, registry
from ctfake_jax.models.initializers import variables
from ctfake_jax.runtime import streams
from ctfake_jax.train.optimizer_step import Elementwise, adam, apply_gradients, clipped
from ctfake_jax.train.state import State, advanced, initial


class Networks(flax.struct.PyTreeNode):
  """The sampler with the U-Net inside, the length of its noise, and the optimiser; all static."""

  generator: Any = flax.struct.field(pytree_node=False)
  latent: int = flax.struct.field(pytree_node=False)
  tx: Elementwise = flax.struct.field(pytree_node=False)


def build(config: Config, num_classes: int) -> Networks:
  """The network of `config.diffusion`."""
  c = config.diffusion
  generator, latent = registry.generator(config, num_classes)
  rate = optax.warmup_cosine_decay_schedule(
    0.0, c.learning_rate, min(c.warmup_updates, c.updates // 2), c.updates
  )
  return Networks(generator, latent, clipped(1.0, adam(rate)))


def init_state(networks: Networks, size: int, seed: int) -> State:
  """Fresh state, on the host."""
  noise, labels = np.zeros((2, size * size), 'f4'), np.zeros(2, np.int32)
  generator = variables(
    networks.generator, streams.key(seed, 'initialisation'), noise, labels, train=False
  )
  opt_state = jax.jit(networks.tx.init)(generator['params'])
  return initial({'generator': generator}, {'generator': opt_state}, used='generator')


def make_train_step(
  networks: Networks, config: Config
) -> Callable[[State, dict, Key[Array, '']], tuple[State, dict]]:
  """The pure step (state, {image, label}, key) -> (state, {loss})."""
  c, unet = config.diffusion, networks.generator.unet

  def loss_fn(params, images, labels, key):
    key_time, key_noise = jax.random.split(key)
    # One time in each of b equal intervals: less noise in the gradient than b free draws.
    count = len(images)
    time = (
      diffusion.LAST_TIME * (jnp.arange(count) + jax.random.uniform(key_time, (count,))) / count
    )
    signal, noise = (s[:, None, None, None] for s in diffusion.signal_and_noise(time))
    drawn = jax.random.normal(key_noise, images.shape)
    found = unet.apply({'params': params}, signal * images + noise * drawn, time, labels)
    return ((found - drawn) ** 2).mean()

  def train_step(state, batch, key):
    """One update."""
    chex.assert_rank([batch['image'], batch['label']], [4, 1])
    params = state.networks['generator']['params']
    loss, grads = jax.value_and_grad(loss_fn)(params, batch['image'], batch['label'], key)
    params, opt_state = apply_gradients(networks.tx, grads, state.opt_states['generator'], params)
    state = advanced(
      state,
      {'generator': {'params': params}},
      {'generator': opt_state},
      used='generator',
      loss=loss,
      ema_decay=c.ema_decay,
    )
    return state, {'loss': loss}

  return train_step
