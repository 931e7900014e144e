"""Batches: every row once and in order, however many are under way."""

import itertools
import threading

import jax
import numpy as np
import pytest

from ctfake_jax.runtime import batching


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
  numbers, sizes = [], set()

  def call(number, batch, asked):
    numbers.append(number)
    sizes.add((len(batch), len(asked)))
    return {'sum': row_sums(batch) + asked, 'number': np.full(len(batch), number)}

  found = batching.run(call, images, labels, batch_size=4)
  np.testing.assert_allclose(found['sum'], images.sum((1, 2)) + labels, rtol=1e-5)
  np.testing.assert_array_equal(found['number'], labels // 4)
  assert sorted(numbers) == list(range(-(-count // 4)))
  assert sizes == {(4, 4)}
