"""The training loop: step, log, evaluate, checkpoint, resume. It knows no model.

`train_step(state, batch, key) -> (state, metrics)` is pure; the state carries `step` and
`first_bad_step` (int32, -1 while all losses were finite). Step t takes the batch and the key of
t alone, so a resumed run repeats a straight one. Donation and the way of the batch into the
step are settled in `jitted`, compilation in `Steps`.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ctfake_jax.config.keys import TrainConfig
from ctfake_jax.data.loader import Feed
from ctfake_jax.runtime import flops, preemption, streams
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.runtime.progress_bar import bar as progress_bar
from ctfake_jax.types import PreemptedError, UserError
from ctfake_jax.workdir import files as workdir_lib
from ctfake_jax.workdir.checkpoints import Checkpoints, Progress

TrainStep = Callable[[Any, dict, Key[Array, '']], tuple[Any, dict]]


@dataclasses.dataclass(frozen=True)
class Schedule:
  """When things happen, in steps; `early_stop` counts evaluations without progress, 0 is off.

  `at_once` steps go to the device in one dispatch where nothing happens between them.
  """

  total: int
  eval_every: int
  log_every: int
  early_stop: int = 0
  at_once: int = 1

  @classmethod
  def of(cls, train: TrainConfig, total: int, eval_every: int, early_stop: int = 0) -> 'Schedule':
    """With what `config.train` says of every loop's log and dispatches."""
    return cls(total, eval_every, train.log_every, early_stop, steps_at_once(train))

  def dispatch(self, done: int) -> int:
    """Steps of the dispatch after step `done`; known from `done` alone, so runs resume alike."""
    last = done + self.at_once
    quiet = all(s % self.eval_every and s % self.log_every for s in range(done + 1, last))
    return self.at_once if done % self.at_once == 0 and quiet and last <= self.total else 1


def check_batch_size(key: str, batch_size: int, images: int) -> None:
  """Raises UserError where a batch cannot be split over the devices, or is more than all images."""
  mesh_lib.check_batch_size(key, batch_size)
  if images < batch_size:
    raise UserError(
      f'config.{key} = {batch_size}: only {images} training images; lower it or add data'
    )


def steps_at_once(train: TrainConfig) -> int:
  """As `config.train` says; by itself, as many as hide an accelerator's dispatch."""
  default = 1 if jax.default_backend() == 'cpu' else 10
  return train.steps_at_once or default


class DivergedError(UserError):
  """The loss stopped being finite."""


def train(
  *,
  name: str,
  workdir: Path,
  schedule: Schedule,
  keep: int,
  seed: int,
  state: Any,
  train_step: TrainStep,
  feed: Feed,
  evaluate: Callable[[Any, int], tuple[float, dict[str, float]]],
) -> tuple[Any, Progress]:
  """Trains from scratch or from the newest checkpoint; returns the best state and the progress.

  `state` is that of step 0, on the host; `evaluate` maps (state, step) to a score, higher is
  better, and metrics to log; `name` stands beside the progress bar.

  Raises:
    DivergedError: a loss or a score was not finite; the last good checkpoint is kept.
    PreemptedError: SIGTERM; the state after the current step is saved.
  """
  checkpoints = Checkpoints(workdir, keep)
  start = checkpoints.drop_damaged()
  abstract = _abstract(state)
  if start:
    state, progress = checkpoints.restore(start, abstract)
    _refuse_fewer_steps(start, schedule.total, workdir)
  else:
    state, progress = mesh_lib.put_everywhere(state), Progress()
  log = workdir_lib.MetricLog(workdir, start)
  steps, batch_indices, done = Steps(train_step, feed, seed), feed.batch_indices(start), start
  pending: list[dict] = progress.pending
  begun = time.perf_counter() - progress.seconds
  bar = progress_bar(name, start=start, total=schedule.total)

  def save(step):
    progress.step, progress.seconds = step, time.perf_counter() - begun
    progress.pending, progress.flops = _as_floats(pending), steps.cost.flops or progress.flops
    checkpoints.save(step, state, progress)

  try:
    with preemption.deferred():
      while done < schedule.total and not progress.stopped_early:
        count = schedule.dispatch(done)
        state, metrics = steps(state, [next(batch_indices) for _ in range(count)])
        pending.append(metrics)
        done += count
        bar.update(count)
        last = done == schedule.total
        if done % schedule.log_every == 0 or last:
          _write_means(log, bar, done, _as_floats(pending), begun)
          pending = []
        if done % schedule.eval_every == 0 or last:
          _check_finite(state, checkpoints, workdir)
          score, values = evaluate(state, done)
          _check_score(score, done, checkpoints, workdir)
          log.write(done, {f'val/{k}': v for k, v in values.items()})
          _advance(progress, score, done, schedule)
          save(done)
        if preemption.requested(done) and not last:
          if progress.step != done:
            _check_finite(state, checkpoints, workdir)
            save(done)
          raise PreemptedError(f'{workdir.name}: stopped by SIGTERM after step {done}')
  finally:
    bar.close()
    log.close()
    checkpoints.close()
  return _best(workdir, keep, progress, abstract), progress


