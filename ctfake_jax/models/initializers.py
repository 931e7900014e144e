"""Initialisers that draw with NumPy, and the variables of a module without compiling it.

XLA compiles a random generator for every shape of kernel; for a residual network that takes as long
as epochs of small images. Here the draws are NumPy's, seeded with the key that Flax hands to each
parameter. They are the same in a traced `init`, where a callback makes them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, UInt32

Initializer = Callable[..., Any]
DrawKey = Key[Array, ''] | UInt32[Array, ' words']  # typed, or the words of one


def normal(stddev: float, mean: float = 0.0) -> Initializer:
  """N(mean, stddev^2)."""

  def init(key, shape, dtype=jnp.float32):
    return _drawn(key, shape, dtype, stddev, mean)

  return init


def fan_out_normal(
  key: DrawKey, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> Float[Array | np.ndarray, '...']:
  """N(0, 2 / fan_out) for kernels [..., i, o] before a ReLU (He et al. 2015, arXiv:1502.01852)."""
  return _drawn(key, shape, dtype, math.sqrt(2 / (math.prod(shape) / shape[-2])))


def fan_in_normal(
  key: DrawKey, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> Float[Array | np.ndarray, '...']:
  """N(0, 1 / fan_in) for kernels [..., i, o] (LeCun et al. 1998, Efficient BackProp)."""
  return _drawn(key, shape, dtype, math.sqrt(1 / (math.prod(shape) / shape[-1])))


def zeros(
  key: DrawKey | None, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> Float[np.ndarray, '...']:
  """Zeros of NumPy; JAX's own compile a program for each shape."""
  del key
  return np.zeros(shape, dtype)


def ones(
  key: DrawKey | None, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> Float[np.ndarray, '...']:
  """Ones of NumPy."""
  del key
  return np.ones(shape, dtype)


def variables(
  module: nn.Module, key: Key[Array, ''], *inputs: Any, **options: Any
) -> dict[str, Any]:
  """What `module.init` returns, as NumPy arrays; the forward pass is traced for its shapes alone.

  Args:
    module: whose initialisers, as those of this file, do not depend on the inputs' values.
    key: not traced.
    *inputs: arrays, or their shapes and dtypes.
    **options: static, such as `train`.
  """
  made: dict[str, Any] = {}

  def init(*inputs):
    with jax.ensure_compile_time_eval():
      made.update(module.init(key, *inputs, **options))

  jax.eval_shape(init, *inputs)
  return jax.device_get(made)


def _drawn(key, shape, dtype, stddev: float, mean: float = 0.0):
  def draw(words):
    values = np.random.default_rng(np.asarray(words)).standard_normal(shape, np.float32)
    return (mean + stddev * values).astype(dtype)

  words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
  if isinstance(words, jax.core.Tracer):
    drawn = jax.ShapeDtypeStruct(shape, dtype)
    return jax.pure_callback(draw, drawn, words, vmap_method='sequential')
  return draw(words)
