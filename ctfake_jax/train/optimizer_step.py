"""Optimisers, their step and the moving average of parameters, element by element."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Int

from ctfake_jax.models.ops.platform import has_own_forms


def kernels(params: chex.ArrayTree) -> Any:
  """True for the leaves that weight decay is for: norms' scales and biases are vectors."""
  return jax.tree.map(lambda p: p.ndim > 1, params)


class Elementwise(optax.GradientTransformation):
  """An optimiser that asks no more of the parameters' shapes than whether they are kernels.

  Its step may be taken on flat leaves. The functions below alone make one: an optimiser that looks
  at rows and columns (Adafactor, Shampoo, Muon) has no way to `apply_gradients`.
  """

  __slots__ = ()


def adamw(rate: optax.ScalarOrSchedule, decay: float) -> Elementwise:
  """Loshchilov & Hutter 2019 (arXiv:1711.05101); kernels alone decay."""
  return Elementwise(*optax.adamw(rate, weight_decay=decay, mask=kernels))


def warmed_cosine(peak: float, updates: int) -> optax.Schedule:
  """A rate that rises for a twentieth of the updates, then falls to 0 by half a cosine."""
  return optax.warmup_cosine_decay_schedule(0.0, peak, updates // 20, updates)


def adam(rate: optax.ScalarOrSchedule, b1: float = 0.9) -> Elementwise:
  """Kingma & Ba 2015 (arXiv:1412.6980)."""
  return Elementwise(*optax.adam(rate, b1=b1))


def sgd(rate: optax.ScalarOrSchedule) -> Elementwise:
  """With Nesterov's momentum of 0.9."""
  return Elementwise(*optax.sgd(rate, 0.9, nesterov=True))


def with_l2(decay: float, tx: Elementwise) -> Elementwise:
  """Adds `decay` times the kernels to their gradients."""
  return Elementwise(*optax.chain(optax.add_decayed_weights(decay, kernels), tx))


def clipped(norm: float, tx: Elementwise) -> Elementwise:
  """Shortens the gradient of all parameters to a length of at most `norm`."""
  return Elementwise(*optax.chain(optax.clip_by_global_norm(norm), tx))


def apply_gradients(
  tx: Elementwise,
  grads: chex.ArrayTree,
  opt_state: optax.OptState,
  params: chex.ArrayTree,
) -> tuple[Any, optax.OptState]:
  """New parameters and state of the optimiser."""

  def step(grads, opt_state, params):
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  return _on_flat_leaves(step, (grads, opt_state, params), like=(params, opt_state))


def moving_average(old: dict, new: dict, decay: float, step: Int[Array, '']) -> dict:
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
