"""The settings of the C library's allocator, tried in a process of their own."""

import subprocess
import sys

import pytest

CHURN = """
import resource, ctfake_jax.runtime.malloc as malloc
{call}
for _ in range(20):
  block = bytearray(2**26)
  block[::4096] = bytes(2**14)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(call):
  done = subprocess.run(
    [sys.executable, '-c', CHURN.format(call=call)], capture_output=True, text=True, check=True
  )
  return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc only')
def test_freed_memory_is_used_again_without_new_page_faults():
  assert faults('assert malloc.reuse_freed_memory()') < 0.5 * faults('pass')
