"""Compiled programs outlive the process: a run repeated or resumed does not compile again.

JAX tells programs apart by their text, its version and their options, but not by the instructions
that the processor knows, and a home may be shared by different machines. So each kind of processor
has a folder of its own. What lies there is run as code: it must be this user's alone to write.
"""

import hashlib
import os
import platform
import stat
import sys
from pathlib import Path

import jax
import jaxlib
import platformdirs

PROCESSOR = Path('/proc/cpuinfo')
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def enable() -> Path | None:
  """Keeps what takes long to compile; the folder, None where nothing was changed.

  The folder is `$XDG_CACHE_HOME/ctfake_jax` (`~/.cache` where that is not set), below it one for
  this processor and version of jaxlib. Nothing is changed where JAX_COMPILATION_CACHE_DIR names
  another, where the folder cannot be made or others may write to it, on other systems than Linux,
  and with several processes, of which one alone would keep its programs: XLA's tuning on GPUs waits
  for all of them to compile.
  """
  named = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  if named or jax.distributed.is_initialized() or sys.platform != 'linux':
    return None
  try:
    folder = _private_folder()
  except (OSError, RuntimeError):  # no home, or not ours to write
    return None
  jax.config.update('jax_compilation_cache_dir', str(folder))
  return folder


def processor() -> str:
  """A name for Linux machines whose processors know the same instructions."""
  lines = PROCESSOR.read_text().splitlines()
  features = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
  return f'{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}'


def _private_folder() -> Path:
  caches = platformdirs.user_cache_path('ctfake_jax', appauthor=False)
  folder = caches / f'jaxlib-{jaxlib.__version__}-{processor()}'
  folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  status = folder.stat()
  ours = status.st_uid == os.geteuid() and not status.st_mode & WRITABLE_BY_OTHERS
  if not (ours and os.access(folder, os.W_OK)):
    raise PermissionError(folder)
  return folder
