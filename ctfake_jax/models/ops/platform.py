"""Which form of an operation a program takes: that of its platform, or the plain one.

XLA's CPU backend is slow in the gradients of convolutions, in depthwise, transposed and small-image
convolutions and in pooling; on NVIDIA GPUs some layers of grey images are. There the same sums are
written in other forms. On TPU, and under `reference_ops`, every operation is XLA's own.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

# `with every_platform(True):` traces programs for other platforms than the one at hand. JAX keeps
# its caches apart by such a context.
every_platform = jax.make_user_context(False)
_reference = jax.make_user_context(False)


@contextlib.contextmanager
def reference_ops(on: bool = True) -> Iterator[None]:
  """Plain forms alone, XLA's, Flax's and Optax's own, in all threads."""
  before = _reference.get_global()
  _reference.set_global(on)
  try:
    yield
  finally:
    _reference.set_global(before)


def has_own_forms() -> bool:
  """Whether other forms than the plain ones may be taken."""
  return not _reference.value


def by_platform(*arguments: Float[Array, '...'], plain: Callable, **forms: Callable) -> Any:
  """The result in the form of the platform that the program runs on, `plain` where it has none.

  On a CPU the forms of others are not even traced: differentiated and compiled with the rest, they
  were a tenth and more of a first step's time.
  """
  if not has_own_forms():
    return plain(*arguments)
  if jax.default_backend() == 'cpu' and not every_platform.value:
    return forms.get('cpu', plain)(*arguments)
  return lax.platform_dependent(*arguments, default=plain, **forms)
