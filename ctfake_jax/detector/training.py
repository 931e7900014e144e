"""Training the real-against-fake network on pairs of a fake and an original.

A fake meets its original, or one of the same patient; a sample of a generator meets any. Both turn,
move, get another site's appearance (`domain_randomization`) and random changes (`degradations`)
alike, so that what tells them apart is how the fake was made and neither anatomy nor image quality
(aligned pairs: Guillaro et al. 2025, arXiv:2412.17671). The image's label and, patch by patch, the
mask of what is synthetic teach at once. Images travel with mask and original as further channels.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key

from ctfake_jax.config.keys import Config, DetectionConfig
from ctfake_jax.data.loader import open_feed
from ctfake_jax.data.transforms import degradations, domain_randomization
from ctfake_jax.detector import calibration
from ctfake_jax.detector.dataset import DetectorDataset
from ctfake_jax.evaluation import metrics
from ctfake_jax.models.patch_net import STRIDE
from ctfake_jax.runtime import batching, streams
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.train import loop
from ctfake_jax.train.classifier import NETWORK, init_state, updated
from ctfake_jax.train.optimizer_step import Elementwise, adamw, warmed_cosine
from ctfake_jax.train.state import State, in_training
from ctfake_jax.types import Images

PATCH_WEIGHT = 0.5
FARTHEST = 3  # pixels that a pair is moved by


def make_train_step(
  model: nn.Module,
  tx: Elementwise,
  config: Config,
) -> Callable[[State, dict, jax.Array], tuple[State, dict]]:
  """The pure step (state, {image f32[b, h, w, 3]}, key) -> (state, {loss, accuracy}).

  The channels are a fake, its mask above 0, and its original.
  """

  def loss_fn(params, batch_stats, images, fake, synthetic, key):
    """Mean of the images' losses, those of their patches added; logits and new statistics."""
    (logits, features), batch_stats = in_training(model, params, batch_stats, images, key=key)
    logits = logits.reshape(len(images))
    losses = optax.sigmoid_binary_cross_entropy(logits, fake)
    if 'patches' in features:
      losses += PATCH_WEIGHT * patch_losses(features['patches'], synthetic)
    return losses.mean(), (logits, batch_stats)

  def train_step(state, batch, key):
    """One update: turn and move, other looks, degrade, gradient, optimiser, moving average."""
    chex.assert_rank(batch['image'], 4)
    key_turn, key_move, key_looks, key_degrade, key_drop = jax.random.split(key, 5)
    pairs = moved(mirrored(batch['image'], key_turn), key_move)
    pairs = domain_randomized(pairs, key_looks)
    synthetic = shares(pairs[..., 1] > 0)
    images = mesh_lib.alternating(
      degradations.degrade(pairs[..., :1], key_degrade),
      degradations.degrade(pairs[..., 2:], key_degrade),
    )
    fake, old = jnp.arange(len(images)) % 2 == 0, state.networks[NETWORK]
    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      old['params'],
      old['batch_stats'],
      images,
      fake.astype(jnp.float32),
      mesh_lib.alternating(synthetic, jnp.zeros_like(synthetic)),
      key_drop,
    )
    state = updated(state, tx, grads, batch_stats, loss=loss, ema_decay=config.detection.ema_decay)
    return state, {'loss': loss, 'accuracy': ((logits > 0) == fake).mean()}

  return train_step


def make_optimizer(c: DetectionConfig) -> Elementwise:
  """AdamW by `config.detection`; the rate rises for a twentieth of the updates, then falls to 0.

  Kernels alone decay.
  """
  return adamw(warmed_cosine(c.learning_rate, c.updates), c.weight_decay)


def mirrored(images: Float[Array, 'b h w c'], key: Key[Array, '']) -> Float[Array, 'b h w c']:
  """Each image flipped left-right with even chance: no pixel is interpolated."""
  return degradations.mirrored(images, jax.random.bernoulli(key, 0.5, (len(images),)))


def moved(images: Float[Array, 'b h w c'], key: Key[Array, '']) -> Float[Array, 'b h w c']:
  """Each image down and right by up to `FARTHEST` pixels, the edge repeated.

  What a generator leaves must be known wherever the network's squares begin.
  """
  padded = jnp.pad(images, ((0, 0), (FARTHEST, 0), (FARTHEST, 0), (0, 0)), mode='edge')
  starts = jax.random.randint(key, (len(images), 2), 0, FARTHEST + 1)

  def one(image, start):
    return jax.lax.dynamic_slice(image, (*start, 0), images.shape[1:])

  return jax.vmap(one)(padded, starts)


def domain_randomized(
  pairs: Float[Array, 'b h w 3'], key: Key[Array, '']
) -> Float[Array, 'b h w 3']:
  """Fake, mask and original as at another site; the mask loses what turns black."""
  key_tone, key_field, key_zoom = jax.random.split(key, 3)
  pairs = pairs.at[..., ::2].set(domain_randomization.toned(pairs[..., ::2], key_tone))
  return domain_randomization.zoomed_out(domain_randomization.in_field(pairs, key_field), key_zoom)


