"""Which checkpoints stay, whatever the scores and restarts."""

import logging
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from ctfake_jax.types import UserError
from ctfake_jax.workdir.checkpoints import Checkpoints, Progress, restore_part

STATE = {'x': jnp.ones(3)}


def kept(workdir):
  return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())


def save(checkpoints, steps, best_step):
  for step in steps:
    checkpoints.save(step, STATE, Progress(step=step, best_step=best_step))


def test_the_named_best_outlives_ties_and_a_restart(tmp_path):
  first = Checkpoints(tmp_path, keep=2)
  save(first, range(1, 2), best_step=1)
  save(first, range(2, 6), best_step=2)
  first.close()
  assert kept(tmp_path) == [2, 4, 5]
  second = Checkpoints(tmp_path, keep=2)
  assert second.restore(5, STATE)[1].best_step == 2
  save(second, range(6, 9), best_step=2)
  second.close()
  assert kept(tmp_path) == [2, 7, 8]


def test_a_best_goes_only_after_its_successor_is_whole(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=1)
  save(checkpoints, [1, 2, 3], best_step=1)
  save(checkpoints, [4], best_step=4)
  checkpoints._manager.wait_until_finished()
  assert kept(tmp_path) == [1, 4]
  save(checkpoints, [5], best_step=4)
  checkpoints.close()
  assert kept(tmp_path) == [4, 5]


def test_a_save_that_was_cut_off_is_passed_over(tmp_path, capsys):
  checkpoints = Checkpoints(tmp_path, keep=3)
  save(checkpoints, [1, 2], best_step=1)
  checkpoints.close()
  (tmp_path / 'checkpoints/2/manifest.json').unlink()
  again = Checkpoints(tmp_path, keep=3)
  assert again.drop_damaged() == 1
  again.close()
  assert kept(tmp_path) == [1]
  assert 'was cut off' in capsys.readouterr().err


def test_a_run_goes_on_without_the_best_where_that_is_lost(tmp_path, capsys):
  checkpoints = Checkpoints(tmp_path, keep=4)
  save(checkpoints, [1], best_step=1)
  save(checkpoints, [2, 3], best_step=2)
  checkpoints.close()
  (tmp_path / 'checkpoints/2/extra').write_text('new')
  again = Checkpoints(tmp_path, keep=4)
  assert again.drop_damaged() == 3
  progress = again.restore(3, STATE)[1]
  assert (progress.best_step, progress.best_score) == (3, -np.inf)
  assert 'best from step 3 on' in capsys.readouterr().err
  again.close()


def test_a_run_without_a_whole_checkpoint_says_so(tmp_path, capsys):
  checkpoints = Checkpoints(tmp_path, keep=2)
  save(checkpoints, [1, 2], best_step=1)
  checkpoints.close()
  (tmp_path / 'checkpoints/1/manifest.json').write_bytes(b'{"\xff": 1}')
  (tmp_path / 'checkpoints/2/manifest.json').unlink()
  again = Checkpoints(tmp_path, keep=2)
  assert again.drop_damaged() == 0
  again.close()
  assert 'starts afresh' in capsys.readouterr().err
  assert kept(tmp_path) == []


def test_one_field_is_read_as_numpy_arrays_and_without_a_warning(tmp_path, caplog):
  checkpoints = Checkpoints(tmp_path, keep=1)
  save(checkpoints, [1], best_step=1)
  checkpoints.close()
  caplog.clear()
  field = restore_part(tmp_path, 1, 'x')
  np.testing.assert_array_equal(field, np.ones(3))
  assert isinstance(field, np.ndarray)
  assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_save_that_cannot_be_written_is_named(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path, keep=3)
  save(checkpoints, [1], best_step=1)

  def full(*args, **kwargs):
    raise ValueError('RESOURCE_EXHAUSTED: no inodes\nmore')

  monkeypatch.setattr(checkpoints._manager, 'save', full)
  with pytest.raises(UserError, match=r'checkpoints/2: .*\(RESOURCE_EXHAUSTED: no inodes\).*whole'):
    save(checkpoints, [2], best_step=1)
  checkpoints.close()
  monkeypatch.undo()
  # What fails behind our back comes out where the run waits for it.
  checkpoints = Checkpoints(tmp_path, keep=3)
  monkeypatch.setattr(checkpoints._manager, 'wait_until_finished', full)
  with pytest.raises(UserError, match='could not be written'):
    checkpoints.close()
  assert Checkpoints(tmp_path, keep=3).drop_damaged() == 1


def test_a_full_disk_stops_before_the_save(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path, keep=3)
  save(checkpoints, [1], best_step=1)
  usage = type(shutil.disk_usage(tmp_path))
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage(10**9, 10**9 - 1000, 1000))
  with pytest.raises(UserError, match=r'disk is full.*step 1.*is whole'):
    save(checkpoints, [2], best_step=1)
  checkpoints.close()
  assert Checkpoints(tmp_path, keep=3).drop_damaged() == 1
