"""What compiled code and a whole process take: FLOPs and bytes."""

import dataclasses
import sys
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one call of a compiled function.

  Attributes:
    flops: XLA's count, on all devices, for the plain forms of all operations; on CPUs of what was
      compiled; 0 where it counts nothing.
    peak_bytes: arguments, results and temporaries together, on one device.
  """

  flops: float
  peak_bytes: int


def of(function: Any, arguments: tuple, compiled: Any) -> Cost:
  """Cost of the jitted `function`, whose `.lower(*arguments).compile()` is `compiled`.

  Of the arguments only shapes are read; `shapes` of them will do.
  """
  memory = compiled.memory_analysis()
  here = jax.default_backend() == 'cpu'
  return Cost(
    flops=jax.device_count() * _flops(compiled) if here else uncompiled_flops(function, arguments),
    peak_bytes=memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes,
  )


def shapes(arguments: tuple) -> tuple:
  """Arrays' shapes and types without their values and places; the rest as it is."""

  def shape(leaf):
    is_array = isinstance(leaf, jax.Array | np.ndarray)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array else leaf

  return jax.tree.map(shape, arguments)


def uncompiled_flops(function: Any, arguments: tuple) -> float:
  """FLOPs of the plain forms, which a compiler would hide in the calls of a library.

  Lowered for TPU, where every operation is plain. The CPU's client counts, for others cannot; 0
  where JAX_PLATFORMS leaves it out.
  """
  try:
    host = jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return 0.0
  with jax.default_device(host):
    return _flops(function.trace(*shapes(arguments)).lower(lowering_platforms=('tpu',)))


def _flops(program: Any) -> float:
  return (program.cost_analysis() or {}).get('flops', 0.0)


def peak_memory() -> int:
  """Most bytes so far: of the fullest local device, of this process where devices do not count."""
  peaks = [
    (device.memory_stats() or {}).get('peak_bytes_in_use', 0) for device in jax.local_devices()
  ]
  return max(peaks) or _peak_of_process()


def _peak_of_process() -> int:
  try:
    import resource
  except ImportError:  # Windows
    return 0
  unit = 1 if sys.platform == 'darwin' else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
