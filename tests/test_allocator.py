"""The settings of the C library's allocator, tried in processes of their own."""

import os
import subprocess
import sys

import pytest

from ctfake_jax import allocator

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc only')
CHURN = """
import os, resource, sys
from ctfake_jax import allocator
if sys.argv[1] == 'set':
  allocator.restart_with_settings()
for _ in range(20):
  block = bytearray(2**26)
  block[::4096] = bytes(2**14)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(faults, os.environ.get(allocator.VARIABLE), sys.argv)
"""


def churn(*arguments, program, **variables):
  environment = {k: v for k, v in os.environ.items() if k != allocator.VARIABLE}
  done = subprocess.run(
    [sys.executable, program, *arguments],
    capture_output=True,
    text=True,
    check=True,
    env={**environment, **variables},
  )
  faults, left, argv = done.stdout.split(maxsplit=2)
  return int(faults), left, argv


@pytest.fixture
def program(tmp_path):
  path = tmp_path / 'churn.py'
  path.write_text(CHURN)
  return path


def test_freed_memory_is_used_again_without_new_page_faults(program):
  faults, left, argv = churn('set', 'a b', program=program)
  assert faults < 0.5 * churn('leave', program=program)[0]
  assert left == 'None'
  assert "'a b'" in argv


def test_settings_of_the_user_stay(program):
  theirs = 'glibc.malloc.arena_max=2'
  assert churn('set', program=program, GLIBC_TUNABLES=theirs)[1] == theirs
