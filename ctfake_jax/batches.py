"""Many images through a network: batches of one shape, the next one begun before the last ends.

On a CPU a good part of a forward pass keeps one core busy (XLA spreads no batch of small matrix
products over several), and on accelerators the host waits for results; a second batch fills both.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from ctfake_jax import mesh as mesh_lib
from ctfake_jax import progress

IN_FLIGHT = 2


def overlapping(call: Callable[[Any], Any], items: Iterable) -> Iterator[Any]:
  """`call(item)` of each, in order, `IN_FLIGHT` of them at a time; `call` waits for its result.

  The first runs alone, so that what it jits is compiled once; and so do all where there are several
  devices, whose programs may wait for each other.
  """
  items = iter(items)
  if jax.device_count() > 1:
    yield from map(call, items)
    return
  for first in items:
    yield call(first)
    break
  with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT) as pool:
    pending: collections.deque = collections.deque()
    for item in items:
      pending.append(pool.submit(call, item))
      if len(pending) > IN_FLIGHT:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()


def run(call: Callable, *arrays: np.ndarray, batch_size: int, title: str = '') -> Any:
  """Rows of `call(number, *batch)` for all rows of the arrays, joined on the host.

  A batch has `batch_size` rows; the last one is filled up with its own, whose results are dropped.
  `title` is that of a bar.
  """
  count = len(arrays[0])

  def one(start: int):
    rows = slice(start, start + batch_size)
    batch = [np.resize(array[rows], (batch_size, *array.shape[1:])) for array in arrays]
    found = mesh_lib.to_host(call(start // batch_size, *batch))
    return jax.tree.map(lambda part: part[: count - start], found)

  starts = range(0, count, batch_size)
  shown = progress.bar(title, starts, hidden=not title, patience=progress.PATIENCE)
  return jax.tree.map(lambda *parts: np.concatenate(parts), *overlapping(one, shown))
