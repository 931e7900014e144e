"""Training autoencoders that rebuild images, against a discriminator of patches.

The mean absolute error alone gives blurred images; a discriminator makes the decoders invent the
texture that the code lost (Esser, Rombach & Ommer 2021, arXiv:2012.09841), as generators do.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float32, Int, Key

from ctfake_jax.config.keys import Config
from ctfake_jax.models import autoencoder, registry
from ctfake_jax.models.initializers import variables
from ctfake_jax.runtime import batching, streams
from ctfake_jax.train.gan import Networks, before_training
from ctfake_jax.train.optimizer_step import adam, apply_gradients
from ctfake_jax.train.state import State, advanced
from ctfake_jax.types import ImageSet

ERROR_WEIGHT, ADVERSARIAL_WEIGHT = 5.0, 0.2
BETA1 = 0.5


def build(config: Config, num_classes: int) -> Networks:
  """The networks of `config.autoencoder`; labels are not asked for."""
  c = config.autoencoder
  generator, latent = registry.generator(config, num_classes)
  rate = optax.cosine_decay_schedule(c.learning_rate, c.updates)
  discriminator = autoencoder.PatchDiscriminator(c.width, registry.DTYPES[c.dtype])
  optimizer = adam(rate, BETA1)
  return Networks(generator, discriminator, latent, optimizer, optimizer)


def init_state(networks: Networks, size: int, seed: int) -> State:
  """Fresh state, on the host."""
  key_g, key_d = jax.random.split(streams.key(seed, 'initialisation'))
  images = np.zeros((len(autoencoder.MEMBERS), size, size, 1), 'f4')
  generator = variables(networks.generator, key_g, images, jax.random.key(0))
  discriminator = variables(networks.discriminator, key_d, images)
  return before_training(networks, generator, discriminator)


def make_train_step(
  networks: Networks, config: Config
) -> Callable[[State, dict, Key[Array, '']], tuple[State, dict]]:
  """The pure step (state, {image}, key) -> (state, losses)."""
  c = config.autoencoder

  def judged(discriminator, images):
    """Logits of being real."""
    return jnp.asarray(networks.discriminator.apply(discriminator, images))

  def rebuilding_loss(params, discriminator, images, key):
    """What the members learn by; their images and the mean absolute error."""
    rebuilt = networks.generator.apply({'params': params}, images, key)
    error = jnp.abs(rebuilt - images).mean()
    convincing = jax.nn.softplus(-judged(discriminator, rebuilt)).mean()
    return ERROR_WEIGHT * error + ADVERSARIAL_WEIGHT * convincing, (rebuilt, error)

  def discriminator_loss(params, images, rebuilt):
    """Log loss of either kind, added."""
    real, fake = (judged({'params': params}, x) for x in (images, rebuilt))
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()

  def train_step(state, batch, key):
    """One update of the members, one of the discriminator on the same images."""
    chex.assert_rank(batch['image'], 4)
    generator, discriminator = (state.networks[name] for name in ('generator', 'discriminator'))
    (loss, (rebuilt, error)), grads = jax.value_and_grad(rebuilding_loss, has_aux=True)(
      generator['params'], discriminator, batch['image'], key
    )
    loss_d, grads_d = jax.value_and_grad(discriminator_loss)(
      discriminator['params'], batch['image'], rebuilt
    )
    g_params, opt_g = apply_gradients(
      networks.tx_generator, grads, state.opt_states['generator'], generator['params']
    )
    d_params, opt_d = apply_gradients(
      networks.tx_discriminator,
      grads_d,
      state.opt_states['discriminator'],
      discriminator['params'],
    )
    state = advanced(
      state,
      {'generator': {'params': g_params}, 'discriminator': {'params': d_params}},
      {'generator': opt_g, 'discriminator': opt_d},
      used='generator',
      loss=loss + loss_d,
      ema_decay=c.ema_decay,
    )
    return state, {'loss': loss, 'absolute_error': error, 'loss_discriminator': loss_d}

  return train_step


def rebuilt_of(
  network: autoencoder.Autoencoder,
  variables: dict,
  reals: ImageSet,
  labels: Int[np.ndarray, ' n'],
  seed: int,
) -> Float32[np.ndarray, 'n h w 1']:
  """Rebuilt images of reals that have these labels, taken in turn."""
  rows = np.empty(len(labels), int)
  for label in np.unique(labels):
    asked = labels == label
    rows[asked] = np.resize(np.nonzero(reals.labels == label)[0], asked.sum())

  def rebuilt(constants, number, images):
    variables, stream = constants
    return autoencoder.rebuild(network, variables, images, jax.random.fold_in(stream, number))

  constants = variables, streams.key(seed, 'rebuilding, evaluation')
  return batching.map_batches(rebuilt, constants, np.asarray(reals.images)[rows])
