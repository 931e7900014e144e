"""Every config file loads and validates; every mistake is named."""

import ast
import importlib
import importlib.util
import re
import shlex
import sys
import textwrap
from pathlib import Path

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.config import tree as config_tree
from ctfake_jax.data.sources.phantom import scanner
from ctfake_jax.fakes import families as fakes
from ctfake_jax.models import registry
from ctfake_jax.tasks import dry_run
from ctfake_jax.tasks import registry as tasks
from ctfake_jax.types import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob('configs/*.py'))
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# What a user must give on the command line.
GIVEN = {
  'generate': {'generate.checkpoint': 'runs/dcgan'},
  'predict': {'checkpoint': 'runs/cnn', 'input': 'image.png'},
  'explain': {'detector': 'runs/detector', 'input': 'image.png'},
  'export': {'checkpoint': 'runs/cnn'},
  'evaluate': {'checkpoint': 'runs/cnn'},
  'recalibrate': {'detector': 'runs/detector', 'input': 'FOLDER'},
  'detect': {'detector': 'runs/detector', 'input': 'FOLDER'},
  'study_folders': {'data.path': 'FOLDER'},
  'detector_folders': {'data.path': 'FOLDER'},
  'cross_validate': {'data.path': 'FOLDER'},
}


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


@pytest.mark.parametrize(
  ('keys', 'message'),
  [
    ({'num_processes': 2}, r'num_processes = 2.*coordinator=HOST:PORT'),
    ({'process_id': 1}, r'process_id = 1.*coordinator=HOST:PORT'),
    ({'coordinator': 'localhost'}, r"'localhost': must be HOST:PORT"),
    ({'coordinator': 'localhost:65536'}, r'the port below 65536'),
    ({'coordinator': 'a:1', 'num_processes': 0, 'process_id': 0}, r'num_processes = 0.*at least 1'),
    ({'coordinator': 'a:1', 'num_processes': 2, 'process_id': 2}, r'must be from 0 to 1'),
  ],
)
def test_addresses_that_lead_nowhere_are_refused(keys, message):
  config = config_lib.defaults()
  config.mesh.update(keys)
  with pytest.raises(UserError, match=message):
    config_lib.validate(resolve(config))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_files_validate_and_open_with_their_command(path):
  config = load(path)
  config.update_from_flattened_dict(GIVEN.get(path.stem, {}))
  config_lib.validate(resolve(config))
  assert f'python launch.py --config=configs/{path.name}' in path.read_text()


def test_names_in_the_config_are_those_that_exist():
  assert set(config_lib.TASKS) == set(tasks.MODULES)
  assert all(callable(tasks.find(task)) for task in config_lib.TASKS)
  assert set(config_lib.MODELS) == set(registry.MODELS)
  assert tuple(fakes.FAMILIES) == config_lib.FAMILIES
  assert config_lib.KEYS['phantom.scanners'].rule.holds(tuple(scanner.SCANNERS))


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('task', 'fly'),
    ('seed', -1),
    ('data.source', 'web'),
    ('data.window_width_hu', 0.0),
    ('model.cnn.widths', ()),
    ('model.cnn.convs', (0,)),
    ('model.views', 3),
    ('train.batch_size', 1),
    ('train.learning_rate', float('nan')),
    ('gan.beta1', 1.0),
    ('split.folds', 2),
    ('split.fold', -2),
    ('split.fold', -1),
    ('study.classifiers', ('cnn', 'cnn')),
    ('study.per_model.cnn.epochs', -3),
    ('phantom.scanners', ('Z',)),
    ('split.seed', -1),
    ('mesh.num_processes', 0),
  ],
)
def test_an_impossible_value_is_named_with_its_key(key, value):
  config = config_lib.defaults()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=rf'config\.{key} = '):
    config_lib.validate(resolve(config))


@pytest.mark.parametrize('key', config_lib.KEYS)
def test_a_key_has_a_default_within_its_rule_and_a_meaning(key):
  row = config_lib.KEYS[key]
  default = None if isinstance(row.default, type) else row.default
  assert row.rule.holds(default)
  assert row.meaning


def test_an_unknown_key_is_named():
  config = config_lib.defaults()
  config.train.epoch = 3
  with pytest.raises(UserError, match=r'config\.train\.epoch: unknown key'):
    config_lib.validate(resolve(config))


def test_a_wrong_type_is_named():
  config = config_lib.defaults()
  with config.ignore_type():
    config.train.epochs = 'many'
  with pytest.raises(UserError, match=r"config\.train\.epochs = 'many': must be int"):
    config_lib.validate(resolve(config))


