"""How many processors this process may use."""

import os


def count() -> int:
  """Those that it is bound to; all of the machine where the system does not say (macOS)."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
