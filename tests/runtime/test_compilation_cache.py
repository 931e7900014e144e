"""Where compiled programs are kept, that a second process finds them, and whose code is run."""

import os
import subprocess
import sys

import door
import jax
import pytest

from ctfake_jax.runtime import compilation_cache

PROGRAM = """
import jax
from ctfake_jax.runtime import compilation_cache
compilation_cache.enable()
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
jax.jit(lambda x: x * 2 + 1)(3.0)
print('/jax/compilation_cache/cache_hits' in seen)
"""


def output(arguments: list[str], **environment: str) -> str:
  unset = ('JAX_COMPILATION_CACHE_DIR', 'XDG_CACHE_HOME')
  kept = {k: v for k, v in os.environ.items() if k not in unset}
  done = subprocess.run(
    arguments, env={**kept, **environment}, capture_output=True, text=True, cwd=door.ROOT
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.strip()


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
  for found in ('False', 'True'):
    assert output([sys.executable, '-c', PROGRAM], XDG_CACHE_HOME=str(tmp_path)) == found
  (folder,) = (tmp_path / 'ctfake_jax').iterdir()
  assert folder.name.endswith(compilation_cache.processor())
  assert folder.stat().st_mode & 0o077 == 0


def test_without_a_home_to_write_programs_run_and_are_not_kept():
  assert output([sys.executable, '-c', PROGRAM], HOME='/proc/nowhere') == 'False'


@pytest.mark.slow
def test_the_door_keeps_programs(tmp_path):
  output(door.command('export', '--config.dry_run', '--config.checkpoint=x'), HOME=str(tmp_path))
  assert len(list((tmp_path / '.cache' / 'ctfake_jax').iterdir())) == 1


def test_a_folder_that_others_may_write_is_not_used(monkeypatch, tmp_path):
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  folder = compilation_cache._private_folder()
  folder.chmod(0o777)
  assert compilation_cache.enable() is None
  assert jax.config.jax_compilation_cache_dir == before


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
    monkeypatch.setattr(compilation_cache, 'PROCESSOR', tmp_path / str(i))
    names.append(compilation_cache.processor())
  assert (names[0] == names[1]) == same
