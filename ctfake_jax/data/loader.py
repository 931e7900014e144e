"""How training images reach the step: from device memory, or from the host ahead of time.

Images travel and rest as 16-bit codes of [-1, 1], a quarter of a shade of the finest display.
Which images a step takes is a pure function of seed and step: a resumed run repeats a straight one
without saving an iterator, and every process reads its own part of a batch only.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int32, Shaped, UInt16

from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.runtime import streams
from ctfake_jax.types import Images

CODES = 65535
# Share of a device's memory that the data may take; the rest is for activations.
MEMORY_SHARE = 0.25
READ_THREADS = 4
BATCHES_AHEAD = 8


@runtime_checkable
class Feed(Protocol):
  """Where batches {image f32[b, h, w, 1], label} come from; the step traces `get_batch`."""

  @property
  def device_data(self) -> Any:
    """Arrays that stay on the devices for the whole run."""

  def batch_indices(self, start: int) -> Iterator[Any]:
    """What each step from `start` on hands to `get_batch`, already on the devices."""

  def get_batch(self, device_data: Any, indices: Any) -> dict[str, jax.Array]:
    """The batch of a step."""


def encode(images: Float[np.ndarray, '*shape']) -> UInt16[np.ndarray, '*shape']:
  """Codes of finite images in [-1, 1]."""
  return np.rint((np.asarray(images) + 1.0) * (CODES / 2)).astype(np.uint16)


def decode(codes: UInt16[Array, '*shape']) -> Float32[Array, '*shape']:
  """Images in [-1, 1]; off by at most 1 / CODES."""
  return codes.astype(jnp.float32) * (2 / CODES) - 1.0


def rows_at(step: int, count: int, batch_size: int, seed: int) -> Int32[np.ndarray, ' b']:
  """Rows of a step: epoch permutations laid end to end, the remainder carried over."""
  positions = np.arange(step * batch_size, (step + 1) * batch_size)
  rows = np.empty(batch_size, np.int32)
  for epoch in range(positions[0] // count, positions[-1] // count + 1):
    inside = positions // count == epoch
    rows[inside] = _order(seed, epoch, count)[positions[inside] % count]
  return rows


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
  return streams.generator(seed, 'order', epoch).permutation(count).astype(np.int32)


def open_feed(mesh: Mesh, images: Images, batch_size: int, seed: int) -> Feed:
  """Device memory where images of the host's memory fit, else from where they are."""
  size = 2 * int(np.prod(images.images.shape))
  resident = isinstance(images.images, np.ndarray) and size <= _room(mesh)
  kind = DeviceFeed if resident else HostFeed
  return kind(mesh, images, batch_size, seed)


def _room(mesh: Mesh) -> float:
  """Bytes on one device for data; a CPU device shares the host's memory, where the images are."""
  stats = mesh.local_devices[0].memory_stats() or {}
  return MEMORY_SHARE * stats.get('bytes_limit', np.inf)


class DeviceFeed:
  """All images on every device; `indices` are the rows of a batch, gathered inside the step."""

  def __init__(self, mesh: Mesh, images: Images, batch_size: int, seed: int):
    everywhere = mesh_lib.replicated(mesh)
    self.device_data = jax.device_put(
      {'image': encode(images.images), 'label': images.labels}, everywhere
    )
    self._rows = functools.partial(rows_at, count=len(images), batch_size=batch_size, seed=seed)
    self._sharding = NamedSharding(mesh, PartitionSpec('data'))

  def batch_indices(self, start: int) -> Iterator[Int32[Array, ' b']]:
    """Rows of each step, split over the devices."""
    step = start
    while True:
      yield _place(self._sharding, self._rows(step))
      step += 1

  def get_batch(
    self, device_data: dict[str, Shaped[Array, 'n ...']], indices: Int32[Array, ' b']
  ) -> dict[str, Shaped[Array, 'b ...']]:
    """Each device gathers its own rows."""
    return {'image': decode(device_data['image'][indices]), 'label': device_data['label'][indices]}


class HostFeed:
  """Images in host memory or on disk; threads read and place the batches of the next steps."""

  def __init__(self, mesh: Mesh, images: Images, batch_size: int, seed: int):
    self.device_data: dict = {}
    self._images, self._batch_size, self._seed = images, batch_size, seed
    self._sharding = NamedSharding(mesh, PartitionSpec('data'))

  def batch_indices(self, start: int) -> Iterator[dict[str, Shaped[Array, 'b ...']]]:
    """Codes and labels of each step, split over the devices."""
    steps = grain.MapDataset.range(start, np.iinfo(np.int32).max).map(self._batch)
    yield from steps.to_iter_dataset(grain.ReadOptions(READ_THREADS, BATCHES_AHEAD))

  def get_batch(
    self, device_data: dict, indices: dict[str, Shaped[Array, 'b ...']]
  ) -> dict[str, Shaped[Array, 'b ...']]:
    """`indices` are the batch themselves."""
    del device_data
    return {'image': decode(indices['image']), 'label': indices['label']}

  def _batch(self, step: int) -> dict[str, jax.Array]:
    rows = rows_at(step, len(self._images), self._batch_size, self._seed)

    def read(shape: tuple, values: Callable[[np.ndarray], np.ndarray]) -> jax.Array:
      """Only the rows of this process's devices are read."""

      def part(index: tuple[slice, ...] | None) -> np.ndarray:
        return values(rows[index[0]] if index else rows)

      return jax.make_array_from_callback(shape, self._sharding, part)

    images = self._images
    shape = (self._batch_size, *images.images.shape[1:])
    return {
      'image': read(shape, lambda r: encode(images.images[r])),
      'label': read(shape[:1], lambda r: images.labels[r]),
    }


def _place(sharding: NamedSharding, values: np.ndarray) -> jax.Array:
  return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)