def shares(masks: Bool[Array, 'b h w']) -> Float[Array, 'b h/4 w/4']:
  """Share of each patch of 4 x 4 pixels that is synthetic."""
  b, height, width = masks.shape
  patches = masks.reshape(b, height // STRIDE, STRIDE, width // STRIDE, STRIDE)
  return patches.astype(jnp.float32).mean((2, 4))


def patch_losses(
  logits: Float[Array, 'b p q'], synthetic: Float[Array, 'b p q']
) -> Float[Array, ' b']:
  """Log loss of patch logits against the share of each that is synthetic.

  In an edited image what is synthetic weighs as much as the rest: the edited patches are few.
  """
  kinds = jnp.stack([synthetic, 1 - synthetic])
  losses = jnp.stack([jax.nn.softplus(-logits), jax.nn.softplus(logits)])
  mass = kinds.sum((2, 3))
  means = (kinds * losses).sum((2, 3)) / jnp.maximum(mass, 1e-6)
  return means.sum(0) / (mass > 0).sum(0)


def train_network(
  config: Config,
  model: nn.Module,
  train: DetectorDataset,
  validation: DetectorDataset,
  workdir: Path,
  name: str,
) -> tuple[dict, dict]:
  """Trains on `train`, keeps the checkpoint with the least `loss_once_scaled` on `validation`.

  The model gives one logit for an image; where it has a feature `patches`, that learns the masks.

  Returns:
    The network's variables, and {parameters, best_step, train_seconds, images_per_s, ...}.
  """
  c, mesh = config.detection, mesh_lib.data_mesh()
  pairs = c.batch_size // 2
  mesh_lib.check_batch_size('detection.batch_size / 2', pairs)
  tx = make_optimizer(c)

  def evaluate(state, _):
    found = predict(model, mesh_lib.to_host(state.ema), validation.images)[0]
    loss = loss_once_scaled(found, validation.fake)
    return -loss, {
      'loss': loss,
      'auroc': metrics.auroc(found[validation.fake], found[~validation.fake]),
    }

  state, progress = loop.train(
    name=name,
    workdir=workdir,
    schedule=loop.Schedule.of(config.train, c.updates, c.eval_every),
    keep=c.keep_checkpoints,
    seed=config.seed,
    state=init_state(model, tx, config.data.image_size, config.seed),
    train_step=make_train_step(model, tx, config),
    feed=open_feed(mesh, in_pairs(train, config.seed), pairs, config.seed),
    evaluate=evaluate,
  )
  facts = {
    'parameters': state.parameter_count(),
    'best_step': progress.best_step,
    **loop.costs(progress, c.batch_size),
  }
  return mesh_lib.to_host(state.ema), facts


def loss_once_scaled(logits: Float[np.ndarray, ' n'], fake: Bool[np.ndarray, ' n']) -> float:
  """Log loss of logits, reals and fakes weighing alike, after the scaling that lowers it most.

  A long training makes logits too sure while it still betters their order, and they get scaled.
  """
  scaled = calibration.fit_scaling(logits, fake).logits(logits)
  losses = np.logaddexp(0, np.where(fake, -scaled, scaled))
  return float(0.5 * losses[fake].mean() + 0.5 * losses[~fake].mean())


def in_pairs(dataset: DetectorDataset, seed: int) -> Images:
  """Every fake with its mask and an original behind it, f32[m, h, w, 3] for m fakes."""
  fakes = np.nonzero(dataset.fake)[0]
  partners = dataset.images[_originals(dataset, fakes, seed)]
  masks = np.where(dataset.masks[fakes], 1.0, -1.0).astype(np.float32)[..., None]
  pairs = np.concatenate([dataset.images[fakes], masks, partners], -1)
  return Images(pairs, np.ones(len(fakes), np.int32))


def _originals(dataset: DetectorDataset, fakes: np.ndarray, seed: int) -> np.ndarray:
  """For each of `fakes` a row of its group's originals at random, or of all where it has none."""
  rng, reals = streams.generator(seed, 'originals of pairs'), np.nonzero(~dataset.fake)[0]
  own: dict[int, list[int]] = {}
  for row in reals.tolist():
    own.setdefault(int(dataset.groups[row]), []).append(row)
  # External fakes and samples take originals in turn, each as often as the others.
  anyone = iter(np.resize(rng.permutation(reals), len(fakes)).tolist())
  found = [own.get(int(group)) for group in dataset.groups[fakes]]
  return np.array([rng.choice(rows) if rows else next(anyone) for rows in found])


def predict(
  model: nn.Module, variables: dict, images: Float[np.ndarray, 'n h w 1']
) -> tuple[Float[np.ndarray, ' n'], Float[np.ndarray, 'n d'], Float[np.ndarray, 'n p q']]:
  """Raw scores, features and patch maps."""
  return batching.map_batches(lambda v, _, batch: forward(model, v, batch), variables, images)


@functools.partial(jax.jit, static_argnums=0)
def forward(
  model: nn.Module, variables: dict, images: Float[Array, 'b h w 1']
) -> tuple[Float[Array, ' b'], Float[Array, 'b d'], Float[Array, 'b p q']]:
  """Scores, pooled features, patch logits.

  A network without patches has one, the image.
  """
  logits, features = model.apply(variables, images, train=False)
  logits = logits.reshape(len(images))
  return logits, features['pre_logits'], features.get('patches', logits[:, None, None])
