"""Updates computed on flat leaves are those of the leaves as they are."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from jaxtyping import TypeCheckError

from ctfake_jax.train.optimizer_step import (
  adam,
  adamw,
  apply_gradients,
  clipped,
  moving_average,
  sgd,
  with_l2,
)

SHAPES = {'kernel': (3, 3, 2, 4), 'other': (3, 2, 3, 4), 'dense': (5, 4), 'bias': (4,)}


def tree(seed: int) -> dict:
  keys = jax.random.split(jax.random.key(seed), len(SHAPES))
  return {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, SHAPES.items())}


def kernels(params):
  return jax.tree.map(lambda p: p.ndim > 1, params)


@pytest.mark.parametrize(
  ('tx', 'reference'),
  [
    (adamw(0.1, 0.5), optax.adamw(0.1, weight_decay=0.5, mask=kernels)),
    (
      with_l2(0.5, sgd(0.1)),
      optax.chain(optax.add_decayed_weights(0.5, kernels), optax.sgd(0.1, 0.9, nesterov=True)),
    ),
    (clipped(1.0, adam(0.1)), optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))),
  ],
)
def test_two_updates_are_those_of_optax(tx, reference):
  found = wanted = tree(0), reference.init(tree(0))
  for seed in (1, 2):
    grads = tree(seed)
    params, state = found
    found = jax.jit(lambda g, s, p: apply_gradients(tx, g, s, p))(grads, state, params)
    updates, state = reference.update(grads, wanted[1], wanted[0])
    wanted = optax.apply_updates(wanted[0], updates), state
  chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_an_optimiser_that_looks_at_shapes_is_not_taken():
  tx = optax.adafactor(0.1)
  with pytest.raises(TypeCheckError, match='tx'):
    apply_gradients(tx, tree(1), tx.init(tree(0)), tree(0))


@pytest.mark.parametrize(('step', 'kept'), [(0, 0.1), (8, 0.5), (10**6, 0.9)])
def test_the_averages_memory_grows_up_to_decay(step, kept):
  found = moving_average(tree(0), tree(1), 0.9, jnp.int32(step))
  wanted = jax.tree.map(lambda a, b: kept * a + (1 - kept) * b, tree(0), tree(1))
  chex.assert_trees_all_close(found, wanted, rtol=1e-5)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='the form of CPUs')
def test_leaves_of_one_size_share_their_programs():
  """Of kernels, of the same number of elements, no other shape is computed on."""
  program = jax.jit(moving_average, static_argnums=2).lower(tree(0), tree(1), 0.9, 5).as_text()
  multiplied = {line.split(':')[-1].strip() for line in program.splitlines() if 'multiply' in line}
  assert multiplied == {'tensor<1x72xf32>', 'tensor<1x20xf32>', 'tensor<4xf32>'}
