"""What a cluster's SIGTERM means here: save after the current step, and stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax

from ctfake_jax.types import PreemptedError

REMINDER_SECONDS = 2.0


class _Request:
  def __init__(self):
    self.made = False
    self.reminder: threading.Timer | None = None
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


def settled() -> None:
  """The run ends: nothing reminds it any more."""
  if _request.reminder:
    _request.reminder.cancel()


def _on_sigterm(signum, frame) -> None:
  del frame
  _request.made = True
  if not _request.deferring:
    # Python drops what is raised in a finaliser, and collects garbage anywhere: so once more.
    settled()
    _request.reminder = threading.Timer(REMINDER_SECONDS, signal.raise_signal, [signum])
    _request.reminder.daemon = True
    _request.reminder.start()
    raise PreemptedError('stopped by SIGTERM between two stages')
