"""Memory that XLA's CPU backend frees and asks for again in every step."""

import ctypes
import sys

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
M_ARENA_MAX = -8
TOP_PAD_BYTES = 2**28
NEVER = -1  # trim: the largest threshold in bytes, 2 GB, is less than some steps free


def reuse_freed_memory() -> bool:
  """Lets glibc keep freed memory for the next step; whether it took the settings.

  By default large blocks return to the kernel when freed, and every step pays again for mapping
  and zeroing its temporaries page by page: a tenth to a quarter of a step's time. With one arena
  that never shrinks the process stays at its peak size instead. To be called before threads
  start; does nothing where the C library is not glibc.
  """
  if not sys.platform.startswith('linux'):
    return False
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:
    return False
  settings = (
    (M_ARENA_MAX, 1),
    (M_MMAP_MAX, 0),
    (M_TRIM_THRESHOLD, NEVER),
    (M_TOP_PAD, TOP_PAD_BYTES),
  )
  accepted = [mallopt(name, value) for name, value in settings]
  return all(accepted)
