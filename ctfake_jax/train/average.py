"""Moving averages of parameters, which sample and classify better than the last step's."""

import jax
import jax.numpy as jnp


def moving_average(old: dict, new: dict, decay: float, step: jax.Array) -> dict:
  """Exponential moving average whose memory grows with the run up to `decay`."""
  kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda a, b: kept * a + (1 - kept) * b, old, new)
