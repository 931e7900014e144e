"""Memory that XLA frees and asks for again, in every step and while it compiles."""

import os
import sys

VARIABLE = 'GLIBC_TUNABLES'
SETTINGS = {
  # By default large blocks return to the kernel when freed, and every step pays again for mapping
  # and zeroing its temporaries page by page: a tenth to a quarter of a step's time. With one arena
  # that never shrinks the process stays at its peak size instead.
  'arena_max': 1,
  'mmap_max': 0,
  'trim_threshold': 2**64 - 1,
  'top_pad': 2**28,
  # Small blocks of each thread's own, lest threads that compile wait for the arena: a fifth of the
  # time of compilation.
  'tcache_count': 2000,
}


def restart_with_settings() -> None:
  """Starts this program anew, in the same process, as glibc reads its settings at its start only.

  Returns in the new one, whose children do not inherit them. Settings of the user's own stay as
  they are, and other C libraries know none.
  """
  ours = ':'.join(f'glibc.malloc.{name}={value}' for name, value in SETTINGS.items())
  if os.environ.get(VARIABLE) == ours:
    del os.environ[VARIABLE]
  elif sys.platform.startswith('linux') and VARIABLE not in os.environ:
    os.environ[VARIABLE] = ours
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606, no shell is wanted
