"""What a run leaves behind: whole files, rows that fit the checkpoint, cells without formulas."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from ctfake_jax import __version__
from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.data.transforms import controls
from ctfake_jax.fakes import generation
from ctfake_jax.types import UserError
from ctfake_jax.workdir import files as workdir_files


def test_json_is_whole_and_readable_by_any_reader(tmp_path):
  path = tmp_path / 'deep' / 'results.json'
  workdir_files.write_json(
    path, {'a': float('nan'), 'b': np.float32(1.5), 'c': (1, np.arange(2)), 3: 4}
  )
  assert json.loads(path.read_text()) == {'a': None, 'b': 1.5, 'c': [1, [0, 1]], '3': 4}
  assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('content', [None, b'{"torn": ', b'{"\xff": 1}'])
def test_a_missing_or_torn_json_is_named(content, tmp_path):
  path = tmp_path / 'config.json'
  if content:
    path.write_bytes(content)
  with pytest.raises(UserError, match=r'config\.json'):
    workdir_files.read_json(path)


def test_rows_after_the_restored_step_are_dropped(tmp_path):
  log = workdir_files.MetricLog(tmp_path, 0)
  for step in (1, 2, 3):
    log.write(step, {'loss': 1.0 / step})
  log.close()
  with open(tmp_path / 'metrics.jsonl', 'ab') as handle:
    handle.write(b'{"st\xff": 2}\n3\n{"step": 4, "lo')
  workdir_files.MetricLog(tmp_path, 2).close()
  assert [row['step'] for row in workdir_files.read_rows(tmp_path / 'metrics.jsonl')] == [1, 2]


def test_a_run_that_was_refused_has_not_begun(tmp_path):
  """What keeps it from running is mended in the same workdir."""
  config = config_lib.defaults()
  workdir_files.record_config(tmp_path, resolve(config), {})
  workdir_files.write_json(tmp_path / 'split.json', {})
  config.train.batch_size += 1
  workdir_files.record_config(tmp_path, resolve(config), {})
  begin(tmp_path)
  config.train.batch_size += 1
  with pytest.raises(UserError, match=r'train\.batch_size'):
    workdir_files.record_config(tmp_path, resolve(config), {})


def begin(workdir):
  (workdir / 'metrics.jsonl').touch()


def test_a_config_may_change_where_it_is_safe_only(tmp_path):
  begin(tmp_path)
  config = config_lib.defaults()
  config.train.schedule = 'constant'
  workdir_files.record_config(tmp_path, resolve(config), {'class_names': ['a', 'b']})
  config.train.epochs += 1
  workdir_files.record_config(tmp_path, resolve(config), {'class_names': ['a', 'b']})
  config.seed += 1
  with pytest.raises(UserError, match='seed'):
    workdir_files.record_config(tmp_path, resolve(config), {'class_names': ['a', 'b']})


def test_a_finished_stage_is_kept_until_its_config_changes(tmp_path):
  config = config_lib.defaults()
  workdir_files.record_config(tmp_path, resolve(config), {})
  workdir_files.write_json(tmp_path / 'results.json', {'made': 1})
  assert workdir_files.run_stage_once(tmp_path, resolve(config), dict) == {'made': 1}
  # Written before a key was known.
  recorded = workdir_files.read_json(tmp_path / 'config.json')
  del recorded['config']['augment']['integer_shift_fraction']
  workdir_files.write_json(tmp_path / 'config.json', recorded)
  assert workdir_files.run_stage_once(tmp_path, resolve(config), dict) == {'made': 1}
  config.augment.integer_shift_fraction = 0.25
  assert workdir_files.run_stage_once(tmp_path, resolve(config), dict) == {}
  config.augment.integer_shift_fraction, config.train.epochs = 0.0, config.train.epochs + 1
  assert workdir_files.run_stage_once(tmp_path, resolve(config), dict) == {}


def test_going_on_with_other_threads_warns(tmp_path, capsys, monkeypatch):
  begin(tmp_path)
  workdir_files.record_config(tmp_path, config_lib.Config(), {})
  workdir_files.record_config(tmp_path, config_lib.Config(), {})
  assert not capsys.readouterr().err
  monkeypatch.setattr(workdir_files.processors, 'count', lambda: 77)
  workdir_files.record_config(tmp_path, config_lib.Config(), {})
  assert 'going on with 77' in capsys.readouterr().err


def test_other_images_in_a_begun_workdir_are_refused(tmp_path):
  config = config_lib.defaults()
  begin(tmp_path)
  workdir_files.record_config(tmp_path, resolve(config), {'data': 'abc'})
  with pytest.raises(UserError, match='other images'):
    workdir_files.record_config(tmp_path, resolve(config), {'data': 'abd'})


def test_results_of_a_trained_network_are_not_overwritten(tmp_path):
  config = config_lib.defaults()
  workdir_files.check_same_command(tmp_path, resolve(config))
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match='holds a training'):
    workdir_files.check_same_command(tmp_path, resolve(config))


def test_a_command_may_be_repeated_and_no_other_takes_its_place(tmp_path):
  config = config_lib.defaults()
  config.task, config.input = 'detect', 'here'
  workdir_files.record_command(tmp_path, resolve(config))
  (tmp_path / 'config.json').write_text('{}')  # as a recalibration leaves it
  config.detection.workers = 1
  workdir_files.check_same_command(tmp_path, resolve(config))
  config.input = 'there'
  with pytest.raises(UserError, match=r'results of other values of input: choose another'):
    workdir_files.check_same_command(tmp_path, resolve(config))


def test_a_workdir_that_checkpoints_cannot_be_written_to_is_refused_at_once(tmp_path):
  odd = tmp_path / os.fsdecode(b'run\xff')
  with pytest.raises(UserError, match='no UTF-8'), workdir_files.locked(odd):
    pass
  assert not odd.exists()


def test_results_are_not_written_among_the_images(tmp_path):
  workdir_files.refuse_inside(tmp_path / 'out', tmp_path / 'in')
  (tmp_path / 'link').symlink_to(tmp_path / 'in')
  for inside in ('in', 'in/sub/out', 'link/out'):
    with pytest.raises(UserError, match=r'lies in config\.input'):
      workdir_files.refuse_inside(tmp_path / inside, tmp_path / 'in')


@pytest.mark.parametrize('text', ['=1+1', '+1', '-1', '@x', '\tx', '\n=1', '\uff1d1+1'])
def test_cells_from_files_are_no_formulas(text):
  assert workdir_files.csv_safe(text) == "'" + text
  assert workdir_files.csv_safe('covid/1.png') == 'covid/1.png'


@pytest.mark.parametrize('name', ['../../etc', '..', '', 'a/b', '.hidden', 'C:\\x'])
def test_a_class_name_is_one_harmless_folder(name):
  folder = generation.folder_name(name)
  assert folder
  assert '/' not in folder
  assert '\\' not in folder
  assert not folder.startswith('.')


@pytest.mark.parametrize('name', sorted(controls.CONTROLS))
def test_controls_keep_shape_and_range_and_change_something(name):
  images = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 1)).astype(np.float32)
  changed = controls.CONTROLS[name](images, 0)
  assert changed.shape == images.shape
  assert changed.dtype == np.float32
  assert np.abs(changed).max() <= 1
  assert np.abs(changed - images).max() > 0.01


def test_eight_bits_round_once():
  images = np.linspace(-1, 1, 1000, dtype=np.float32).reshape(1, 10, 100, 1)
  once = controls.through_png(images)
  assert np.abs(once - images).max() <= 0.5 / 127.5 + 1e-6
  np.testing.assert_array_equal(controls.through_png(once), once)


def test_the_recorded_commit_is_the_packages_own_or_none(tmp_path):
  own = workdir_files._commit()
  assert own is None or re.fullmatch(r'[0-9a-f]{40}', own)
  git = ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b.c']
  for command in (['init', '-q'], ['commit', '-q', '--allow-empty', '-m', 'x']):
    subprocess.run([*git, *command], check=True)
  (tmp_path / 'venv' / 'site-packages' / 'ctfake_jax').mkdir(parents=True)
  (tmp_path / 'ctfake_jax').mkdir()
  assert workdir_files._commit(tmp_path / 'venv' / 'site-packages' / 'ctfake_jax') is None
  assert re.fullmatch(r'[0-9a-f]{40}', workdir_files._commit(tmp_path / 'ctfake_jax'))


def test_results_say_by_which_version_they_were_made(tmp_path):
  workdir_files.write_results(tmp_path, {'n': 1})
  assert workdir_files.read_json(tmp_path / 'results.json') == {'version': __version__, 'n': 1}


def test_a_lock_dies_with_its_owner(tmp_path):
  program = (
    'import sys, time, pathlib; from ctfake_jax.workdir import files\n'
    'with files.locked(pathlib.Path(sys.argv[1])): print("held", flush=True); time.sleep(60)'
  )
  owner = subprocess.Popen([sys.executable, '-c', program, str(tmp_path)], stdout=subprocess.PIPE)
  assert owner.stdout.readline() == b'held\n'
  with pytest.raises(UserError, match='in use'), workdir_files.locked(tmp_path):
    pass
  owner.kill()
  owner.wait()
  with workdir_files.locked(tmp_path):
    pass
