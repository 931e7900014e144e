"""Runs of the real program that are stopped from outside: nothing is lost, nothing changes.

CTFAKE_KILLS sets how often each run is killed, once if unset; 20 is the soak test of a release.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import chex
import door
import pytest

from ctfake_jax.workdir.checkpoints import restore_part

KILLS = int(os.environ.get('CTFAKE_KILLS', '1'))
DATA = ('phantom.patients=40', 'phantom.slices_per_patient=2', 'data.image_size=32')
TASKS = {
  'cnn': ('model.cnn.widths=(4,)', 'train.batch_size=8', 'train.epochs=20', 'train.log_every=7'),
  'dcgan': (
    'gan.width=2',
    'gan.batch_size=8',
    'gan.updates=60',
    'gan.eval_every=15',
    'gan.quality_images=40',
    'train.log_every=7',
  ),
}
OPTIMISED = ('cnn',)  # compiled as for users; the others as fast as can be
# One worker runs them all and so makes `straight` once.
pytestmark = pytest.mark.xdist_group('resilience')
PARTS = ('networks', 'opt_states', 'ema')


def start(task: str, workdir: Path) -> subprocess.Popen:
  return door.start(task, workdir, *DATA, *TASKS[task], optimised=task in OPTIMISED)


def finish(task: str, workdir: Path) -> None:
  process = start(task, workdir)
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors


def start_and_wait_for_rows(task: str, workdir: Path) -> subprocess.Popen:
  """The program once it trains: it has written to the log, or cut off what the last one lost."""
  log = workdir / 'metrics.jsonl'
  before = log.read_bytes() if log.exists() else b''
  process = start(task, workdir)
  while process.poll() is None and not (log.exists() and log.read_bytes() not in (b'', before)):
    time.sleep(0.05)
  return process


def outcome(workdir: Path) -> tuple[list[dict], dict, dict]:
  """Metric rows and what is left in the last checkpoint, times apart."""
  text = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [{k: v for k, v in json.loads(row).items() if k != 'seconds'} for row in text]
  last = max(int(path.name) for path in (workdir / 'checkpoints').iterdir())
  state = {part: restore_part(workdir, last, part) for part in PARTS}
  progress = json.loads((workdir / f'checkpoints/{last}/progress/metadata').read_text())
  return rows, state, {k: v for k, v in progress.items() if k != 'seconds'}


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """Outcomes of runs that nobody disturbs, by task."""
  folder = tmp_path_factory.mktemp('straight')
  for task in TASKS:
    finish(task, folder / task)
  return {task: outcome(folder / task) for task in TASKS}


def assert_same(a, b) -> None:
  assert a[0] == b[0]
  chex.assert_trees_all_equal(a[1], b[1])
  assert a[2] == b[2]


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_a_run_terminated_and_killed_at_random_ends_as_a_straight_one(task, straight, tmp_path):
  process = start_and_wait_for_rows(task, tmp_path)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=30)
  assert process.returncode == 75, errors
  assert 'run the same command again' in errors
  moments = random.Random(7)
  for _ in range(KILLS):
    process = start_and_wait_for_rows(task, tmp_path)
    time.sleep(moments.uniform(0, 2))
    process.send_signal(signal.SIGKILL)
    process.communicate()
  finish(task, tmp_path)
  assert_same(outcome(tmp_path), straight[task])


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_a_message(tmp_path):
  process = start_and_wait_for_rows('cnn', tmp_path)
  process.kill()
  process.communicate()
  shutil.rmtree(tmp_path / 'checkpoints')
  (tmp_path / 'checkpoints').touch()  # nothing can be made below it
  process = start('cnn', tmp_path)
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 1, errors
  assert 'could not be written' in errors.splitlines()[-1]
