"""Random streams by name: what one use of a seed draws, apart from every other use of it.

A name is what the draws are for, in words and numbers: `key(seed, 'order', epoch)`. Two uses with
different names, or seeds, have independent streams; adding a use moves no other one. Names are
data: results hang on them, so they stay when code is renamed.
"""

import hashlib

import jax
import numpy as np
from jaxtyping import Array, Key

Part = str | int


def seed(parent: int, *name: Part) -> int:
  """A whole number in [0, 2^31) that follows from the parent and the name."""
  return int(_words(parent, name)[0] >> 1)


def generator(parent: int, *name: Part) -> np.random.Generator:
  """NumPy's generator of the stream."""
  return np.random.default_rng(_words(parent, name))


def key(parent: int, *name: Part) -> Key[Array, '']:
  """JAX's typed key of the stream: the parent's, folded with a hash of the name."""
  return jax.random.fold_in(jax.random.key(parent), _words(parent, name)[0])


def _words(parent: int, name: tuple[Part, ...]) -> np.ndarray:
  """uint32[4], a hash of parent and name; no two lists of parts are written alike."""
  written = repr((int(parent), *name)).encode()
  return np.frombuffer(hashlib.sha256(written).digest()[:16], np.uint32)
