"""Jobs in threads: results by name, one error stops all, trainings end as they do alone."""

import os
import signal
import threading
import time

import chex
import numpy as np
import pytest

from ctfake_jax.config import resolve
from ctfake_jax.data.splits import split
from ctfake_jax.inference import classifier as inference
from ctfake_jax.runtime import concurrent_jobs, preemption
from ctfake_jax.train import classifier
from ctfake_jax.types import PreemptedError, UserError


def test_results_come_by_name_in_the_order_asked_for():
  jobs = {name: (lambda name=name: name.upper()) for name in 'cab'}
  assert list(concurrent_jobs.run_jobs(jobs).items()) == [('c', 'C'), ('a', 'A'), ('b', 'B')]


def training(stopped: threading.Event):
  with preemption.deferred():
    for step in range(10_000):
      if preemption.requested(step):
        stopped.set()
        raise PreemptedError('stopped')
      time.sleep(0.001)


def test_an_error_stops_the_others_and_is_the_one_raised():
  stopped, begun = threading.Event(), []

  def broken():
    time.sleep(0.05)
    raise UserError('diverged')

  def waiting(number):
    begun.append(number)
    time.sleep(0.5)

  jobs = {'slow': lambda: training(stopped), 'bad': broken, 'next': lambda: waiting(1)}
  with pytest.raises(UserError, match='diverged'):
    concurrent_jobs.run_jobs({**jobs, 'last': lambda: waiting(2)})
  assert stopped.is_set()
  assert 2 not in begun
  assert not preemption.requested(0)


def test_sigterm_reaches_trainings_in_threads(monkeypatch):
  monkeypatch.setattr(preemption, '_request', preemption._Request())
  before, stopped = signal.getsignal(signal.SIGTERM), threading.Event()
  preemption.install()
  try:
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(PreemptedError):
      concurrent_jobs.run_jobs({'slow': lambda: training(stopped)})
  finally:
    signal.signal(signal.SIGTERM, before)
  assert stopped.is_set()


@pytest.mark.slow
def test_two_trainings_side_by_side_end_as_they_do_alone(tiny_config, images, tmp_path):
  parts = split(images, resolve(tiny_config).split, 0)

  def fit(folder):
    return classifier.train_classifier(resolve(tiny_config), images, parts, tmp_path / folder)

  alone = fit('alone')
  pair = concurrent_jobs.run_jobs({name: (lambda name=name: fit(name)) for name in ('a', 'b')})
  for name, results in pair.items():
    assert results['confusion'] == alone['confusion']
    chex.assert_trees_all_equal(
      *(inference.load(tmp_path / folder).variables for folder in ('alone', name))
    )
    np.testing.assert_equal(results['ci95'], alone['ci95'])
