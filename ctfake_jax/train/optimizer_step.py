"""The optimiser's step and the moving average of parameters, element by element."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.experimental.xla_metadata import set_xla_metadata

from ctfake_jax.models.ops.platform import has_own_forms


def kernels(params: chex.ArrayTree) -> Any:
  """True for the leaves that weight decay is for: norms' scales and biases are vectors."""
  return jax.tree.map(lambda p: p.ndim > 1, params)


def apply_gradients(
  tx: optax.GradientTransformation,
  grads: chex.ArrayTree,
  opt_state: optax.OptState,
  params: chex.ArrayTree,
) -> tuple[Any, optax.OptState]:
  """New parameters and state of an optimiser that asks no more of their shapes than the rank."""

  def step(grads, opt_state, params):
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  return _on_flat_leaves(step, (grads, opt_state, params), like=(params, opt_state))


def moving_average(old: dict, new: dict, decay: float, step: jax.Array) -> dict:
  """Exponential moving average whose memory grows with the run up to `decay`."""
  kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))

  def blend(old, new, kept):
    return jax.tree.map(lambda a, b: kept * a + (1 - kept) * b, old, new)

  return _on_flat_leaves(blend, (old, new, kept), like=old)


def _on_flat_leaves(function: Callable, arguments: tuple, like: chex.ArrayTree) -> Any:
  """`function(*arguments)`, element by element, a tree with the shapes of `like`.

  XLA's CPU backend compiles one program for each shape and result. On flat leaves it is one for
  each size, and of a single loop; being a function of its own keeps XLA from undoing that.
  """
  if jax.default_backend() != 'cpu' or not has_own_forms():
    return function(*arguments)
  with set_xla_metadata(inlineable='false'):
    found = jax.jit(function)(*jax.tree.map(_flat, arguments))
  return jax.tree.map(lambda leaf, shaped: leaf.reshape(shaped.shape), found, like)


def _flat(leaf: jax.Array) -> jax.Array:
  """f[1, n] of a kernel, that it may be told from vectors."""
  return leaf.reshape(1, -1) if leaf.ndim > 1 else leaf
