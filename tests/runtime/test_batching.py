"""Batches: every row once and in order, however many are under way."""

import itertools
import threading

import jax
import numpy as np
import pytest

from ctfake_jax.runtime import batching, mesh


@pytest.fixture(params=[1, 2])
def devices(request, monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: request.param)
  return request.param


class Counted:
  """A call that knows how many of it run at a time, and waits for a second one from `first` on."""

  def __init__(self, first=1):
    self.first, self.most, self.running = first, 0, 0
    self.lock, self.together = threading.Lock(), threading.Barrier(2, timeout=10)

  def __call__(self, item):
    with self.lock:
      self.running += 1
      self.most = max(self.most, self.running)
    if item >= self.first:
      self.together.wait()
    with self.lock:
      self.running -= 1
    return item


def test_the_first_runs_alone_and_then_two_at_a_time_on_one_device(devices):
  call = Counted(first=1 if devices == 1 else 9)
  assert list(batching.overlapping(call, range(9))) == list(range(9))
  assert call.most == (batching.IN_FLIGHT if devices == 1 else 1)


def test_reads_only_a_little_ahead(devices):
  seen = []

  def items():
    for item in itertools.count():
      seen.append(item)
      yield item

  found = batching.overlapping(lambda item: item, items())
  assert [next(found) for _ in range(5)] == list(range(5))
  assert len(seen) <= 5 + batching.IN_FLIGHT
  found.close()


@pytest.mark.parametrize('bad', [0, 4])
def test_errors_reach_the_caller(bad, devices):
  with pytest.raises(ZeroDivisionError):
    list(batching.overlapping(lambda item: 1 / (item - bad), range(9)))


@jax.jit
def row_sums(batch):
  return batch.sum((1, 2))


@pytest.mark.parametrize('count', [1, 3, 4, 11])
def test_run_joins_the_rows_of_equal_batches(count, devices):
  images, labels = np.random.default_rng(0).normal(size=(count, 2, 3)), np.arange(count)
  size, sizes = mesh.shareable(4), set()

  def call(constants, number, batch, asked):
    sizes.add((len(batch), len(asked)))
    return {'sum': constants['times'] * row_sums(batch) + asked, 'number': 0 * asked + number}

  found = batching.map_batches(call, {'times': np.float32(2)}, images, labels, batch_size=4)
  np.testing.assert_allclose(found['sum'], 2 * images.sum((1, 2)) + labels, rtol=1e-5)
  np.testing.assert_array_equal(found['number'], labels // size)
  assert sizes == {(size, size)}


@jax.jit
def drawn(constants, number, batch):
  weights, stream = constants
  noise = jax.random.normal(jax.random.fold_in(stream, number), batch.shape)
  return batch @ weights + noise


def test_weights_lie_on_every_device_once_and_batches_are_split():
  weights, images = np.eye(3, dtype=np.float32), np.zeros((40, 3), np.float32)
  constants, seen = mesh.replicate((weights, jax.random.key(0))), []

  def call(constants, number, batch):
    seen.append((constants[0], batch))
    return drawn(constants, number, batch)

  batching.map_batches(call, constants, images, batch_size=8)  # compiled
  with jax.transfer_guard('disallow'):  # of what nobody asked for
    found = batching.map_batches(call, constants, images, batch_size=8)
  assert len(np.unique(found)) == found.size
  for used, batch in seen:
    places = [shard.data.unsafe_buffer_pointer() for shard in used.addressable_shards]
    assert places == [s.data.unsafe_buffer_pointer() for s in constants[0].addressable_shards]
    assert len(batch.addressable_shards) == jax.device_count()
    assert {shard.data.shape for shard in batch.addressable_shards} == {(8 // len(places), 3)}


def test_an_accelerator_gets_the_next_batch_before_the_last_is_fetched(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  made = []
  for found in batching.overlapping(lambda item: made.append(item) or item, range(5)):
    assert made[-1] == min(found + batching.IN_FLIGHT - 1, 4)
