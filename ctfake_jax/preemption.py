"""What a cluster's SIGTERM means here: save after the current step, and stop."""

import contextlib
import signal
from collections.abc import Iterator

import jax

from ctfake_jax.types import PreemptedError


class _Request:
  def __init__(self):
    self.made = False
    self.deferred = False


_request = _Request()


def install() -> None:
  """Turns SIGTERM into a request to stop; a no-op where `jax.distributed` has taken it over."""
  if jax.process_count() == 1:
    signal.signal(signal.SIGTERM, _on_sigterm)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Inside, a request waits until `requested` is asked; outside, it stops the run at once."""
  _request.deferred = True
  try:
    yield
  finally:
    _request.deferred = False


def requested(step: int) -> bool:
  """Whether to save and stop after `step`; all hosts answer alike at the same step."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
  return _request.made


def _on_sigterm(signum, frame) -> None:
  del signum, frame
  _request.made = True
  if not _request.deferred:
    raise PreemptedError('stopped by SIGTERM between two stages')
