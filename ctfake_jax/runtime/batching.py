"""Many images through a network: batches of one shape, on a CPU the next one begun before one ends.

A good part of a forward pass keeps one core busy there (XLA spreads no batch of small matrix
products over several); a second batch fills the others. An accelerator is filled by one.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from ctfake_jax.runtime import progress_bar

IN_FLIGHT = 2


def overlapping(call: Callable[[Any], Any], items: Iterable) -> Iterator[Any]:
  """`call(item)` of each, in order; on a CPU `IN_FLIGHT` of them at a time.

  The first runs alone, so that what it jits is compiled once; and so do all where there are several
  devices, whose programs may wait for each other.
  """
  items = iter(items)
  if jax.default_backend() != 'cpu' or jax.device_count() > 1:
    yield from map(call, items)
    return

  def finished(item):
    return jax.block_until_ready(call(item))

  for first in items:
    yield call(first)
    break
  with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT) as pool:
    pending: collections.deque = collections.deque()
    for item in items:
      pending.append(pool.submit(finished, item))
      if len(pending) > IN_FLIGHT:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()


def run(call: Callable, *arrays: np.ndarray, batch_size: int, title: str = '') -> Any:
  """Rows of `call(number, *batch)` for all rows of the arrays, joined on this host.

  A batch has `batch_size` rows; the last one is filled up with its own, whose results are dropped.
  `title` is that of a bar.
  """
  count = len(arrays[0])

  def one(start: int):
    rows = slice(start, start + batch_size)
    batch = [np.resize(array[rows], (batch_size, *array.shape[1:])) for array in arrays]
    found = jax.device_get(call(start // batch_size, *batch))
    return jax.tree.map(lambda part: part[: count - start], found)

  starts = range(0, count, batch_size)
  shown = progress_bar.bar(title, starts, hidden=not title, patience=progress_bar.PATIENCE)
  return jax.tree.map(lambda *parts: np.concatenate(parts), *overlapping(one, shown))
