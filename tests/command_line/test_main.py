"""The one door, as a command: what it says, what it refuses, and a study killed and resumed."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from door import ROOT, command, environment
from PIL import Image

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.tasks import dry_run
from ctfake_jax.types import UserError

TINY = [
  '--config.phantom.patients=40',
  '--config.train.epochs=2',
  '--config.train.batch_size=16',
  "--config.study.classifiers=('cnn',)",
  '--config.model.cnn.widths=(4,8)',
  '--config.gan.width=4',
  '--config.gan.updates=20',
  '--config.gan.eval_every=10',
  '--config.gan.batch_size=16',
  '--config.gan.quality_images=32',
  '--config.generate.count=48',
  '--config.split.test_fraction=0.34',
  '--config.split.val_fraction=0.25',
]


def launch(config, *flags, **kwargs):
  return subprocess.run(
    command(config, *flags), capture_output=True, text=True, env=environment(), **kwargs
  )


def test_sigterm_in_the_first_moments_asks_for_the_job_again(tmp_path):
  process = subprocess.Popen(command('cnn', f'--workdir={tmp_path}'), env=environment())
  status = Path(f'/proc/{process.pid}/status')
  caught = 1 << (signal.SIGTERM - 1)
  while not int(re.search(r'SigCgt:\s*(\w+)', status.read_text()).group(1), 16) & caught:
    time.sleep(0.001)
  process.terminate()
  assert process.wait(timeout=60) == 75
  assert not (tmp_path / 'config.json').exists()


def write_folders(root, per_class=30, size=40, classes=('covid', 'healthy')):
  rng = np.random.default_rng(0)
  for k, name in enumerate(classes):
    (root / name).mkdir(parents=True)
    for i in range(per_class):
      pixels = rng.integers(0, 120, (size, size))
      pixels[:: k + 1, : size // 2] += 100
      Image.fromarray(pixels.astype(np.uint8)).save(root / name / f'{i}.png')


def test_without_arguments_it_says_what_can_be_run():
  bare = command('study')[:2]
  done = subprocess.run(bare, capture_output=True, text=True, env=environment())
  assert done.returncode == 1
  for config in ROOT.glob('configs/*.py'):
    assert f'\n  {config.stem} ' in done.stdout


@pytest.mark.parametrize(
  ('config', 'flags', 'words'),
  [
    ('cnn', ['--config.train.batch_size=0'], 'config.train.batch_size = 0'),
    ('cnn', ['--config.train.epoch=3'], '--keys lists them'),
    ('cnn', ['--config.data.image_size=33.5'], 'image_size'),
    ('cnn', ['--config.augment.sharp=0.5'], 'is now augment.integer_shift_fraction'),
    ('cnn', ['--config.data.source=folders', '--config.data.path=nowhere'], 'nowhere'),
    ('cnn', ['stray'], 'stray'),
    ('no_such_config', [], 'no_such_config.py: no such file'),
    ('predict', ['--config.checkpoint=nowhere', '--config.input=x.png'], 'nowhere'),
    ('generate', ['--config.generate.checkpoint=nowhere'], 'nowhere'),
  ],
)
def test_a_mistake_is_one_message_without_traceback(config, flags, words, tmp_path):
  done = launch(config, f'--workdir={tmp_path}', *flags)
  assert done.returncode != 0
  assert words in done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
  ('code', 'words'),
  [
    ('def get_config():\n  return (\n', 'mine.py: line 2'),
    ('def get_config():\n  return nothing\n', "name 'nothing' is not defined"),
    ('import no_such_module\n', 'no_such_module'),
    ('def get_config():\n  pass\n', 'returns nothing'),
  ],
)
def test_a_faulty_config_file_is_one_message(code, words, tmp_path):
  (tmp_path / 'mine.py').write_text(code)
  own = [f'--config={tmp_path / "mine.py"}', f'--workdir={tmp_path}']
  done = launch('cnn', *own)
  assert done.returncode == 1
  assert words in done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_one_class_only_is_refused_before_any_work(tmp_path):
  write_folders(tmp_path / 'data', classes=('covid',))
  done = launch(
    'cnn',
    f'--workdir={tmp_path / "w"}',
    '--config.data.source=folders',
    f'--config.data.path={tmp_path / "data"}',
  )
  assert done.returncode == 1
  assert 'one class' in done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_folders_train_evaluate_and_predict_beside_a_broken_file(tmp_path):
  write_folders(tmp_path / 'data')
  (tmp_path / 'data' / 'covid' / 'broken.png').write_bytes(b'\x89PNG\r\n\x1a\n junk')
  (tmp_path / 'data' / 'covid' / '=cmd.png').write_bytes(
    (tmp_path / 'data' / 'covid' / '0.png').read_bytes()
  )
  data = ['--config.data.source=folders', f'--config.data.path={tmp_path / "data"}']
  done = launch(
    'cnn',
    f'--workdir={tmp_path / "cnn"}',
    *data,
    '--config.train.epochs=3',
    '--config.train.batch_size=8',
    '--config.model.cnn.widths=(4,8)',
    '--config.split.by=slice',
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'unreadable images, left out: 1' in done.stdout
  results = json.loads((tmp_path / 'cnn' / 'results.json').read_text())
  assert results['data']['classes'] == {'covid': 31, 'healthy': 30}
  assert [row['path'] for row in results['data']['unreadable']] == ['covid/broken.png']
  assert results['baselines']['leak_audit']['test_images'] == results['n']

  done = launch(
    'evaluate', f'--workdir={tmp_path / "e"}', *data, f'--config.checkpoint={tmp_path / "cnn"}'
  )
  assert done.returncode == 0, done.stderr[-2000:]
  evaluated = json.loads((tmp_path / 'e' / 'results.json').read_text())
  assert evaluated['n'] == 61
  # Two files are one image, and each is in a part of its own or both in one.
  assert 61 - results['n'] <= evaluated['trained_on'] <= 62 - results['n']
  assert f'careful: {evaluated["trained_on"]} of 61 images' in done.stdout

  done = launch(
    'predict',
    f'--workdir={tmp_path / "p"}',
    f'--config.checkpoint={tmp_path / "cnn"}',
    f'--config.input={tmp_path / "data" / "covid"}',
  )
  assert done.returncode == 0, done.stderr[-2000:]
  with open(tmp_path / 'p' / 'predictions.csv', newline='') as handle:
    rows = list(csv.DictReader(handle))
  assert len(rows) == 32
  assert sum(1 for row in rows if row['error']) == 1
  assert not any(row['path'].startswith('=') for row in rows)
  for row in rows:
    if not row['error']:
      assert float(row['p_covid']) + float(row['p_healthy']) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_a_killed_study_is_resumed_and_reported(tmp_path):
  flags = [f'--workdir={tmp_path}', *TINY]
  with open(tmp_path / 'log.txt', 'w') as log:
    run = subprocess.Popen(command('study', *flags), env=environment(), stderr=log, stdout=log)
    classifier = tmp_path / 'classifiers' / 'cnn' / 'fold0' / 'results.json'
    begun = tmp_path / 'dcgan' / 'checkpoints' / '10' / 'state'
    while run.poll() is None and not (classifier.exists() and begun.exists()):
      time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
  assert run.returncode == -signal.SIGKILL
  finished = classifier.stat().st_mtime_ns
  done = launch('study', *flags)
  assert done.returncode == 0, done.stderr[-3000:]
  assert classifier.stat().st_mtime_ns == finished, 'a finished stage was run again'
  results = json.loads((tmp_path / 'results.json').read_text())
  assert results['deepfakes']['count'] == 48
  assert results['best'] == 'cnn'
  for key in ('frechet', 'frechet_real_real', 'extractor', 'precision', 'recall', 'nearest_ratio'):
    assert key in results['dcgan'], key
  assert set(results['per_image']) == {'max_softmax', 'energy', 'mahalanobis'}
  controls = results['controls']
  assert {'unchanged', 'jpeg_75', 'blur_1px', 'noise', 'other_scanner'} <= set(controls)
  compared = results['fall']['originals'], results['fall']['tested']
  assert results['fall']['points'] == pytest.approx(
    100 * (compared[0]['accuracy'] - compared[1]['accuracy'])
  )
  # Patients of the reference half and of the control half are all held-out patients.
  halves = compared[0]['groups'] + controls['unchanged']['groups']
  assert halves == results['originals']['groups']
  retrained = results['deepfakes']['retrained']
  assert retrained['train_images'] == 48
  for row in (retrained, retrained['as_many_as_originals']):
    assert {'accuracy_on_deepfakes', 'accuracy_on_originals'} <= set(row)
  manifest = json.loads((tmp_path / 'deepfakes' / 'manifest.json').read_text())
  assert len(manifest['files']) == 48
  assert len(manifest['generator_sha256']) == 64
  page = (tmp_path / 'report.html').read_text()
  assert 'src="http' not in page
  assert 'data:image/png;base64' in page

  done = launch(
    'generate',
    f'--workdir={tmp_path / "more"}',
    f'--config.generate.checkpoint={tmp_path / "dcgan"}',
    '--config.generate.count=8',
    '--config.generate.dicom=True',
  )
  assert done.returncode == 0, done.stderr[-2000:]
  import pydicom

  files = sorted((tmp_path / 'more' / 'dicom').rglob('*.dcm'))
  assert len(files) == 8
  assert all(pydicom.dcmread(path).SyntheticData == 'YES' for path in files)


def test_keys_are_listed_with_the_configs_values():
  done = launch('dcgan', '--keys', '--config.gan.width=7')
  assert done.returncode == 0
  assert (
    '--config.gan.width=7\n    channels next to the image; a number from 1 to 512' in done.stdout
  )
  listed = {line.partition('=')[0] for line in done.stdout.splitlines() if line.startswith('--')}
  of_others = config_lib.unread_by_task('gan', config_lib.KEYS)
  assert listed == {f'--config.{key}' for key in config_lib.KEYS if key not in of_others}
  assert 'vae.width' in of_others


@pytest.mark.parametrize('flag', ['-h', '--help'])
def test_help_says_flags_and_configs(flag):
  done = subprocess.run(
    [sys.executable, str(ROOT / 'launch.py'), flag], capture_output=True, text=True, check=True
  )
  assert '--workdir=DIR' in done.stdout
  assert 'detector_folders' in done.stdout


def test_keys_that_a_task_passes_over_are_said(tmp_path):
  done = launch(
    *('predict', f'--workdir={tmp_path}', '--config.checkpoint=nowhere', '--config.input=x.png'),
    '--config.gan.width=7',
  )
  assert 'careful: predict does not read gan.width' in done.stderr


def test_every_key_is_read_by_a_task_and_every_task_passes_some_over():
  passed_over = [set(config_lib.unread_by_task(t, config_lib.KEYS)) for t in config_lib.TASKS]
  assert not set.intersection(*passed_over)
  assert all(keys and 'seed' not in keys for keys in passed_over)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'task': 'gan', 'gan.batch_size': 1000}, 'gan.batch_size = 1000: only'),
    ({'train.batch_size': 1000}, 'train.batch_size = 1000: only'),
  ],
)
def test_a_dry_run_refuses_what_training_would(changes, message):
  config = config_lib.defaults()
  config.phantom.patients, config.phantom.slices_per_patient = 20, 1
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    list(dry_run.describe(resolve(config)))


@pytest.mark.slow
@pytest.mark.parametrize(('task', 'steps'), [('forensics', 5), ('forensics_bench', 2 * 3 * 7)])
def test_a_dry_run_of_forensics_counts_trainings(task, steps):
  config = config_lib.defaults()
  config.task, config.data.source = task, 'dicom'
  config.forensics.width, config.forensics.pairs, config.forensics.updates = 4, 1, 5
  config.forensics_bench.kind_folds, config.forensics_bench.seeds = 3, 2
  config.forensics_bench.updates = 7
  lines = list(dry_run.describe(resolve(config)))
  assert 'phantoms: 400 of 4 slices' in lines[0]
  assert f'{steps} steps' in lines[1]
  assert 'minutes' in lines[2]


def test_a_dry_run_counts_and_stops(tmp_path):
  done = launch('cnn', f'--workdir={tmp_path / "w"}', '--config.dry_run=True')
  assert done.returncode == 0, done.stderr[-2000:]
  assert '389,348 parameters' in done.stdout
  assert 'minutes' in done.stdout
  assert not (tmp_path / 'w').exists()


def test_the_bench_is_estimated_network_by_network():
  config = config_lib.defaults()
  config.task = 'detector_bench'
  config.detection.families = ('dcgan', 'blended', 'copied')
  config.detection.updates, config.bench.network_updates = 70, 50
  config.bench.methods = ('energy', 'resnet18', 'detector')
  found = {job.name: job.steps for job in dry_run.jobs(resolve(config), 2, 1000)}
  assert found == {'dcgan': 6000, 'cnn': 30 * 14, 'resnet18': 3 * 50, 'detector': 3 * 70}


@pytest.mark.slow
def test_a_full_disk_is_one_message(tmp_path):
  (tmp_path / '.split.json.tmp').symlink_to('/dev/full')
  done = launch('cnn', f'--workdir={tmp_path}', *TINY)
  assert done.returncode == 1
  assert 'the disk is full' in done.stderr
  assert 'Traceback' not in done.stderr


def test_nothing_not_even_a_lock_is_written_among_the_images(tmp_path):
  flags = [f'--config.input={tmp_path}', '--config.detector=d', f'--workdir={tmp_path}/out']
  done = launch('detect', *flags)
  assert done.returncode == 1
  assert 'lies in config.input' in done.stderr
  assert not list(tmp_path.iterdir())


def test_a_second_run_in_the_same_workdir_is_refused(tmp_path):
  from ctfake_jax.types import UserError
  from ctfake_jax.workdir import files as workdir_files

  with workdir_files.locked(tmp_path), pytest.raises(UserError, match='in use'):  # noqa: SIM117
    with workdir_files.locked(tmp_path):
      pass
  with workdir_files.locked(tmp_path):
    pass
