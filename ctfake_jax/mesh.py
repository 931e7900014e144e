"""Devices: the cluster's start-up, the mesh over all of them, and where arrays lie on it."""

from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ctfake_jax.types import UserError


def start(config: ml_collections.ConfigDict) -> None:
  """Joins the cluster where `config.mesh.distributed`; must run before any other use of JAX."""
  if config.mesh.distributed:
    jax.distributed.initialize(
      coordinator_address=config.mesh.coordinator,
      num_processes=config.mesh.num_processes,
      process_id=config.mesh.process_id,
    )


def data_mesh() -> Mesh:
  """All devices of all hosts on one axis, `data`."""
  return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def check_batch_size(key: str, batch_size: int) -> None:
  """Raises UserError unless every device gets the same whole number of images."""
  if batch_size % jax.device_count():
    raise UserError(
      f'config.{key} = {batch_size}: must be a multiple of the {jax.device_count()} devices'
    )


def shard_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Puts a global host batch on the mesh, split along its first axis."""
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  return {
    key: jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
    for key, value in batch.items()
  }


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding under which every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def to_host(tree: Any) -> Any:
  """NumPy copies; arrays sharded over several hosts are gathered first."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
  return jax.device_get(tree)


def is_main_process() -> bool:
  """Whether this process writes logs and files."""
  return jax.process_index() == 0
