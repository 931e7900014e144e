"""Shared test set-up: strict warnings and rank promotion, a compilation cache, the real data."""

import os
from pathlib import Path

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=4')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
import pytest

CACHE = Path(__file__).parent.parent / '.cache' / 'jax'


def pytest_configure(config):
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  jax.config.update('jax_compilation_cache_dir', str(CACHE))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
  config.addinivalue_line('filterwarnings', 'error')
  # Third-party libraries at fault; nothing of ours.
  for rule in (
    'ignore::DeprecationWarning:(?!ctfake_jax)',
    'ignore:.*os.fork.*:RuntimeWarning',
    'ignore::ResourceWarning',
    'ignore::pytest.PytestUnraisableExceptionWarning',
  ):
    config.addinivalue_line('filterwarnings', rule)


@pytest.fixture(scope='session')
def real_data() -> Path:
  folder = os.environ.get('CTFAKE_DATA')
  if not folder:
    pytest.skip('CTFAKE_DATA is not set')
  return Path(folder)
