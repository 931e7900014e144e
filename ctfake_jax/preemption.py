"""What a cluster's SIGTERM means here: save after the current step, and stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax

from ctfake_jax.types import PreemptedError


class _Request:
  def __init__(self):
    self.made = False
    self.deferring = 0  # trainings that ask for themselves
    self.lock = threading.Lock()


_request = _Request()


def install() -> None:
  """Turns SIGTERM into a request to stop; a no-op where `jax.distributed` has taken it over."""
  if jax.process_count() == 1:
    signal.signal(signal.SIGTERM, _on_sigterm)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Inside, a request waits until `requested` is asked; outside, it stops the run at once.

  Several threads may be inside.
  """
  with _request.lock:
    _request.deferring += 1
  try:
    yield
  finally:
    with _request.lock:
      _request.deferring -= 1


@contextlib.contextmanager
def stopping() -> Iterator[None]:
  """Inside, trainings of other threads are asked to stop."""
  before, _request.made = _request.made, True
  try:
    yield
  finally:
    _request.made = before


def requested(step: int) -> bool:
  """Whether to save and stop after `step`; all hosts answer alike at the same step."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
  return _request.made


def _on_sigterm(signum, frame) -> None:
  del signum, frame
  _request.made = True
  if not _request.deferring:
    raise PreemptedError('stopped by SIGTERM between two stages')
