"""Compiled programs outlive the process: a run repeated or resumed does not compile again.

JAX tells programs apart by their text, its version and their options, but not by the instructions
that the processor knows, and a folder may be shared by different machines. So each kind of
processor has a folder of its own.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax
import jaxlib

LINUX_PROCESSOR = Path('/proc/cpuinfo')


def enable() -> Path | None:
  """Keeps what takes long to compile; the folder, None where JAX_COMPILATION_CACHE_DIR names one.

  The folder is `$XDG_CACHE_HOME/ctfake_jax` (`~/.cache` where that is not set), below it one for
  this processor and version of jaxlib. It may be deleted at any time.
  """
  if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    return None
  caches = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
  folder = caches / 'ctfake_jax' / f'jaxlib-{jaxlib.__version__}-{processor()}'
  jax.config.update('jax_compilation_cache_dir', str(folder))
  return folder


def processor() -> str:
  """A name for machines whose processors know the same instructions."""
  features = platform.processor()
  if LINUX_PROCESSOR.exists():
    lines = LINUX_PROCESSOR.read_text().splitlines()
    features = next((line for line in lines if line.startswith(('flags', 'Features'))), features)
  return f'{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}'
