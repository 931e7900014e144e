"""The training loop: step, log, evaluate, checkpoint, resume. It knows no model.

`train_step(state, batch, key) -> (state, metrics)` is pure; the state carries `step` and
`first_bad_step` (int32, -1 while all losses were finite). Step t takes the batch and the key of
t alone, so a resumed run repeats a straight one. Compilation, donation and the way of the batch
into the step are settled in `jitted`; it is compiled once, for all steps.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ctfake_jax import cost, preemption
from ctfake_jax import mesh as mesh_lib
from ctfake_jax import workdir as workdir_lib
from ctfake_jax.checkpoints import Checkpoints, Progress
from ctfake_jax.data.feed import Feed
from ctfake_jax.types import PreemptedError, UserError

TrainStep = Callable[[Any, dict, jax.Array], tuple[Any, dict]]


@dataclasses.dataclass(frozen=True)
class Schedule:
  """When things happen, in steps; `early_stop` counts evaluations without progress, 0 is off."""

  total: int
  eval_every: int
  log_every: int
  early_stop: int = 0


class DivergedError(UserError):
  """The loss stopped being finite."""


def run(
  *,
  name: str,
  workdir: Path,
  schedule: Schedule,
  keep: int,
  seed: int,
  abstract_state: Any,
  init: Callable[[], Any],
  train_step: TrainStep,
  feed: Feed,
  evaluate: Callable[[Any, int], tuple[float, dict[str, float]]],
) -> tuple[Any, Progress]:
  """Trains from scratch or from the newest checkpoint; returns the best state and the progress.

  `init` makes the state at step 0 with the shapes and shardings of `abstract_state`; `evaluate`
  maps (state, step) to a score, higher is better, and metrics to log; `name` stands beside the
  progress bar.

  Raises:
    DivergedError: a loss was not finite; the last good checkpoint is kept.
    PreemptedError: SIGTERM; the state after the current step is saved.
  """
  checkpoints = Checkpoints(workdir, keep)
  start = checkpoints.drop_damaged()
  state, progress = checkpoints.restore(start, abstract_state) if start else (init(), Progress())
  log = workdir_lib.MetricLog(workdir, start)
  tickets = feed.tickets(start)
  pending: list[dict] = progress.pending
  begun = time.perf_counter() - progress.seconds
  bar = progress_bar(name, start, schedule.total)

  def save(step):
    progress.step, progress.seconds = step, time.perf_counter() - begun
    progress.pending = _as_floats(pending)
    checkpoints.save(step, state, progress)

  try:
    with preemption.deferred():
      if start < schedule.total and not progress.stopped_early:
        first, tickets = _peek(tickets)
        step = jitted(train_step, feed, seed).lower(state, feed.resident, first).compile()
        progress.flops = cost.of(step).flops
      for done in range(start + 1, schedule.total + 1):
        if progress.stopped_early:
          break
        state, metrics = step(state, feed.resident, next(tickets))
        pending.append(metrics)
        bar.update()
        last = done == schedule.total
        if done % schedule.log_every == 0 or last:
          _write_means(log, bar, done, _as_floats(pending), begun)
          pending = []
        if done % schedule.eval_every == 0 or last:
          _check_finite(state, checkpoints, workdir)
          score, values = evaluate(state, done)
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
  return _best(workdir, keep, progress, abstract_state), progress


def costs(progress: Progress, batch_size: int) -> dict[str, float]:
  """Keys of results.json: time over all restarts, rate, FLOPs of a training image, memory."""
  return {
    'train_seconds': progress.seconds,
    'images_per_s': progress.step * batch_size / progress.seconds,
    'flops_per_image': progress.flops / batch_size,
    'peak_bytes': cost.peak_memory(),
  }


def jitted(train_step: TrainStep, feed: Feed, seed: int) -> Any:
  """The jitted (state, resident, ticket) -> (state, metrics); the old state's memory is reused."""

  def step(state, resident, ticket):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    return train_step(state, feed.take(resident, ticket), key)

  return jax.jit(step, donate_argnums=0)


def _peek(items: Iterator) -> tuple[Any, Iterator]:
  first = next(items)
  return first, itertools.chain([first], items)


def progress_bar(name: str, start: int, total: int) -> tqdm:
  """A bar on a terminal, a line every half minute in a file."""
  on_terminal = sys.stderr.isatty()
  return tqdm(
    desc=name,
    initial=start,
    total=total,
    mininterval=0.5 if on_terminal else 30,
    dynamic_ncols=on_terminal,
    ncols=None if on_terminal else 160,
    file=sys.stderr if on_terminal else _Lines(),
  )


class _Lines:
  """Standard error for a bar that cannot overwrite itself: every state is a line of its own."""

  def write(self, text: str) -> None:
    if text.strip():
      sys.stderr.write(text.strip() + '\n')

  def flush(self) -> None:
    sys.stderr.flush()


def _as_floats(pending: list[dict]) -> list[dict[str, float]]:
  return [{k: float(v) for k, v in row.items()} for row in jax.device_get(pending)]


def _write_means(log, bar, step, rows, begun) -> None:
  means = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
  log.write(step, {**means, 'seconds': time.perf_counter() - begun})
  bar.set_postfix({k: f'{v:.3g}' for k, v in list(means.items())[:4]}, refresh=False)


def _check_finite(state, checkpoints, workdir) -> None:
  bad = int(mesh_lib.to_host(state.first_bad_step))
  if bad >= 0:
    kept = checkpoints.latest_step()
    raise DivergedError(
      f'{workdir.name}: the loss was not finite at step {bad}; the last good checkpoint is '
      f'{kept if kept is not None else "none"}. Lower the learning rate or check the data.'
    )


def _advance(progress: Progress, score: float, step: int, schedule) -> None:
  if score > progress.best_score:
    progress.best_score, progress.best_step, progress.evals_since_best = score, step, 0
  else:
    progress.evals_since_best += 1
  patience = schedule.early_stop
  progress.stopped_early = bool(patience) and progress.evals_since_best >= patience


def _best(workdir, keep, progress, abstract_state):
  checkpoints = Checkpoints(workdir, keep)
  try:
    return checkpoints.restore(progress.best_step, abstract_state)[0]
  finally:
    checkpoints.close()
