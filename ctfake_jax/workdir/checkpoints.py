"""Orbax checkpoints of a training run: asynchronous, the newest few and the best are kept.

Orbax restores a flipped bit without a word. So each whole save gets a manifest of SHA-256 digests,
and nothing is restored whose files do not match it.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import math
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ctfake_jax.types import UserError
from ctfake_jax.workdir import files as workdir_lib

MANIFEST = 'manifest.json'
# Asked for beyond the arrays: metadata, manifest, the rows of the log.
SPARE_BYTES = 2**20
# Orbax numbers its saves for the whole process, and two at once take each other's numbers.
_saving = threading.Lock()


@dataclasses.dataclass
class Progress:
  """What the loop carries beside the state.

  Attributes:
    best_score: of the evaluations so far, higher is better.
    best_step: where it was reached; -1 before the first evaluation.
    evals_since_best: counts towards the early stop.
    step: the last step of the loop.
    seconds: training time summed over restarts.
    flops: of one step, as `flops.Cost` counts.
    stopped_early: evaluations without progress have ended the run.
    pending: metrics of the steps since the last row of the log.
  """

  best_score: float = float('-inf')
  best_step: int = -1
  evals_since_best: int = 0
  step: int = 0
  seconds: float = 0.0
  flops: float = 0.0
  stopped_early: bool = False
  pending: list[dict[str, float]] = dataclasses.field(default_factory=list)


def _whole_arrays() -> ocp.PyTreeCheckpointHandler:
  """Writes a replicated array from one process.

  Shared out among the replicas, Orbax's default, a slice of every shape is compiled before the
  first save.
  """
  handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
  registry = ocp.type_handlers.create_type_handler_registry((jax.Array, handler))
  return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


class _KeepBest:
  """Preserves the best step, and the one before it until the save that replaces it is whole."""

  def __init__(self):
    self._steps = (-1, -1)

  def note(self, best_step: int) -> None:
    self._steps = (self._steps[1], best_step)

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    return [checkpoint.step in self._steps for checkpoint in checkpoints]


class Checkpoints:
  """Saves and restores (state, Progress) under `workdir/checkpoints`.

  The newest `keep` stay, and the one that `Progress.best_step` names.
  """

  def __init__(self, workdir: Path, keep: int):
    self._best = _KeepBest()
    policy = preservation_policy.AnyPreservationPolicy(
      [preservation_policy.LatestN(keep), self._best]
    )
    self._manager = ocp.CheckpointManager(
      (workdir / 'checkpoints').absolute(),
      options=ocp.CheckpointManagerOptions(preservation_policy=policy),
      item_handlers={'state': _whole_arrays(), 'progress': ocp.JsonCheckpointHandler()},
    )
    self._sealer = concurrent.futures.ThreadPoolExecutor(1)
    self._seal: concurrent.futures.Future | None = None
    self._step = 0  # of the last save begun

  def save(self, step: int, state: Any, progress: Progress) -> None:
    """Starts a save and returns; `close` waits for it.

    Raises:
      UserError: the disk is full, or the save before failed; older checkpoints are whole.
    """
    self._wait()
    self._check_room(state)
    self._step = step
    self._best.note(progress.best_step)
    args = ocp.args.Composite(
      state=ocp.args.PyTreeSave(state),
      progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
    )
    _saving.acquire()
    try:
      with self._named_failure():
        self._manager.save(step, args=args)
      self._seal = self._sealer.submit(self._finish, step)
    except BaseException:
      _saving.release()
      raise

  def _check_room(self, state: Any) -> None:
    """Orbax ends a save on a full disk in a storm of tracebacks; so it is not begun."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SPARE_BYTES
    free = shutil.disk_usage(self._manager.directory).free
    if jax.process_index() == 0 and free < needed:
      step = self.latest_step()
      saved = 'nothing is saved yet' if step is None else f'what is saved (step {step}) is whole'
      raise UserError(
        f'{self._manager.directory}: the disk is full, {free / 1e6:.1f} MB are free and a '
        f'checkpoint takes up to {needed / 1e6:.1f} MB; {saved}: free some space and run the '
        'same command'
      )

  def latest_step(self) -> int | None:
    """Step of the newest checkpoint, whole or not."""
    return self._manager.latest_step()

  def drop_damaged(self) -> int:
    """Removes, naming them, the checkpoints after the newest whole one; its step, 0 if none is."""
    steps = sorted(self._manager.all_steps(), reverse=True)
    usable = 0
    if jax.process_index() == 0:
      damage = {step: find_damage(self._path(step)) for step in steps}
      usable = next((step for step in steps if not damage[step]), 0)
      for step in steps:
        if damage[step]:
          print(f'checkpoint {self._path(step)}: {damage[step]}; not used', file=sys.stderr)
      if steps and not usable:
        print(f'{self._manager.directory}: none is whole; training starts afresh', file=sys.stderr)
    usable = _from_main_process(usable)
    for step in steps:
      if step > usable:
        self._manager.delete(step)
    return usable

  def restore(self, step: int, abstract_state: Any) -> tuple[Any, Progress]:
    """State with the shapes and shardings of `abstract_state`, and the progress beside it.

    Where the best checkpoint is lost, this one takes its place until an evaluation betters any.
    """
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract_state)
    args = ocp.args.Composite(
      state=ocp.args.PyTreeRestore(abstract_state, restore_args=restore_args),
      progress=ocp.args.JsonRestore(),
    )
    with _named_damage(self._path(step)):
      restored = self._manager.restore(step, args=args)
      progress = Progress(**restored['progress'])
    self._replace_lost_best(step, progress)
    self._best.note(progress.best_step)
    return restored['state'], progress

  def close(self) -> None:
    """Waits for pending saves."""
    try:
      self._wait()
    finally:
      self._sealer.shutdown()
      with self._named_failure():
        self._manager.close()

  def _wait(self) -> None:
    with self._named_failure():
      self._manager.wait_until_finished()
      if self._seal:
        self._seal.result()

  @contextlib.contextmanager
  def _named_failure(self) -> Iterator[None]:
    """What Orbax and TensorStore raise where they cannot write, as one message."""
    try:
      yield
    except UserError:
      raise
    except Exception as error:
      reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
      raise UserError(
        f'{self._path(self._step)}: the checkpoint could not be written ({reason}); what was saved '
        'before is whole: see that there is room (space, quota, inodes) and run the same command'
      ) from error

  def _path(self, step: int) -> Path:
    return Path(self._manager.directory) / str(step)

  def _replace_lost_best(self, step: int, progress: Progress) -> None:
    best = progress.best_step
    if best not in (-1, step) and find_damage(self._path(best)):
      if jax.process_index() == 0:
        print(
          f'checkpoint {self._path(best)}: the best one is lost; the best from step {step} on will '
          'be kept',
          file=sys.stderr,
        )
      progress.best_step, progress.best_score, progress.evals_since_best = step, -math.inf, 0

  def _finish(self, step: int) -> None:
    try:
      self._manager.wait_until_finished()
    finally:
      _saving.release()
    if jax.process_index() == 0:
      workdir_lib.write_json(self._path(step) / MANIFEST, _digests(self._path(step)))


