"""Training a variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114).

The width of the pixel noise is the best one for each batch, not a guess (Rybkin, Daniilidis &
Levine 2021, arXiv:2006.13202): reconstruction then weighs against the latents' divergence by
itself.
"""

from collections.abc import Callable

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from ctfake_jax.config.keys import Config
from ctfake_jax.models import registry
from ctfake_jax.models.initializers import variables
from ctfake_jax.runtime import streams
from ctfake_jax.train.optimizer_step import Elementwise, adam, apply_gradients
from ctfake_jax.train.state import State, advanced, in_training, initial

SMALLEST_ERROR = 1e-6


class Networks(flax.struct.PyTreeNode):
  """Decoder, encoder, the length of a latent, and the optimiser; all static."""

  generator: nn.Module = flax.struct.field(pytree_node=False)
  encoder: nn.Module = flax.struct.field(pytree_node=False)
  latent: int = flax.struct.field(pytree_node=False)
  tx: Elementwise = flax.struct.field(pytree_node=False)


def build(config: Config, num_classes: int) -> Networks:
  """The networks of `config.vae`."""
  c = config.vae
  generator, latent = registry.generator(config, num_classes)
  rate = optax.cosine_decay_schedule(c.learning_rate, c.updates)
  return Networks(generator, registry.encoder(config), latent, adam(rate))


def init_state(networks: Networks, size: int, seed: int) -> State:
  """Fresh state, on the host."""
  key_g, key_e = jax.random.split(streams.key(seed, 'initialisation'))
  latent, images = np.zeros((2, networks.latent), 'f4'), np.zeros((2, size, size, 1), 'f4')
  generator = variables(networks.generator, key_g, latent, np.zeros(2, np.int32), train=True)
  encoder = variables(networks.encoder, key_e, images, train=True)
  opt_state = jax.jit(networks.tx.init)((generator['params'], encoder['params']))
  return initial(
    {'generator': generator, 'encoder': encoder}, {'both': opt_state}, used='generator'
  )


def divergence(mean: Float[Array, 'b l'], log_var: Float[Array, 'b l']) -> Float[Array, ' b']:
  """Kullback-Leibler divergence, in nats, of N(mean, exp(log_var)) from N(0, 1)."""
  return 0.5 * (mean**2 + jnp.exp(log_var) - 1 - log_var).sum(-1)


def make_train_step(
  networks: Networks, config: Config
) -> Callable[[State, dict, Key[Array, '']], tuple[State, dict]]:
  """The pure step (state, {image, label}, key) -> (state, losses)."""
  c = config.vae

  def loss_fn(params, old, images, labels, key):
    """Negative evidence bound of an image in nats; new statistics, squared error, divergence."""
    decoder_params, encoder_params = params
    (mean, log_var), encoder_stats = in_training(
      networks.encoder, encoder_params, old['encoder']['batch_stats'], images
    )
    latent = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)
    (decoded, _), decoder_stats = in_training(
      networks.generator, decoder_params, old['generator']['batch_stats'], latent, labels
    )
    error = jnp.maximum(((decoded - images) ** 2).mean(), SMALLEST_ERROR)
    nats = divergence(mean, log_var).mean()
    loss = 0.5 * images[0].size * jnp.log(error) + c.beta * nats
    return loss, (decoder_stats, encoder_stats, error, nats)

  def train_step(state, batch, key):
    """One update of encoder and decoder together."""
    chex.assert_rank([batch['image'], batch['label']], [4, 1])
    params = tuple(state.networks[name]['params'] for name in ('generator', 'encoder'))
    (loss, (g_stats, e_stats, error, nats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params, state.networks, batch['image'], batch['label'], key
    )
    (g_params, e_params), opt_state = apply_gradients(
      networks.tx, grads, state.opt_states['both'], params
    )
    state = advanced(
      state,
      {
        'generator': {'params': g_params, 'batch_stats': g_stats},
        'encoder': {'params': e_params, 'batch_stats': e_stats},
      },
      {'both': opt_state},
      used='generator',
      loss=loss,
      ema_decay=c.ema_decay,
    )
    return state, {'loss': loss, 'root_mean_square_error': jnp.sqrt(error), 'divergence': nats}

  return train_step
