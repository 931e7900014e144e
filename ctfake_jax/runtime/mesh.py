"""Devices: the cluster's start-up, the mesh over all of them, and where arrays lie on it."""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from ctfake_jax.config.keys import Config
from ctfake_jax.types import UserError

TASKS_OF_MANY_PROCESSES = ('classifier', 'gan', 'vae', 'diffusion', 'autoencoder')
# Without a sign of life for so long a process is given up, and the job with it.
HEARTBEAT_SECONDS = 40
# Set by srun and by mpirun; a Slurm batch script outside srun is one process.
_PROCESS_COUNTS = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')


def start(config: Config) -> None:
  """Joins the other processes where `config.distributed` asks; before any other use of JAX."""
  addressed = config.mesh.coordinator is not None
  found = addressed or in_a_cluster(os.environ)
  if config.distributed == 'on' or (config.distributed == 'auto' and found):
    if addressed:
      print(f'waiting for the others at {config.mesh.coordinator}, 5 minutes at most', flush=True)
    try:
      jax.distributed.initialize(
        coordinator_address=config.mesh.coordinator,
        num_processes=config.mesh.num_processes,
        process_id=config.mesh.process_id,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      )
    except ValueError as error:
      raise UserError(
        f'config.distributed = {config.distributed}: no cluster was found ({error}); set '
        'mesh.coordinator=HOST:PORT, mesh.num_processes and mesh.process_id'
      ) from None
    if jax.process_count() > 1 and config.task not in TASKS_OF_MANY_PROCESSES:
      raise UserError(
        f'config.task = {config.task}: runs on one process; '
        f'{", ".join(TASKS_OF_MANY_PROCESSES)} run on several'
      )


def together() -> bool:
  """Whether this process is one of several."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def leave(code: int) -> NoReturn:
  """Ends this process at once; others of the job notice within a minute.

  An ordinary end waits minutes for them to end too, while they wait for this one's part of a batch.
  """
  for child in multiprocessing.active_children():
    child.terminate()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def in_a_cluster(environment: Mapping[str, str]) -> bool:
  """Whether Slurm's srun, Open MPI or GKE started this process as one of several."""
  counts = [environment.get(name, '1') for name in _PROCESS_COUNTS]
  hosts = environment.get('TPU_WORKER_HOSTNAMES', '').split(',')
  return any(count.isdigit() and int(count) > 1 for count in counts) or len(hosts) > 1


def data_mesh() -> Mesh:
  """All devices of all hosts on one axis, `data`."""
  return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def check_batch_size(key: str, batch_size: int) -> None:
  """Raises UserError unless every device gets the same whole number of images."""
  if batch_size % jax.device_count():
    raise UserError(
      f'config.{key} = {batch_size}: must be a multiple of the {jax.device_count()} devices'
    )


def shareable(batch_size: int) -> int:
  """The least number of rows from `batch_size` on that all devices can share evenly."""
  return -(-batch_size // jax.device_count()) * jax.device_count()


def shard_batch(mesh: Mesh, batch: Any) -> Any:
  """Puts a global host batch, a tree of arrays, on the mesh, split along their first axis."""
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  with jax.transfer_guard('allow'):  # meant, whatever else is forbidden
    return jax.tree.map(
      lambda value: jax.make_array_from_callback(value.shape, sharding, value.__getitem__), batch
    )


def alternating(a: Shaped[Array, 'b ...'], b: Shaped[Array, 'b ...']) -> Shaped[Array, '2*b ...']:
  """a[0], b[0], a[1], b[1] …: what is sharded along the first axis stays where it is."""
  return jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding under which every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any) -> Any:
  """A tree of arrays and random keys on every device; what lies there stays where it is."""
  everywhere = replicated(data_mesh())

  def put(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(jax.device_put(jax.random.key_data(leaf), everywhere))
    return jax.device_put(leaf, everywhere)

  return jax.tree.map(put, tree)


def put_everywhere(tree: Any) -> Any:
  """A tree that every process has on its host, copied to every device."""
  everywhere = replicated(data_mesh())

  def put(leaf):
    # A copy each: leaves may be one array, and a donated array's memory is written to.
    return jax.make_array_from_callback(leaf.shape, everywhere, lambda i: np.array(leaf[i]))

  return jax.tree.map(put, jax.device_get(tree))


def start_fetching(tree: Any) -> Any:
  """The same tree, its way to this host begun: `to_host` then waits for less."""
  if jax.process_count() == 1:
    with jax.transfer_guard('allow'):  # as above
      for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
          leaf.copy_to_host_async()
  return tree


def to_host(tree: Any) -> Any:
  """NumPy copies; arrays sharded over several hosts are gathered first."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
  return jax.device_get(tree)


def from_all_processes(
  shares: dict[str, Shaped[np.ndarray, 'k ...']],
) -> dict[str, Shaped[np.ndarray, 'n ...']]:
  """Rows that the processes took in turn, 0 from the first, 1 from the second, put in order.

  All processes call this with as many rows each.
  """
  if jax.process_count() == 1:
    return shares
  from jax.experimental import multihost_utils

  gathered = multihost_utils.process_allgather(shares)
  return {
    key: np.swapaxes(rows, 0, 1).reshape(-1, *rows.shape[2:]) for key, rows in gathered.items()
  }


def is_main_process() -> bool:
  """Whether this process writes logs and files."""
  return jax.process_index() == 0
