"""What compiled code and a whole process take: FLOPs and bytes."""

import dataclasses
import resource
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one call of a compiled function.

  Attributes:
    flops: XLA's count, of all devices together except on CPUs; 0 where it counts nothing.
    peak_bytes: arguments, results and temporaries together.
  """

  flops: float
  peak_bytes: int


def of(function: Any, arguments: tuple, compiled: Any) -> Cost:
  """Cost of the jitted `function`, whose `.lower(*arguments).compile()` is `compiled`."""
  memory = compiled.memory_analysis()
  platform = jax.default_backend()
  here = platform == 'cpu'
  return Cost(
    flops=_of_compiled(compiled) if here else uncompiled_flops(function, arguments, platform),
    peak_bytes=memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes,
  )


def uncompiled_flops(function: Any, arguments: tuple, platform: str) -> float:
  """FLOPs before compilation hides them in cuDNN's calls: lowered for `platform` ('gpu', 'tpu').

  The CPU's client counts, for others cannot; 0 where JAX_PLATFORMS leaves it out.
  """
  try:
    host = jax.devices('cpu')[0]
  except RuntimeError:
    return 0.0
  name = 'cuda' if platform == 'gpu' else platform
  with jax.default_device(host):
    traced = function.trace(*jax.tree.map(_shape, arguments))
    analysis = traced.lower(lowering_platforms=(name,)).cost_analysis()
  return (analysis or {}).get('flops', 0.0)


def _of_compiled(compiled: Any) -> float:
  return (compiled.cost_analysis() or {}).get('flops', 0.0)


def _shape(leaf: Any) -> Any:
  """The array's shape without its place; other arguments are static."""
  is_array = isinstance(leaf, jax.Array | np.ndarray)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array else leaf


def peak_memory() -> int:
  """Most bytes so far: of the fullest local device, of this process where devices do not count."""
  peaks = [
    (device.memory_stats() or {}).get('peak_bytes_in_use', 0) for device in jax.local_devices()
  ]
  return max(peaks) or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