def find_damage(path: Path) -> str:
  """What is wrong with the files of a checkpoint against its manifest; empty if nothing."""
  try:
    manifest = workdir_lib.read_json(path / MANIFEST)
  except UserError:
    return 'its manifest is missing or broken, the save was cut off'
  found = _digests(path)
  for name in sorted(manifest.keys() | found.keys()):
    if found.get(name) != manifest.get(name):
      return f'{name} is altered, cut short, missing or new'
  return ''


def _digests(path: Path) -> dict[str, str]:
  files = [file for file in sorted(path.rglob('*')) if file.is_file() and file.name != MANIFEST]
  digests = {}
  for file in files:
    with open(file, 'rb') as handle:
      digests[str(file.relative_to(path))] = hashlib.file_digest(handle, 'sha256').hexdigest()
  return digests


def _from_main_process(step: int) -> int:
  if jax.process_count() == 1:
    return step
  from jax.experimental import multihost_utils

  return int(multihost_utils.broadcast_one_to_all(np.int32(step)))


@contextlib.contextmanager
def _named_damage(path: Any) -> Iterator[None]:
  try:
    yield
  except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
    raise UserError(
      f'checkpoint {path} cannot be read ({type(error).__name__}): '
      'remove its folder to go on from the one before, or start afresh'
    ) from error


def restore_part(workdir: Path, step: int, part: str) -> Any:
  """One field of a saved state as nested dicts of NumPy arrays; needs no model code."""
  path = (workdir / 'checkpoints' / str(step) / 'state').absolute()
  if not path.is_dir():
    raise UserError(f'{workdir}: checkpoint {step} is missing; train again or name another workdir')
  damage = find_damage(path.parent)
  if damage:
    raise UserError(
      f'checkpoint {path.parent}: {damage}; run its training again, it goes on from the one before'
    )
  # The handler itself: a Checkpointer looks for metadata of a step here, and warns.
  with _named_damage(path), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    tree = handler.metadata(path).tree
    target = {part: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree[part])}
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    args = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
    return handler.restore(path, args=args)[part]