def _refuse_fewer_steps(done: int, total: int, workdir: Path) -> None:
  if done > total:
    raise UserError(
      f'{workdir}: {done} steps are done, {total} are asked for: ask for as many or more, or '
      'choose another --workdir'
    )


def costs(progress: Progress, batch_size: int) -> dict[str, float]:
  """Keys of results.json: time over all restarts, rate, FLOPs of a training image, memory."""
  return {
    'train_seconds': progress.seconds,
    'images_per_s': progress.step * batch_size / progress.seconds,
    'flops_per_image': progress.flops / batch_size,
    'peak_bytes': flops.peak_memory(),
  }


class Steps:
  """Compiled training steps: one program for one step, one for several, each compiled once."""

  def __init__(self, train_step: TrainStep, feed: Feed, seed: int):
    self._step, self._device_data = jitted(train_step, feed, seed), feed.device_data
    self._compiled: dict[int, Any] = {}
    self._shapes: tuple = ()
    self._cost: flops.Cost | None = None

  def __call__(self, state: Any, batch_indices: list) -> tuple[Any, dict]:
    """The state after a step for each of `batch_indices`; metrics are arrays where several."""
    count = len(batch_indices)
    indices = (
      batch_indices[0]
      if count == 1
      else jax.tree.map(lambda *parts: jnp.stack(parts), *batch_indices)
    )
    if count not in self._compiled:
      function = self._step if count == 1 else _scanned(self._step)
      self._compiled[count] = function.lower(state, self._device_data, indices).compile()
      self._shapes = flops.shapes((state, self._device_data, batch_indices[0]))
    return self._compiled[count](state, self._device_data, indices)

  @property
  def cost(self) -> flops.Cost:
    """Of one step (of the first dispatch where it counts memory); nothing before that."""
    if self._cost is None and self._compiled:
      first = next(iter(self._compiled.values()))
      self._cost = flops.of(self._step, self._shapes, first)
    return self._cost or flops.Cost(0.0, 0)


def _scanned(step: Callable) -> Any:
  """Several steps in one program, over batch_indices stacked along a first axis."""

  def steps(state, device_data, batch_indices):
    return jax.lax.scan(
      lambda state, indices: step(state, device_data, indices), state, batch_indices
    )

  return jax.jit(steps, donate_argnums=0)


def jitted(train_step: TrainStep, feed: Feed, seed: int) -> Any:
  """The jitted (state, device_data, indices) -> (state, metrics); the old state is donated."""
  stream = streams.key(seed, 'step')

  def step(state, device_data, indices):
    key = jax.random.fold_in(stream, state.step)
    return train_step(state, feed.get_batch(device_data, indices), key)

  return jax.jit(step, donate_argnums=0)


def _abstract(state: Any) -> Any:
  """Shapes of a state that lies on every device."""
  everywhere = mesh_lib.replicated(mesh_lib.data_mesh())
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), state
  )


def _as_floats(pending: list[dict]) -> list[dict[str, float]]:
  """One row a step, where a dispatch of several steps has arrays."""
  rows = []
  for metrics in jax.device_get(pending):
    columns = {k: np.atleast_1d(v).tolist() for k, v in metrics.items()}
    rows += [dict(zip(columns, row)) for row in zip(*columns.values())]
  return rows


def _write_means(log, bar, step, rows, begun) -> None:
  means = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
  log.write(step, {**means, 'seconds': time.perf_counter() - begun})
  bar.set_postfix({k: f'{v:.3g}' for k, v in list(means.items())[:4]}, refresh=False)


def _check_finite(state, checkpoints, workdir) -> None:
  bad = int(mesh_lib.to_host(state.first_bad_step))
  if bad >= 0:
    raise _diverged(workdir, f'the loss was not finite at step {bad}', checkpoints)


def _check_score(score: float, step: int, checkpoints, workdir) -> None:
  """A score that is not finite compares with none: no checkpoint would ever be the best."""
  if not math.isfinite(score):
    raise _diverged(workdir, f'the validation score after step {step} is {score}', checkpoints)


def _diverged(workdir: Path, what: str, checkpoints) -> DivergedError:
  kept = checkpoints.latest_step()
  return DivergedError(
    f'{workdir.name}: {what}; the last good checkpoint is {kept if kept is not None else "none"}. '
    'Lower the learning rate or check the data.'
  )


def _advance(progress: Progress, score: float, step: int, schedule) -> None:
  if score > progress.best_score:
    progress.best_score, progress.best_step, progress.evals_since_best = score, step, 0
  else:
    progress.evals_since_best += 1
  patience = schedule.early_stop
  progress.stopped_early = bool(patience) and progress.evals_since_best >= patience


def _best(workdir, keep, progress, abstract):
  checkpoints = Checkpoints(workdir, keep)
  try:
    return checkpoints.restore(progress.best_step, abstract)[0]
  finally:
    checkpoints.close()
