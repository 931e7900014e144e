"""Several processes as one: who joins, and that two train what one trains."""

import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import door
import numpy as np
import pytest

from ctfake_jax.runtime import mesh

KEYS = (
  'phantom.patients=40',
  'phantom.slices_per_patient=2',
  'model.cnn.widths=(4,)',
  'train.batch_size=8',
  'train.epochs=3',
  'train.schedule=constant',
  'train.log_every=2',
)


@pytest.mark.parametrize(
  ('environment', 'expected'),
  [
    ({}, False),
    ({'SLURM_NTASKS': '2'}, False),
    ({'SLURM_STEP_NUM_TASKS': '1'}, False),
    ({'SLURM_STEP_NUM_TASKS': '2'}, True),
    ({'OMPI_COMM_WORLD_SIZE': '4'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'worker-0,worker-1'}, True),
  ],
)
def test_auto_joins_only_where_a_cluster_started_several(environment, expected):
  assert mesh.in_a_cluster(environment) is expected


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def start(workdir: Path, *keys: str, devices: int = 1) -> subprocess.Popen:
  return door.start('cnn', workdir, *KEYS, *keys, devices=devices)


def start_two(workdir: Path, *keys: str) -> list[subprocess.Popen]:
  address = f'mesh.coordinator=localhost:{free_port()}'
  return [
    start(workdir, address, 'mesh.num_processes=2', f'mesh.process_id={i}', *keys) for i in range(2)
  ]


def finish(*processes: subprocess.Popen) -> None:
  errors = [process.communicate(timeout=240)[1] for process in processes]
  assert not any(process.returncode for process in processes), '\n---\n'.join(errors)


def rows(workdir: Path) -> list[dict]:
  return [json.loads(row) for row in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
  finish(start(tmp_path / 'one', devices=2))
  finish(*start_two(tmp_path / 'two'))
  one, two = rows(tmp_path / 'one'), rows(tmp_path / 'two')
  assert [row['step'] for row in one] == [row['step'] for row in two]
  for a, b in zip(one, two):
    for key in a.keys() - {'seconds'}:
      np.testing.assert_allclose(b[key], a[key], rtol=2e-3, atol=2e-3, err_msg=f'{key} {a}')


def two_in_training(workdir: Path) -> list[subprocess.Popen]:
  """Two processes of one job, past their first epoch."""
  processes = start_two(workdir, 'train.epochs=500')
  log = workdir / 'metrics.jsonl'
  while not (log.exists() and 'val/loss' in log.read_text()):
    assert all(process.poll() is None for process in processes), processes[0].communicate()[1]
    time.sleep(0.1)
  return processes


@pytest.mark.slow
def test_a_worker_that_dies_takes_the_job_down(tmp_path):
  survivor, victim = two_in_training(tmp_path)
  victim.kill()
  survivor.communicate(timeout=60)
  assert survivor.returncode not in (0, 75)
  victim.communicate()


@pytest.mark.slow
def test_a_worker_that_fails_takes_the_job_down_with_its_own_words(tmp_path):
  address = f'mesh.coordinator=localhost:{free_port()}'
  both = [
    start(tmp_path, address, 'mesh.num_processes=2', f'mesh.process_id={i}', other)
    for i, other in enumerate(('train.epochs=500', 'model.pretrained=nowhere.npz'))
  ]
  errors = [process.communicate(timeout=90)[1] for process in both]
  assert both[1].returncode == 1
  assert 'config.model.pretrained' in errors[1]
  assert both[0].returncode not in (0, 75)


@pytest.mark.slow
def test_a_preempted_job_saves_the_same_step_everywhere_and_goes_on(tmp_path):
  processes = two_in_training(tmp_path)
  for process in processes:
    process.send_signal(signal.SIGTERM)
  errors = [process.communicate(timeout=60)[1] for process in processes]
  assert [process.returncode for process in processes] == [75, 75], errors
  stops = {re.search(r'after step (\d+)', text).group(1) for text in errors}
  assert len(stops) == 1
  step = int(stops.pop())
  assert (tmp_path / 'checkpoints' / str(step) / 'manifest.json').exists()
  epochs = -(-step // (rows_per_epoch(tmp_path))) + 1
  finish(*start_two(tmp_path, f'train.epochs={epochs}'))
  assert rows(tmp_path)[-1]['step'] > step


def rows_per_epoch(workdir: Path) -> int:
  return min(row['step'] for row in rows(workdir) if 'val/loss' in row)
