"""What a training step changes, and the end that every step has."""

from typing import Any, no_type_check

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, Key

from ctfake_jax.train.optimizer_step import moving_average


# JAX itself makes states of shapes and flags: what a field is, it holds in a run only.
@no_type_check
class State(flax.struct.PyTreeNode):
  """Everything a step changes.

  Attributes:
    step: how many are done.
    networks: variables {params, and batch_stats where it has some} of each network, by its name.
    opt_states: of each optimiser, by the name of what it moves.
    ema: moving average of the variables of the network that is used after training.
    ema_encoder: the same of a VAE's encoder; {} elsewhere. A reconstruction pairs the averages: an
      encoder of one step speaks another language than the average of many decoders.
    first_bad_step: the first one whose loss was not finite, -1 while there is none.
  """

  step: Int32[Array, '']
  networks: dict[str, dict]
  opt_states: dict[str, optax.OptState]
  ema: dict
  ema_encoder: dict
  first_bad_step: Int32[Array, '']

  def parameter_counts(self) -> dict[str, int]:
    """Trainable scalars of each network."""
    return {
      name: sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
      for name, variables in self.networks.items()
    }

  def parameter_count(self) -> int:
    """Trainable scalars of all networks."""
    return sum(self.parameter_counts().values())


def initial(
  networks: dict[str, dict], opt_states: dict[str, optax.OptState], *, used: str
) -> State:
  """The state that these variables start from; the network `used` after training is averaged."""
  return State(
    step=jnp.zeros((), jnp.int32),
    networks=networks,
    opt_states=opt_states,
    ema=networks[used],
    ema_encoder=networks.get('encoder', {}),
    first_bad_step=jnp.full((), -1, jnp.int32),
  )


def in_training(
  network: nn.Module,
  params: dict,
  batch_stats: dict,
  *inputs: Array,
  key: Key[Array, ''] | None = None,
) -> tuple[Any, dict]:
  """What a network gives of a training batch, and its batch statistics ({} of none) after it.

  The key draws what dropout leaves out.
  """
  out, updates = network.apply(
    {'params': params, 'batch_stats': batch_stats},
    *inputs,
    train=True,
    mutable=['batch_stats'],
    rngs=None if key is None else {'dropout': key},
  )
  return out, updates.get('batch_stats', {})


def advanced(
  state: State,
  networks: dict[str, dict],
  opt_states: dict[str, optax.OptState],
  *,
  used: str,
  loss: Float[Array, ''],
  ema_decay: float,
) -> State:
  """The state after a step that gave these networks and optimisers, and had this loss."""

  def averaged(old: dict, new: dict) -> dict:
    return moving_average(old, new, ema_decay, state.step)

  bad = (state.first_bad_step < 0) & ~jnp.isfinite(loss)
  encoder = networks.get('encoder')
  return State(
    step=state.step + 1,
    networks=networks,
    opt_states=opt_states,
    ema=averaged(state.ema, networks[used]),
    ema_encoder=averaged(state.ema_encoder, encoder) if encoder else {},
    first_bad_step=jnp.where(bad, state.step, state.first_bad_step),
  )
