"""SIGTERM outside of a training stops the run, wherever it comes."""

import signal
import time

import pytest
from PIL import Image

from ctfake_jax.data.sources.image_folder import FolderSource
from ctfake_jax.runtime import preemption
from ctfake_jax.types import PreemptedError


@pytest.fixture
def installed(monkeypatch):
  monkeypatch.setattr(preemption, '_request', preemption._Request())
  monkeypatch.setattr(preemption, 'REMINDER_SECONDS', 0.2)
  before = signal.getsignal(signal.SIGTERM)
  preemption.install()
  yield
  preemption.settled()
  signal.signal(signal.SIGTERM, before)


def test_a_decoder_does_not_take_it_for_a_broken_file(installed, tmp_path, monkeypatch):
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    Image.new('L', (40, 40), 3).save(tmp_path / name / '0.png')
  source = FolderSource(tmp_path, max_pixels=2**20)
  monkeypatch.setattr(Image.Image, 'load', lambda self: signal.raise_signal(signal.SIGTERM))
  with pytest.raises(PreemptedError):
    source[0]


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_it_comes_again_where_a_finaliser_swallowed_it(installed):
  class Swallows:
    def __del__(self):
      signal.raise_signal(signal.SIGTERM)

  Swallows()  # nothing is raised here
  assert preemption.requested(0)
  with pytest.raises(PreemptedError):
    time.sleep(1)


def test_a_run_that_ends_is_not_reminded(installed):
  with pytest.raises(PreemptedError):
    signal.raise_signal(signal.SIGTERM)
  preemption.settled()
  time.sleep(0.5)