def printed_commands() -> list[str]:
  """Every whole command of the README, the pages of docs/ and the config files."""
  text = '\n'.join(path.read_text() for path in [*PAGES, *CONFIGS])
  whole_lines = re.sub(r'\\\n\s*', ' ', text)
  found = re.findall(r'python launch\.py (--config=configs/[^\n`|&]+)', whole_lines)
  return sorted({command.strip(" '") for command in found if 'NAME' not in command})


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_imports_of_the_pages_examples_exist(page):
  blocks = re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL)
  for tree in (ast.parse(textwrap.dedent(block)) for block in blocks):
    for node in tree.body:
      if isinstance(node, ast.ImportFrom):
        module = importlib.import_module(node.module)
        assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_every_config_file_prints_its_command():
  shown = {command.split()[0].split('/')[1] for command in printed_commands()}
  assert {path.name for path in CONFIGS} <= shown


def test_a_folder_that_nothing_would_read_is_refused():
  config = config_lib.defaults()
  config.data.path = 'mine'
  with pytest.raises(UserError, match=r'data\.source=folders'):
    config_lib.validate(resolve(config))


@pytest.mark.parametrize('command', printed_commands())
def test_printed_commands_are_valid(command, monkeypatch):
  arguments = ['launch.py', *shlex.split(command)]
  monkeypatch.setattr(sys, 'argv', arguments)  # config_flags looks for overrides there
  monkeypatch.chdir(ROOT)
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file('config', flag_values=values)
  flags.DEFINE_string('workdir', None, '', flag_values=values)
  assert values(arguments) == ['launch.py']
  config_lib.validate(resolve(config.value))


def test_only_a_benchmark_of_gans_needs_a_power_of_two():
  config = config_lib.defaults()
  config.task, config.data.image_size = 'benchmark', 224
  with pytest.raises(UserError, match='power of two'):
    config_lib.validate(resolve(config))
  config.benchmark.models = ('cnn',)
  config_lib.validate(resolve(config))


def test_a_gan_needs_a_power_of_two():
  config = config_lib.defaults()
  config.task, config.data.image_size = 'gan', 48
  with pytest.raises(UserError, match='power of two'):
    config_lib.validate(resolve(config))


# Their steps are those of `study_folders`, `detector_bench` and `resnet50`.
STEPS_OF_OTHERS = ('study', 'detector', 'detector_folders', 'cross_validate')


@pytest.mark.slow
@pytest.mark.parametrize(
  'path', [p for p in CONFIGS if p.stem not in STEPS_OF_OTHERS], ids=lambda p: p.stem
)
def test_the_steps_of_every_training_config_trace(path):
  config = load(path)
  for job in dry_run.jobs(resolve(config), classes=4, images=1200):
    batch = job.batch(config.data.image_size)
    state, metrics = jax.eval_shape(job.step, job.init(), batch, jax.random.key(0))
    assert jax.tree.leaves(state)
    assert all(value.shape == () for value in metrics.values())
    assert job.steps > 0


@pytest.mark.parametrize('task', ['evaluate', 'export', 'generate', 'predict'])
def test_a_task_without_its_paths_says_which(task):
  config = config_lib.defaults()
  config.task = task
  with pytest.raises(UserError, match='is empty'):
    config_lib.validate(resolve(config))


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('study.folds', 2),
    ('study.per_model.cnn.folds', 2),
    ('generate.count', 10),
    ('split.random_labels', True),
    ('model.cnn.widths', (4, 'x')),
    ('model.cnn.widths', (4.0,)),
    ('model.cnn.convs', (1.0,)),
  ],
)
def test_what_would_fail_after_hours_is_refused_at_once(key, value):
  config = config_lib.defaults()
  config.task = 'study'
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=rf'config\.{key}'):
    config_lib.validate(resolve(config))


def test_saved_configs_come_back():
  config = config_lib.defaults()
  config.data.classes = ('a', 'b')
  config.train.learning_rate = 3e-4
  saved = config_lib.as_dict(resolve(config))
  assert config_lib.as_dict(config_lib.from_dict(saved)) == saved


@pytest.mark.parametrize(('old', 'new'), config_lib.RENAMED.items())
def test_a_record_with_an_old_name_is_read(old, new):
  saved = dict(config_lib.leaves(config_lib.as_dict(config_lib.Config())))
  before = config_lib.Config()
  records = {**saved, old: saved.pop(new)}
  nested = config_tree.nested({key: value for key, value in records.items() if key != new})
  assert config_lib.as_dict(config_lib.from_dict(nested)) == config_lib.as_dict(before)
  assert config_lib.changed_keys(nested, config_lib.as_dict(before)) == []


@pytest.mark.parametrize('source', ['phantom', 'folders', 'dicom', 'tfds'])
@pytest.mark.parametrize('task', config_lib.TASKS)
def test_a_record_needs_no_paths(task, source):
  config = config_lib.defaults()
  config.task, config.data.source = task, source
  saved = config_lib.as_dict(resolve(config))
  assert config_lib.as_dict(config_lib.from_dict(saved)) == saved


