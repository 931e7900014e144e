"""Orbax checkpoints of a training run: asynchronous, the newest few and the best are kept."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ctfake_jax.types import UserError


@dataclasses.dataclass
class Progress:
  """What the loop carries beside the state.

  Attributes:
    best_score: of the evaluations so far, higher is better.
    best_step: where it was reached; -1 before the first evaluation.
    evals_since_best: counts towards the early stop.
    step: the last step of the loop.
    seconds: training time summed over restarts.
    stopped_early: evaluations without progress have ended the run.
  """

  best_score: float = float('-inf')
  best_step: int = -1
  evals_since_best: int = 0
  step: int = 0
  seconds: float = 0.0
  stopped_early: bool = False


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
    )

  def save(self, step: int, state: Any, progress: Progress) -> None:
    """Starts a save and returns; `close` waits for it."""
    self._best.note(progress.best_step)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
      ),
    )

  def latest_step(self) -> int | None:
    """Step of the newest whole checkpoint."""
    return self._manager.latest_step()

  def restore(self, step: int, abstract_state: Any) -> tuple[Any, Progress]:
    """State with the shapes and shardings of `abstract_state`, and the progress beside it."""
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract_state), progress=ocp.args.JsonRestore()
    )
    with _named_damage(self._manager.directory / str(step)):
      restored = self._manager.restore(step, args=args)
      progress = Progress(**restored['progress'])
    self._best.note(progress.best_step)
    return restored['state'], progress

  def close(self) -> None:
    """Waits for pending saves."""
    self._manager.wait_until_finished()
    self._manager.close()


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
  with _named_damage(path), ocp.PyTreeCheckpointer() as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree
    target = {part: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree[part])}
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    args = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
    return checkpointer.restore(path, args=args)[part]
