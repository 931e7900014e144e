"""Where compiled programs are kept, and that a second process finds them."""

import os
import subprocess
import sys

import jax
import pytest

from ctfake_jax import compilation_cache

PROGRAM = """
import logging
import jax
from ctfake_jax import compilation_cache
compilation_cache.enable()
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: x * 2 + 1)(3.0)
print('/jax/compilation_cache/cache_hits' in hits)
"""


def run(home) -> str:
  environment = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    env={**environment, 'XDG_CACHE_HOME': str(home)},
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.strip()


def test_a_second_process_compiles_nothing(tmp_path):
  assert run(tmp_path) == 'False'
  assert run(tmp_path) == 'True'
  (folder,) = (tmp_path / 'ctfake_jax').iterdir()
  assert folder.name.endswith(compilation_cache.processor())


def test_a_named_folder_is_left_alone(monkeypatch, tmp_path):
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
  assert compilation_cache.enable() is None
  assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.parametrize(('text', 'same'), [('flags : avx2\n', True), ('flags : avx512f\n', False)])
def test_processors_are_told_apart_by_their_instructions(text, same, monkeypatch, tmp_path):
  names = []
  for i, content in enumerate(['model : a\nflags : avx2\n', f'model : b\n{text}']):
    (tmp_path / str(i)).write_text(content)
    monkeypatch.setattr(compilation_cache, 'LINUX_PROCESSOR', tmp_path / str(i))
    names.append(compilation_cache.processor())
  assert (names[0] == names[1]) == same
