"""Shared test set-up: strict warnings and rank promotion, a compilation cache, the real data."""

import gc
import os
import sys
from pathlib import Path

from door import CACHE, SHORTEST_CACHED_COMPILE_S, xla_flags

os.environ.setdefault('XLA_FLAGS', xla_flags(devices=8))
# Tests compile much and run little; the programs that they start inherit it.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import install_import_hook

# Before anything of ours is imported: arguments and results of every call are checked. The checked
# modules are kept beside the others whatever the environment says: compiling them takes 12 s.
sys.dont_write_bytecode = False
install_import_hook('ctfake_jax', 'typechecker.checked')

from ctfake_jax import config as config_lib  # noqa: E402
from ctfake_jax.types import ImageSet, Record  # noqa: E402


def pytest_configure(config):
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  jax.config.update('jax_compilation_cache_dir', str(CACHE))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', SHORTEST_CACHED_COMPILE_S)
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


@pytest.fixture
def tiny_config():
  """A classifier of one block on 16-px images: compiles in seconds."""
  config = config_lib.defaults()
  config.data.image_size = 16
  config.model.cnn.widths = (4,)
  config.train.batch_size = 8
  config.train.epochs = 2
  config.train.log_every = 1
  config.train.warmup_epochs = 0.0
  config.split.by = 'patient'
  config.split.val_fraction = 0.25
  config.split.test_fraction = 0.25
  return config


def make_images(count: int = 48, size: int = 16, classes: int = 2, seed: int = 0) -> ImageSet:
  """Noise with a square whose corner and stripes tell the class; two images a patient."""
  rng = np.random.default_rng(seed)
  labels = (np.arange(count) // 2 % classes).astype(np.int32)
  images = rng.normal(-0.5, 0.1, (count, size, size, 1)).astype(np.float32)
  for image, label in zip(images, labels):
    corner = label * size // 2
    image[corner : corner + size // 2 : label + 1, : size // 2] += 0.8
  records = tuple(Record(int(k), f'patient-{i // 2}', f'{i}.png') for i, k in enumerate(labels))
  return ImageSet(
    images=images.clip(-1, 1),
    labels=labels,
    records=records,
    native_sizes=np.full((count, 2), size, np.int32),
    class_names=tuple(f'class{k}' for k in range(classes)),
    unit='grey',
  )


@pytest.fixture
def images() -> ImageSet:
  return make_images()


def assert_equal_with_gradients(ours, reference, x, kernel):
  """Equal to float32 rounding, relative to the largest value."""
  want, pull_want = jax.vjp(reference, x, kernel)
  got, pull_got = jax.vjp(ours, x, kernel)
  cotangent = jax.random.normal(jax.random.key(2), want.shape)
  for g, w in zip((got, *pull_got(cotangent)), (want, *pull_want(cotangent)), strict=True):
    assert g.dtype == w.dtype
    np.testing.assert_allclose(g / jnp.abs(w).max(), w / jnp.abs(w).max(), atol=1e-5)


def pytest_collection_finish():
  """Tracing makes much garbage; what imports made stays, and need not be looked at each time."""
  gc.freeze()
  gc.set_threshold(100_000, 20, 100)
