"""Many images through a network: batches of one shape, the next one begun before one ends.

Weights lie on every device once, batches are split over the devices, and what comes out is fetched
while the next batch is under way. On a CPU a good part of a forward pass keeps one core busy (XLA
spreads no batch of small matrix products over several), so there a second thread fills the others.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.runtime import progress_bar
from ctfake_jax.types import ImagesOnDisk

BATCH_SIZE = 64
IN_FLIGHT = 2


def map_batches(
  function: Callable,
  constants: Any,
  *arrays: Shaped[np.ndarray, 'n ...'] | ImagesOnDisk,
  batch_size: int = BATCH_SIZE,
  title: str = '',
) -> Any:
  """Rows of `function(constants, number, *batch)` for all rows of the arrays, joined on this host.

  All processes of a job call this together.

  Args:
    function: dispatches jitted code; gives a tree of arrays with a row for each row of the batch.
    constants: a tree of what is the same for all batches: weights, random keys.
    *arrays: as many rows each. The last batch is filled up with its own, whose results are dropped.
    batch_size: rows of a batch; more where devices could not share so many evenly.
    title: of a progress bar; '' for none.
  """
  count, size = len(arrays[0]), mesh_lib.shareable(batch_size)
  starts = range(0, count, size)

  def batch(start: int) -> tuple[np.ndarray, ...]:
    return tuple(np.resize(a[start : start + size], (size, *a.shape[1:])) for a in arrays)

  shown = progress_bar.bar(title, starts, hidden=not title, patience=progress_bar.PATIENCE)
  found = stream(function, constants, map(batch, shown))
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *found)


def stream(
  function: Callable,
  constants: Any,
  batches: Iterable[tuple[Shaped[np.ndarray, 'b ...'], ...]],
) -> Iterator[Any]:
  """What `function(constants, number, *batch)` gives for each batch, on this host, in order."""
  mesh, constants = mesh_lib.data_mesh(), mesh_lib.replicate(constants)

  def dispatch(item: tuple[int, tuple[np.ndarray, ...]]) -> Any:
    number, batch = item
    found = function(
      constants, mesh_lib.replicate(np.int32(number)), *mesh_lib.shard_batch(mesh, batch)
    )
    return mesh_lib.start_fetching(found)

  yield from map(mesh_lib.to_host, overlapping(dispatch, enumerate(batches)))


def overlapping(call: Callable[[Any], Any], items: Iterable) -> Iterator[Any]:
  """`call(item)` of each, in order, `IN_FLIGHT` of them at a time.

  On a CPU the first runs alone, so that what it jits is compiled once; and so do all where it
  stands for several devices, whose programs may wait for each other.
  """
  if jax.default_backend() != 'cpu':
    yield from _ahead(call, items)
  elif jax.device_count() > 1:
    yield from map(call, items)
  else:
    yield from _in_threads(call, iter(items))


def _ahead(call: Callable[[Any], Any], items: Iterable) -> Iterator[Any]:
  """A call returns before its device has finished: the next one is made first."""
  pending: collections.deque = collections.deque()
  for item in items:
    pending.append(call(item))
    if len(pending) == IN_FLIGHT:
      yield pending.popleft()
  yield from pending


def _in_threads(call: Callable[[Any], Any], items: Iterator) -> Iterator[Any]:
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
