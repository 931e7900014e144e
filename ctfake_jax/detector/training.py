"""Training the real-against-fake network on exhibits.

Every step sees a random half of each image's harmless fates (`data.degrade`), real and fake alike.
The image's label and, patch by patch, the mask of what is synthetic teach at once. Images travel
with their mask as a second channel.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from ctfake_jax import mesh as mesh_lib
from ctfake_jax import metrics
from ctfake_jax.data import degrade
from ctfake_jax.data.feed import open_feed
from ctfake_jax.detector.exhibits import Exhibits
from ctfake_jax.models.patch_net import STRIDE
from ctfake_jax.train import loop
from ctfake_jax.train.average import moving_average
from ctfake_jax.train.classifier import State, init_state
from ctfake_jax.types import ImageSet

BATCH_SIZE = 64
PATCH_WEIGHT = 0.5


def make_train_step(
  model: nn.Module,
  tx: optax.GradientTransformation,
  config: ml_collections.ConfigDict,
  fake_share: float,
) -> Callable[[State, dict, jax.Array], tuple[State, dict]]:
  """The pure step (state, {image f32[b, h, w, 2], label}, key) -> (state, {loss, accuracy})."""

  def loss_fn(params, state, images, fake, synthetic, key):
    (logits, features), updates = model.apply(
      {'params': params, 'batch_stats': state.batch_stats},
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key},
    )
    weights = jnp.where(fake > 0, 0.5 / fake_share, 0.5 / (1 - fake_share))
    logits = logits.reshape(len(images))
    losses = optax.sigmoid_binary_cross_entropy(logits, fake)
    if 'patches' in features:
      patch_losses = optax.sigmoid_binary_cross_entropy(features['patches'], synthetic)
      losses += PATCH_WEIGHT * patch_losses.mean((1, 2))
    return (weights * losses).mean(), (logits, updates.get('batch_stats', {}))

  def train_step(state, batch, key):
    """One update: turn, degrade, gradient, optimiser, moving average."""
    chex.assert_rank([batch['image'], batch['label']], [4, 1])
    key_turn, key_degrade, key_drop = jax.random.split(key, 3)
    turned = mirrored(batch['image'], key_turn)
    images = degrade.degrade(turned[..., :1], key_degrade)
    fake = batch['label'].astype(jnp.float32)
    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params, state, images, fake, shares(turned[..., 1] > 0), key_drop
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    now = {'params': optax.apply_updates(state.params, updates), 'batch_stats': batch_stats}
    bad = (state.first_bad_step < 0) & ~jnp.isfinite(loss)
    state = state.replace(
      step=state.step + 1,
      **now,
      opt_state=opt_state,
      ema=moving_average(state.ema, now, config.detection.ema_decay, state.step),
      first_bad_step=jnp.where(bad, state.step, state.first_bad_step),
    )
    return state, {'loss': loss, 'accuracy': ((logits > 0) == (fake > 0)).mean()}

  return train_step


def make_optimizer(c: ml_collections.ConfigDict) -> optax.GradientTransformation:
  """AdamW by `config.detection`; the rate rises for a twentieth of the updates, then falls to 0."""
  rate = optax.warmup_cosine_decay_schedule(0.0, c.learning_rate, c.updates // 20, c.updates)
  return optax.adamw(rate, weight_decay=c.weight_decay)


def mirrored(images: jax.Array, key: jax.Array) -> jax.Array:
  """Each of f32[b, h, w, c] flipped left-right with even chance: no pixel is interpolated."""
  flip = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
  return jnp.where(flip, images[:, :, ::-1], images)


def shares(masks: jax.Array) -> jax.Array:
  """Share of each patch, f32[b, h/4, w/4], that is synthetic; masks are bool[b, h, w]."""
  b, height, width = masks.shape
  patches = masks.reshape(b, height // STRIDE, STRIDE, width // STRIDE, STRIDE)
  return patches.astype(jnp.float32).mean((2, 4))


def fit(
  config: ml_collections.ConfigDict,
  model: nn.Module,
  learn: Exhibits,
  choose: Exhibits,
  workdir: Path,
  name: str,
) -> tuple[dict, dict]:
  """Trains on `learn`, keeps the checkpoint with the least loss on `choose`.

  The model gives one logit for an image; where it has a feature `patches`, that learns the masks.

  Returns:
    The network's variables, and {parameters, best_step, train_seconds, images_per_s, ...}.
  """
  c, mesh = config.detection, mesh_lib.data_mesh()
  mesh_lib.check_batch_size('detection.batch_size', c.batch_size)
  tx = make_optimizer(c)
  fresh = functools.partial(init_state, model, tx, config.data.image_size, config.seed)
  everywhere = mesh_lib.replicated(mesh)
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
    jax.eval_shape(fresh),
  )

  def evaluate(state, _):
    found = judge(model, mesh_lib.to_host(state.ema), choose.images)[0]
    sign = np.where(choose.fake, -1.0, 1.0)
    losses = np.logaddexp(0, sign * found)
    loss = float(0.5 * losses[choose.fake].mean() + 0.5 * losses[~choose.fake].mean())
    return -loss, {'loss': loss, 'auroc': metrics.auroc(found[choose.fake], found[~choose.fake])}

  state, progress = loop.run(
    name=name,
    workdir=workdir,
    schedule=loop.Schedule(
      total=c.updates,
      eval_every=c.eval_every,
      log_every=config.train.log_every,
      at_once=loop.steps_at_once(config.train),
    ),
    keep=c.keep_checkpoints,
    seed=config.seed,
    abstract_state=abstract,
    init=functools.partial(mesh_lib.made_everywhere, mesh, fresh),
    train_step=make_train_step(model, tx, config, float(learn.fake.mean())),
    feed=open_feed(mesh, _with_masks(learn), c.batch_size, config.seed),
    evaluate=evaluate,
  )
  facts = {
    'parameters': state.parameter_count(),
    'best_step': progress.best_step,
    **loop.costs(progress, c.batch_size),
  }
  return mesh_lib.to_host(state.ema), facts


def _with_masks(exhibits: Exhibits) -> ImageSet:
  masks = np.where(exhibits.masks, 1.0, -1.0).astype(np.float32)[..., None]
  return ImageSet(
    images=np.concatenate([exhibits.images, masks], -1),
    labels=exhibits.fake.astype(np.int32),
    records=(),
    native_sizes=np.zeros((len(exhibits), 2), np.int32),
    class_names=('real', 'fake'),
    unit='grey',
  )


def judge(
  model: nn.Module, variables: dict, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Raw scores f32[n], features f32[n, d] and patch maps f32[n, h', w']."""
  found = []
  for start in range(0, len(images), BATCH_SIZE):
    batch = images[start : start + BATCH_SIZE]
    padded = np.resize(batch, (BATCH_SIZE, *batch.shape[1:]))
    outputs = jax.device_get(forward(model, variables, padded))
    found.append([part[: len(batch)] for part in outputs])
  scores, features, patches = (np.concatenate(part) for part in zip(*found))
  return scores, features, patches


@functools.partial(jax.jit, static_argnums=0)
def forward(model: nn.Module, variables: dict, images: jax.Array):
  """Logits f32[b], pooled features f32[b, d], patch logits f32[b, h', w'].

  A network without patches has one, the image.
  """
  logits, features = model.apply(variables, images, train=False)
  logits = logits.reshape(len(images))
  return logits, features['pre_logits'], features.get('patches', logits[:, None, None])
