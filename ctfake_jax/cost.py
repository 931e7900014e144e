"""What compiled code and a whole process take: FLOPs and bytes."""

import dataclasses
import resource
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one call of a compiled function.

  Attributes:
    flops: XLA's count, without library calls that it cannot see into; 0 where it counts nothing.
    peak_bytes: arguments, results and temporaries together.
  """

  flops: float
  peak_bytes: int


def of(compiled: Any) -> Cost:
  """Cost of what `jax.jit(...).lower(...).compile()` returned."""
  memory = compiled.memory_analysis()
  return Cost(
    flops=(compiled.cost_analysis() or {}).get('flops', 0.0),
    peak_bytes=memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes,
  )


def peak_memory() -> int:
  """Most bytes so far: of the fullest local device, of this process where devices do not count."""
  peaks = [
    (device.memory_stats() or {}).get('peak_bytes_in_use', 0) for device in jax.local_devices()
  ]
  return max(peaks) or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
