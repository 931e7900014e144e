"""launch.py as its users start it, in a process of its own with the tests' compilation cache."""

import os
import subprocess
import sys
from pathlib import Path

import jaxlib.version

ROOT = Path(__file__).parent.parent
CACHE = ROOT / '.cache' / 'jax'
SHORTEST_CACHED_COMPILE_S = 0.1
# From this jaxlib on, an unknown flag ends the process.
HAS_NEW_EMITTERS_ALONE = (0, 11, 1)


def command(config: str, *flags: str) -> list[str]:
  return [sys.executable, str(ROOT / 'launch.py'), f'--config={ROOT}/configs/{config}.py', *flags]


def environment(devices: int = 1, optimised: bool = False) -> dict[str, str]:
  """With the tests' cache; `optimised`: XLA compiles as it does for users."""
  own = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': str(CACHE),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': str(SHORTEST_CACHED_COMPILE_S),
    'XLA_FLAGS': xla_flags(devices),
  }
  if optimised:
    del own['JAX_DISABLE_MOST_OPTIMIZATIONS'], own['XLA_FLAGS']
  return own


def xla_flags(devices: int) -> str:
  """So many CPU devices, and the emitters that compile unoptimised code in half the time."""
  flags = [f'--xla_force_host_platform_device_count={devices}']
  if jaxlib.version.__version_info__ < HAS_NEW_EMITTERS_ALONE:
    flags.append('--xla_cpu_use_fusion_emitters=false')
  return ' '.join(flags)


def start(
  config: str, workdir: Path, *keys: str, devices: int = 1, optimised: bool = False
) -> subprocess.Popen:
  """The command with `section.key=value` for each of `keys`, running; its stderr can be read."""
  flags = [f'--workdir={workdir}', *(f'--config.{key}' for key in keys)]
  return subprocess.Popen(
    command(config, *flags),
    env=environment(devices, optimised),
    stderr=subprocess.PIPE,
    text=True,
  )
