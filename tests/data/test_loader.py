"""Batches on their way to the step: complete, the same from every place, read where needed."""

import dataclasses
import itertools
import os
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_images

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.data import dataset, fingerprints, loader
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.data.sources import array_record
from ctfake_jax.runtime import mesh
from ctfake_jax.train import classifier


@hypothesis.given(n=st.integers(3, 20), batch=st.integers(1, 20), epochs=st.integers(1, 4))
def test_batches_are_full_and_every_epoch_sees_all(n, batch, epochs):
  steps = -(-n * epochs // batch)
  rows = np.concatenate([loader.rows_at(step, n, batch, seed=0) for step in range(steps)])
  assert len(rows) == steps * batch
  for epoch in range(epochs):
    assert sorted(rows[epoch * n : (epoch + 1) * n]) == list(range(n))


@hypothesis.given(seed=st.integers(0, 99))
@hypothesis.settings(deadline=None)
def test_codes_keep_images_to_half_a_step(seed):
  images = np.random.default_rng(seed).uniform(-1, 1, (3, 4, 4, 1)).astype(np.float32)
  images[0, 0, 0, 0], images[0, 0, 1, 0] = -1, 1
  back = np.asarray(loader.decode(jnp.asarray(loader.encode(images))))
  np.testing.assert_allclose(back, images, atol=1.01 / loader.CODES)
  assert back[0, 0, 0, 0] == -1
  assert back[0, 0, 1, 0] == 1


def batches(source, start, count):
  batch_indices = itertools.islice(source.batch_indices(start), count)
  return [
    jax.device_get(source.get_batch(source.device_data, indices)) for indices in batch_indices
  ]


@pytest.mark.parametrize('start', [0, 5])
def test_both_feeds_give_the_same_batches_from_any_step(start):
  images = make_images(21)
  from_device = batches(loader.DeviceFeed(mesh.data_mesh(), images, 8, seed=3), start, 4)
  from_host = batches(loader.HostFeed(mesh.data_mesh(), images, 8, seed=3), start, 4)
  for a, b, step in zip(from_device, from_host, range(start, start + 4), strict=True):
    rows = loader.rows_at(step, 21, 8, seed=3)
    np.testing.assert_array_equal(a['label'], images.labels[rows])
    np.testing.assert_array_equal(a['label'], b['label'])
    np.testing.assert_array_equal(a['image'], b['image'])
    np.testing.assert_allclose(a['image'], images.images[rows], atol=1.01 / loader.CODES)


class Counted:
  """Images that remember which rows were read."""

  def __init__(self, images):
    self.images, self.shape, self.read = images, images.shape, []

  def __getitem__(self, rows):
    self.read.append(rows)
    return self.images[rows]


def test_the_host_feed_reads_each_device_s_rows_once():
  images = make_images(16)
  counted = Counted(images.images)
  source = loader.HostFeed(
    mesh.data_mesh(), dataclasses.replace(images, images=counted), batch_size=8, seed=0
  )
  source._batch(0)
  assert {len(rows) for rows in counted.read} == {8 // jax.device_count()}
  assert sorted(np.concatenate(counted.read)) == sorted(loader.rows_at(0, 16, 8, seed=0))


def test_data_larger_than_its_share_stays_on_the_host(monkeypatch):
  images = make_images(16)
  assert isinstance(loader.open_feed(mesh.data_mesh(), images, 8, 0), loader.DeviceFeed)
  monkeypatch.setattr(loader, '_room', lambda _: 1000)
  assert isinstance(loader.open_feed(mesh.data_mesh(), images, 8, 0), loader.HostFeed)


class Decoding:
  """A source that counts what it decodes."""

  def __init__(self, source):
    self.source, self.count = source, 0

  def __getattr__(self, name):
    return getattr(self.source, name)

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    self.count += 1
    return self.source[index]


VIEW = Preprocess(32, -600.0, 1500.0, 'crop')


@pytest.mark.slow
def test_images_on_disk_are_those_in_memory_and_read_when_asked(tiny_config):
  source = Decoding(dataset.open_source(resolve(tiny_config)))
  loaded = dataset.gather(source, VIEW)
  stored = dataset.gather(source, VIEW, stream=True)
  before = source.count
  part = stored.take(np.array([5, 2, 7])).take(np.array([2, 0]))
  assert part.images.shape == (2, 32, 32, 1)
  assert source.count == before
  np.testing.assert_array_equal(part.images[:], loaded.images[[7, 5]])
  assert source.count == before + 2
  np.testing.assert_array_equal(np.asarray(stored.images), loaded.images)
  assert fingerprints.fingerprint(stored) == fingerprints.fingerprint(loaded)
  assert isinstance(loader.open_feed(mesh.data_mesh(), stored, 8, 0), loader.HostFeed)


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  """A set of ArrayRecord files."""
  config = config_lib.defaults()
  config.phantom.patients, config.phantom.slices_per_patient = 40, 2
  folder = tmp_path_factory.mktemp('records')
  array_record.write_records(dataset.open_source(resolve(config)), folder)
  return folder


@pytest.mark.slow
def test_a_streamed_run_ends_as_one_from_memory(tiny_config, records, tmp_path):
  tiny_config.data.source, tiny_config.data.path = 'tfds', str(records)
  results = []
  for stream in (False, True):
    tiny_config.data.stream = stream
    result = classifier.run(resolve(tiny_config), tmp_path / str(stream))
    results.append({k: result[k] for k in ('accuracy', 'confusion', 'data', 'baselines')})
  assert results[0] == results[1]


def resident_bytes():
  return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.slow
def test_streaming_takes_no_more_memory_as_it_goes(records):
  slices = int(os.environ.get('CTFAKE_SLICES', '8000'))
  images = dataset.gather(array_record.TfdsSource(records), VIEW, stream=True)
  batch_indices = loader.open_feed(mesh.data_mesh(), images, 64, seed=0).batch_indices(0)
  sizes = []
  for _ in range(slices // 64):
    jax.block_until_ready(next(batch_indices))
    sizes.append(resident_bytes())
  assert sizes[-1] - sizes[len(sizes) // 4] < 2**24
