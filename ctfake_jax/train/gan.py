"""Generators trained against a discriminator.

One step is one update of the discriminator (a real and a fake batch, each with its own batch
statistics) and one of the generator (Radford, Metz & Chintala 2016). What the discriminator
sees is augmented differentiably (Zhao et al. 2020, arXiv:2006.10738), since medical data sets
are small. Samples come from a moving average of the generator whose batch statistics are
re-estimated first.
"""

from collections.abc import Callable

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from ctfake_jax.config.keys import Config, GanConfig
from ctfake_jax.data.transforms.augment import discriminator_view
from ctfake_jax.models import registry
from ctfake_jax.models.initializers import variables
from ctfake_jax.runtime import streams
from ctfake_jax.train.optimizer_step import Elementwise, adam, apply_gradients
from ctfake_jax.train.state import State, advanced, in_training, initial


class Networks(flax.struct.PyTreeNode):
  """The two modules, the length of a latent, and the optimisers; all static."""

  generator: nn.Module = flax.struct.field(pytree_node=False)
  discriminator: nn.Module = flax.struct.field(pytree_node=False)
  latent: int = flax.struct.field(pytree_node=False)
  tx_generator: Elementwise = flax.struct.field(pytree_node=False)
  tx_discriminator: Elementwise = flax.struct.field(pytree_node=False)


def build(config: Config, num_classes: int) -> Networks:
  """The pair that `config.gan` names."""
  c = config.gan
  generator, latent = registry.generator(config, num_classes)
  return Networks(
    generator,
    registry.discriminator(config, num_classes),
    latent,
    adam(_rate(c, c.learning_rate_generator), c.beta1),
    adam(_rate(c, c.learning_rate_discriminator), c.beta1),
  )


def _rate(c: GanConfig, peak: float) -> optax.ScalarOrSchedule:
  return optax.cosine_decay_schedule(peak, c.updates) if c.schedule == 'cosine' else peak


def init_state(networks: Networks, size: int, seed: int) -> State:
  """Fresh state, on the host."""
  key_g, key_d = jax.random.split(streams.key(seed, 'initialisation'))
  latent, images = np.zeros((2, networks.latent), 'f4'), np.zeros((2, size, size, 1), 'f4')
  labels = np.zeros(2, np.int32)
  generator = variables(networks.generator, key_g, latent, labels, train=True)
  discriminator = variables(networks.discriminator, key_d, images, labels, train=True)
  return before_training(networks, generator, discriminator)


def before_training(networks: Networks, generator: dict, discriminator: dict) -> State:
  """The state that these variables start from."""
  return initial(
    {'generator': generator, 'discriminator': discriminator},
    {
      'generator': jax.jit(networks.tx_generator.init)(generator['params']),
      'discriminator': jax.jit(networks.tx_discriminator.init)(discriminator['params']),
    },
    used='generator',
  )


def make_train_step(
  networks: Networks, config: Config
) -> Callable[[State, dict, Key[Array, '']], tuple[State, dict]]:
  """The pure step (state, {image, label}, key) -> (state, losses and discriminator accuracies)."""
  c = config.gan
  discriminator_loss = _discriminator_loss(networks.discriminator, c)

  def train_step(state, batch, key):
    """One update of the discriminator, then one of the generator on the same fakes."""
    chex.assert_rank([batch['image'], batch['label']], [4, 1])
    keys, opt_states = jax.random.split(key, 4), state.opt_states
    old_g, old_d = state.networks['generator'], state.networks['discriminator']
    real, real_labels = batch['image'], batch['label']
    latent = jax.random.normal(keys[0], (real.shape[0], c.latent))
    # The mixture of the reals: other proportions would give the fakes away.
    labels = jax.random.permutation(keys[1], real_labels)

    def generate(params):
      stats = old_g['batch_stats']
      (images, _), stats = in_training(networks.generator, params, stats, latent, labels)
      return images, stats

    fake, pull_back, g_stats = jax.vjp(generate, old_g['params'], has_aux=True)
    d_grads, (d_stats, metrics) = jax.grad(discriminator_loss, has_aux=True)(
      old_d['params'],
      old_d['batch_stats'],
      (real, real_labels),
      (fake, labels),
      keys[2],
    )
    d_params, opt_d = apply_gradients(
      networks.tx_discriminator, d_grads, opt_states['discriminator'], old_d['params']
    )

    def generator_loss(images):
      seen = _view(c, images, keys[3])
      (logits, _), _ = in_training(networks.discriminator, d_params, d_stats, seen, labels)
      return _bce(logits, 1.0)

    g_loss, cotangent = jax.value_and_grad(generator_loss)(fake)
    g_params, opt_g = apply_gradients(
      networks.tx_generator, pull_back(cotangent)[0], opt_states['generator'], old_g['params']
    )
    state = advanced(
      state,
      {
        'generator': {'params': g_params, 'batch_stats': g_stats},
        'discriminator': {'params': d_params, 'batch_stats': d_stats},
      },
      {'generator': opt_g, 'discriminator': opt_d},
      used='generator',
      loss=metrics['loss_discriminator'] + g_loss,
      ema_decay=c.ema_decay,
    )
    return state, {'loss_generator': g_loss, **metrics}

  return train_step


def _discriminator_loss(discriminator: nn.Module, c: GanConfig) -> Callable:
  """(params, statistics, reals, fakes, key) -> (loss, (statistics, metrics)).

  Told only whether an image is real, a discriminator soon stops looking at the label beside it,
  and so does the generator. `aux_classifier_weight` has the projection name the class of every
  real (of the auxiliary classifier of Odena et al. 2017, arXiv:1610.09585, the half that sees no
  fakes).
  """

  def loss_of(params, stats, real, fake, key):
    """Of a batch of (images, labels) of each kind, one after the other through the statistics."""
    key_real, key_fake = jax.random.split(key)
    (images, labels), (fakes, fake_labels) = real, fake
    images, fakes = _view(c, images, key_real), _view(c, fakes, key_fake)
    (on_real, features), stats = in_training(discriminator, params, stats, images, labels)
    (on_fake, _), stats = in_training(discriminator, params, stats, fakes, fake_labels)
    loss = _bce(on_real, 1.0) + _bce(on_fake, 0.0)
    metrics = {'accuracy_real': (on_real > 0).mean(), 'accuracy_fake': (on_fake < 0).mean()}
    if 'class_logits' in features:
      logits = features['class_logits']
      named = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      loss += c.aux_classifier_weight * named.mean()
      metrics['accuracy_label'] = (logits.argmax(-1) == labels).mean()
    return loss, (stats, {'loss_discriminator': loss, **metrics})

  return loss_of


def _view(c: GanConfig, images: jax.Array, key: jax.Array) -> jax.Array:
  return discriminator_view(images, key) if c.augment else images


def _bce(logits: jax.Array, target: float) -> jax.Array:
  return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, target)).mean()
