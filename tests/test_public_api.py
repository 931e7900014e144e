"""What `import ctfake_jax` gives, and the program that an installation brings."""

import inspect
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from door import ROOT, environment

import ctfake_jax
from ctfake_jax.config import files as config_files
from ctfake_jax.types import UserError


@pytest.mark.parametrize('name', ctfake_jax.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
  assert inspect.getdoc(getattr(ctfake_jax, name))
  assert name in dir(ctfake_jax)


def test_other_names_are_not():
  with pytest.raises(AttributeError, match='no_such'):
    ctfake_jax.no_such  # noqa: B018


def test_the_package_itself_and_decoders_import_no_jax():
  program = 'import sys, ctfake_jax.data.sources.sandboxed as _; assert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', program], check=True, cwd=ROOT)


def test_configs_by_name():
  assert set(config_files.named()) == {path.stem for path in (ROOT / 'configs').glob('*.py')}
  assert ctfake_jax.get_config('study').task == 'study'
  assert ctfake_jax.get_config(str(ROOT / 'configs' / 'cnn.py')).task == 'classifier'
  with pytest.raises(UserError, match=r'nothing: no such config; there are autoencoder, '):
    ctfake_jax.get_config('nothing')


@pytest.mark.slow
def test_run_leaves_what_the_command_leaves(tmp_path):
  config = ctfake_jax.get_config('cnn')
  config.phantom.patients, config.data.image_size = 60, 16
  config.model.cnn.widths, config.train.epochs, config.train.batch_size = (4,), 1, 8
  results = ctfake_jax.run(config, tmp_path / 'cnn')
  assert 0 <= results['accuracy'] <= 1
  assert (tmp_path / 'cnn' / 'results.json').exists()
  trained = ctfake_jax.load_classifier(str(tmp_path / 'cnn'))
  images = ctfake_jax.load_images(config)
  assert trained.predict(images.images[:3]).shape == (3, len(images.class_names))
  for wrong in (images.images * 255, images.images[:, ::2, ::2]):
    with pytest.raises(ValueError, match='the network takes'):
      trained.predict(wrong)
  config.train.epochs = -3
  with pytest.raises(UserError, match=r'config\.train\.epochs = -3'):
    ctfake_jax.run(config, tmp_path / 'other')


def program(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
  path = Path(sys.executable).parent / 'ctfake'
  return subprocess.run(
    [path, *arguments], capture_output=True, text=True, env=environment(), cwd=cwd
  )


@pytest.mark.slow
def test_the_program_takes_configs_by_name_anywhere(tmp_path):
  listed = program(cwd=tmp_path)
  assert listed.returncode == 1
  for name in config_files.named():
    assert f'\n  {name}' in listed.stdout
  dry = program('--config=cnn', '--config.dry_run=True', cwd=tmp_path)
  assert dry.returncode == 0, dry.stderr
  assert 'cnn: 389,348 parameters' in dry.stdout
  assert '--config.train.epochs=' in program('--config', 'cnn', '--keys', cwd=tmp_path).stdout
  wrong = program('--config=nothing', cwd=tmp_path)
  assert 'error: --config=nothing: no such file; ctfake without arguments lists' in wrong.stderr


@pytest.mark.slow
def test_a_wheel_brings_configs_and_pages(tmp_path):
  command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation']
  source = tmp_path / 'source'
  files = subprocess.run(
    ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
    cwd=ROOT, capture_output=True, check=True, text=True,
  ).stdout.split('\0')  # fmt: skip
  for name in filter(None, files):
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes((ROOT / name).read_bytes())
  subprocess.run([*command, '--wheel-dir', str(tmp_path), str(source)], check=True)
  (wheel,) = tmp_path.glob('*.whl')
  assert wheel.name.startswith(f'ctfake_jax-{ctfake_jax.__version__}-')
  names = zipfile.ZipFile(wheel).namelist()
  configs = {Path(n).stem for n in names if '/share/ctfake_jax/configs/' in n}
  assert configs == set(config_files.named())
  packaged = {n for n in names if n.startswith('ctfake_jax/')}
  here = (ROOT / 'ctfake_jax').rglob('*')
  kept = {p for p in here if p.suffix in ('.py', '.html', '.md', '.npz')}
  assert {str(p.relative_to(ROOT)) for p in kept} <= packaged
