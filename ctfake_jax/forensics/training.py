"""Training the forensic network on aligned pairs of edited and untouched crops."""

from collections.abc import Callable, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32

from ctfake_jax.config.keys import Config, ForensicsConfig
from ctfake_jax.forensics.examine import forward
from ctfake_jax.forensics.pairs import CROP, PairFeed
from ctfake_jax.forensics.volumes import Volume
from ctfake_jax.models import initializers, registry
from ctfake_jax.models.forensic_net import NEIGHBOURS
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.runtime import streams
from ctfake_jax.train import loop
from ctfake_jax.train.optimizer_step import Elementwise, adamw, apply_gradients, warmed_cosine
from ctfake_jax.train.state import State, advanced, in_training, initial

NETWORK = 'forensic'  # its name within a State
FEW_SQUARES = 12.0  # edits of fewer weigh less
STRONGEST_WEIGHT = 0.1  # of a crop's loss by its strongest squares
STRONGEST = 12  # squares
CHECK_PAIRS = 24  # that the log's figures are of


def init_state(model: nn.Module, tx: Elementwise, seed: int) -> State:
  """Fresh state, on the host."""
  hu = jax.ShapeDtypeStruct((1, NEIGHBOURS, CROP, CROP), jnp.float32)
  present = jax.ShapeDtypeStruct((1, NEIGHBOURS), jnp.bool_)
  key = streams.key(seed, 'initialisation')
  variables = initializers.variables(model, key, hu, present, train=False)
  return initial(
    {NETWORK: variables}, {NETWORK: jax.jit(tx.init)(variables['params'])}, used=NETWORK
  )


def make_optimizer(c: ForensicsConfig) -> Elementwise:
  """AdamW by `config.forensics`, with `warmed_cosine`."""
  return adamw(warmed_cosine(c.learning_rate, c.updates), c.weight_decay)


def make_train_step(
  model: nn.Module, tx: Elementwise, ema_decay: float
) -> Callable[[State, dict, jax.Array], tuple[State, dict]]:
  """The pure step (state, {hu, present, shares} of `PairFeed`, key) -> (state, {loss, ...})."""

  def loss_fn(params, batch_stats, batch):
    logits, batch_stats = in_training(model, params, batch_stats, batch['hu'], batch['present'])
    return loss(logits, batch['shares']), (logits, batch_stats)

  def train_step(state, batch, key):
    """One update: gradient, optimiser, moving average; pairs bring their randomness."""
    del key
    old = state.networks[NETWORK]
    (value, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      old['params'], old['batch_stats'], batch
    )
    params, opt_state = apply_gradients(tx, grads, state.opt_states[NETWORK], old['params'])
    state = advanced(
      state,
      {NETWORK: {'params': params, 'batch_stats': batch_stats}},
      {NETWORK: opt_state},
      used=NETWORK,
      loss=value,
      ema_decay=ema_decay,
    )
    highest = logits.reshape(-1, 2, logits.shape[1] * logits.shape[2]).max(2)
    return state, {'loss': value, 'pairs_in_order': (highest[:, 0] > highest[:, 1]).mean()}

  return train_step


def loss(logits: Float[Array, 'b p q'], shares: Float[Array, 'b p q']) -> Float32[Array, '']:
  """Cross-entropy of squares, edited and untouched ones of a crop weighing alike, and of crops.

  Args:
    logits: of crops.
    shares: of each square that was edited; the untouched twin follows each edited crop.
  """
  kinds = jnp.stack([shares, 1 - shares])
  losses = jnp.stack([jax.nn.softplus(-logits), jax.nn.softplus(logits)])
  mass = kinds.sum((2, 3))
  weights = jnp.minimum(mass / FEW_SQUARES, 1.0)  # a sliver of an edit says little
  squares = ((kinds * losses).sum((2, 3)) / jnp.maximum(mass, 1e-6) * weights).sum() / weights.sum()
  flat = logits.reshape(len(logits), -1)
  strongest = jax.lax.top_k(flat, STRONGEST)[0].mean(1)
  edited = mass[0] >= STRONGEST
  counts = edited | (mass[0] == 0)  # a crop with a sliver is neither
  crops = optax.sigmoid_binary_cross_entropy(strongest, edited.astype(jnp.float32))
  return squares + STRONGEST_WEIGHT * (crops * counts).sum() / jnp.maximum(counts.sum(), 1)


def train(config: Config, volumes: Sequence[Volume], workdir: Path, name: str) -> dict:
  """The averaged variables after all updates: edits of one's own rank no checkpoints."""
  c = config.forensics
  mesh_lib.check_batch_size('forensics.pairs', c.pairs)
  model, tx = registry.forensic_net(c), make_optimizer(c)
  check = PairFeed(volumes, c.kinds, CHECK_PAIRS, streams.seed(config.seed, 'check'))
  held = check.get_batch((), tuple(map(jnp.asarray, check.batch(0))))

  def evaluate(state, step):
    maps = forward(model, mesh_lib.to_host(state.ema), held['hu'], held['present'])
    edited = np.asarray(held['shares'][::2]) > 0.5
    own, twin = np.asarray(maps[::2]), np.asarray(maps[1::2])
    return float(step), {
      'logit_edited': float(own[edited].mean()),
      'logit_untouched': float(twin.mean()),
      'pairs_in_order': float((own.max((1, 2)) > twin.max((1, 2))).mean()),
    }

  state, _ = loop.train(
    name=name,
    workdir=workdir,
    schedule=loop.Schedule.of(config.train, c.updates, c.eval_every),
    keep=c.keep_checkpoints,
    seed=config.seed,
    state=init_state(model, tx, config.seed),
    train_step=make_train_step(model, tx, c.ema_decay),
    feed=PairFeed(volumes, c.kinds, c.pairs, streams.seed(config.seed, 'pairs')),
    evaluate=evaluate,
  )
  return mesh_lib.to_host(state.ema)