@pytest.mark.parametrize(
  ('section', 'key', 'value'),
  [('data', 'image_size', 4), ('detection', 'width', 'wide'), ('data', 'colour', 1)],
)
def test_an_impossible_record_is_refused(section, key, value):
  saved = config_lib.as_dict(config_lib.Config())
  saved[section][key] = value
  with pytest.raises(UserError, match=key):
    config_lib.from_dict(saved)


@pytest.mark.parametrize(
  ('key', 'schedule', 'warmup', 'may'),
  [
    ('train.epochs', 'constant', 1.0, True),
    ('train.epochs', 'constant', 20.0, False),
    ('train.epochs', 'cosine', 0.0, False),
    ('gan.updates', 'constant', 1.0, True),
    ('gan.updates', 'cosine', 1.0, False),
  ],
)
def test_a_run_is_extended_where_its_rates_stay(key, schedule, warmup, may):
  config = config_lib.defaults()
  section, _, name = key.partition('.')
  config[section].schedule, config.train.warmup_epochs = schedule, warmup
  old = config_lib.as_dict(resolve(config))
  config[section][name] += 1
  changed = config_lib.changed_keys(old, config_lib.as_dict(resolve(config)))
  assert changed == ([] if may else [key])


def test_changed_keys_pass_over_the_safe_ones():
  old, new = config_lib.as_dict(config_lib.Config()), config_lib.as_dict(config_lib.Config())
  old['train']['schedule'] = new['train']['schedule'] = 'constant'
  new['train']['epochs'] += 1
  new['train']['batch_size'] += 1
  assert config_lib.changed_keys(old, new) == ['train.batch_size']
  del old['train']['label_smoothing']
  assert config_lib.changed_keys(old, new) == ['train.batch_size']


def test_a_stage_keeps_only_what_it_reads():
  config = config_lib.defaults()
  config.seed, config.gan.width, config.train.epochs, config.data.image_size = 3, 5, 7, 64
  own = config_lib.for_stage(resolve(config), 'gan', 'gan')
  assert (own.task, own.seed, own.gan.width, own.data.image_size) == ('gan', 3, 5, 64)
  assert own.train.epochs == config_lib.defaults().train.epochs
  assert config.task == 'classifier'


def test_the_last_checkpoint_leaves_nothing_to_stop_for():
  config = config_lib.defaults()
  config.train.select_checkpoint, config.train.early_stop_evals = 'last', 3
  with pytest.raises(UserError, match=r'config\.train\.early_stop_evals = 3'):
    config_lib.validate(resolve(config))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_a_config_file_says_its_command_and_what_was_measured(path):
  text = ast.get_docstring(ast.parse(path.read_text()))
  assert f'python launch.py --config=configs/{path.name}' in text
  (measured,) = [p for p in text.split('\n\n') if p.startswith(('Measured:', 'Not yet measured'))]
  pages = re.findall(r'docs/\w+\.md', measured)
  assert all((ROOT / page).is_file() for page in pages)
  if measured.startswith('Measured:'):
    assert pages or re.search(r'CPU cores.*\d{4}-\d\d-\d\d', measured, re.DOTALL)


@pytest.mark.parametrize(
  ('changes', 'passed_over'),
  [
    ({'task': 'predict'}, ['data.grey_range', 'data.aspect', 'detection.width', 'phantom.size']),
    ({'task': 'detect'}, ['data.image_size', 'detection.updates', 'split.by']),
    ({'task': 'evaluate'}, ['data.window_width_hu', 'data.aspect', 'detection.width']),
    ({'task': 'recalibrate'}, ['data.classes', 'detection.families']),
    ({'task': 'explain'}, ['detection.false_alarm_rate', 'data.synthetic_ok']),
    ({'task': 'generate'}, ['data.path', 'phantom.patients']),
    ({'data.source': 'folders', 'data.path': 'x'}, ['phantom.seed', 'data.labels_csv']),
    ({'data.source': 'dicom', 'data.path': 'x'}, ['phantom.seed', 'data.patient_folders']),
  ],
)
def test_keys_that_a_task_or_a_source_passes_over_are_named(changes, passed_over):
  config = config_lib.defaults()
  config.update_from_flattened_dict(changes)
  read = ['seed', 'data.max_pixels'] if config.task != 'generate' else ['seed', 'generate.count']
  assert config_lib.unread(resolve(config), [*passed_over, *read]) == passed_over


def test_an_edit_needs_no_generator():
  config = config_lib.defaults()
  config.task, config.generate.method, config.generate.checkpoint = (
    'generate',
    'copied',
    'somewhere',
  )
  with pytest.raises(UserError, match=r'generate\.checkpoint.*leave it empty'):
    config_lib.validate(resolve(config))
