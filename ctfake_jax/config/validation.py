"""What values must satisfy: those of a record (`check_values`), and to be run (`validate`, too)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ctfake_jax.config.keys import Config, MeshConfig
from ctfake_jax.config.names import CLASSIFIERS, EDITS, EVERY_FOLD, GENERATORS, TAMPERING
from ctfake_jax.config.tree import KEYS, leaves
from ctfake_jax.config.value_rules import Rule
from ctfake_jax.types import UserError

FEWEST_DEEPFAKES = 40
FEWEST_PATIENTS, MOST_SLICES = 8, 64  # of a phantom whose slices are dealt out
SOURCES_OF_SERIES = ('phantom', 'dicom', 'volumes')

_POWER_OF_TWO = Rule('a power of two from 32 to 256', lambda v: 32 <= v <= 256 and v & (v - 1) == 0)
_MULTIPLE_OF_4 = Rule('a multiple of 4', lambda v: v > 0 and v % 4 == 0)
_SIDES = {
  **dict.fromkeys(('gan', 'vae', 'study', 'detector', 'detector_bench'), _POWER_OF_TWO),
  **dict.fromkeys(('diffusion', 'autoencoder'), _MULTIPLE_OF_4),
}


def check_values(values: Mapping[str, Any]) -> None:
  """Raises UserError naming a dotted key that is unknown or missing, or has a wrong type or range.

  What a record of a finished run must satisfy: its paths may be gone, or left out on purpose.
  """
  for key, value in values.items():
    if key not in KEYS:
      raise UserError(f'config.{key}: unknown key; have: {", ".join(sorted(KEYS))}')
    _check_type(key, value)
  for key, row in KEYS.items():
    if key not in values:
      raise UserError(f'config.{key} is missing: start from ctfake_jax.config.defaults()')
    if not _holds(row.rule, values[key]):
      raise UserError(f'config.{key} = {values[key]!r}: must be {row.rule.allowed}')


def validate(config: Config) -> None:
  """Raises UserError naming what keeps the config's task from running."""
  values = dict(leaves(config))
  edits = config.task == 'generate' and config.generate.method in EDITS
  if edits and config.generate.checkpoint:
    raise UserError(
      f'config.generate.checkpoint = {config.generate.checkpoint!r}: the edit '
      f'{config.generate.method!r} needs no generator; leave it empty'
    )
  for needs, keys in _REQUIRED_PATHS.items():
    if needs == config.task:
      for key in keys:
        if not values[key] and not edits:
          raise UserError(f'config.{key} is empty: {needs} needs it, set --config.{key}=PATH')
  if config.data.source != 'phantom' and not config.data.path and config.task not in _READ_NO_DATA:
    raise UserError(
      f'config.data.path is empty: source {config.data.source!r} needs --config.data.path=FOLDER'
    )
  if config.data.source == 'phantom' and config.data.path and config.task not in _READ_NO_DATA:
    raise UserError(
      f'config.data.path = {config.data.path!r}: the phantom reads no files; say what these are '
      'with --config.data.source=folders, dicom or tfds'
    )
  is_split = config.data.source == 'phantom' and config.task not in (*_READ_NO_DATA, 'tamper')
  if is_split and config.phantom.patients < FEWEST_PATIENTS:
    raise UserError(
      f'config.phantom.patients = {config.phantom.patients}: must be at least {FEWEST_PATIENTS} '
      'where they are split into parts'
    )
  if is_split and config.phantom.slices_per_patient > MOST_SLICES:
    raise UserError(
      f'config.phantom.slices_per_patient = {config.phantom.slices_per_patient}: must be at most '
      f'{MOST_SLICES} outside of whole series'
    )
  if config.split.folds and config.split.fold >= config.split.folds:
    raise UserError(
      f'config.split.fold = {config.split.fold}: must be below split.folds = {config.split.folds}'
    )
  if config.split.fold == EVERY_FOLD and not (config.split.folds and config.task == 'classifier'):
    raise UserError(
      'config.split.fold = -1: every fold in turn, so the task must be classifier and split.folds '
      'say how many'
    )
  if config.split.random_labels and config.task != 'classifier':
    raise UserError('config.split.random_labels = True: a control of single classifiers only')
  if config.task == 'detector_bench' and config.detection.fakes_folder:
    raise UserError('config.detection.fakes_folder: the bench makes its own fakes; leave it empty')
  if config.train.select_checkpoint == 'last' and config.train.early_stop_evals:
    raise UserError(
      f'config.train.early_stop_evals = {config.train.early_stop_evals}: the last checkpoint is '
      'asked for; set train.select_checkpoint=loss, or early_stop_evals=0'
    )
  if config.task == 'study':
    _check_study(config)
  if config.task == 'tamper':
    _check_tampering(config)
  elif config.data.source == 'volumes':
    raise UserError("config.data.source = 'volumes': is read by the task tamper alone")
  _check_mesh(config.mesh)
  times_a_gan = config.task == 'benchmark' and 'dcgan' in config.benchmark.models
  side = _POWER_OF_TWO if times_a_gan else _SIDES.get(config.task)
  if side and not side.holds(config.data.image_size):
    raise UserError(
      f'config.data.image_size = {config.data.image_size}: the generator needs {side.allowed}'
    )


def unread(config: Config, keys: Sequence[str]) -> list[str]:
  """Those of dotted `keys` that the config's task passes over, or the source of its data."""
  found = set(unread_by_task(config.task, keys))
  if config.task == 'generate' and config.generate.method == 'samples':
    found |= {key for key in keys if key.startswith(_DATA)}
  other = tuple(key for key, sources in _OF_SOURCES.items() if config.data.source not in sources)
  if config.task not in _READ_NO_DATA:
    found |= {key for key in keys if key.startswith(other)}
  return [key for key in keys if key in found]


def unread_by_task(task: str, keys: Iterable[str]) -> list[str]:
  """Those of dotted `keys` that a task passes over, whatever their values."""
  read = (*_ALWAYS_READ, *_READ[task])
  return [key for key in keys if not key.startswith(read)]


def _check_mesh(mesh: MeshConfig) -> None:
  """Addresses that JAX would refuse without naming the key, or pass over."""
  count, own = mesh.num_processes, mesh.process_id
  if mesh.coordinator is None:
    for key, value in {'num_processes': count, 'process_id': own}.items():
      if value is not None:
        raise UserError(f'config.mesh.{key} = {value}: set mesh.coordinator=HOST:PORT beside it')
    return
  host, _, port = mesh.coordinator.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise UserError(
      f'config.mesh.coordinator = {mesh.coordinator!r}: must be HOST:PORT, the port below 65536'
    )
  if count is not None and count < 1:
    raise UserError(f'config.mesh.num_processes = {count}: must be at least 1')
  if count is not None and own is not None and not 0 <= own < count:
    raise UserError(f'config.mesh.process_id = {own}: must be from 0 to {count - 1}')


def _check_study(config: Config) -> None:
  """What would otherwise fail after hours."""
  folds = max(config.split.folds, 1)
  per_model = {
    f'study.per_model.{n}.folds': config.study.per_model.of(n).folds for n in CLASSIFIERS
  }
  for key, value in {'study.folds': config.study.folds, **per_model}.items():
    most = folds if key == 'study.folds' else config.study.folds
    if value > most:
      raise UserError(f'config.{key} = {value}: must be at most {most}')
  if config.generate.count < FEWEST_DEEPFAKES:
    raise UserError(
      f'config.generate.count = {config.generate.count}: a study needs at least '
      f'{FEWEST_DEEPFAKES} deepfakes to measure their quality'
    )


def _check_tampering(config: Config) -> None:
  c = config.tamper
  if c.method and c.method not in TAMPERING[c.action]:
    raise UserError(
      f'config.tamper.method = {c.method!r}: the action {c.action} has '
      f'{", ".join(TAMPERING[c.action])}'
    )
  if c.smallest_mm > c.largest_mm:
    raise UserError(
      f'config.tamper.smallest_mm = {c.smallest_mm:g}: is above largest_mm = {c.largest_mm:g}'
    )
  if config.data.source not in SOURCES_OF_SERIES:
    raise UserError(
      f'config.data.source = {config.data.source!r}: series come from '
      f'{", ".join(SOURCES_OF_SERIES)}'
    )


def _holds(rule: Rule, value: Any) -> bool:
  try:
    return bool(rule.holds(value))
  except (TypeError, ValueError):
    return False


_REQUIRED_PATHS = {
  'generate': ('generate.checkpoint',),
  'predict': ('checkpoint', 'input'),
  'evaluate': ('checkpoint',),
  'export': ('checkpoint',),
  'detect': ('input',),
  'recalibrate': ('input',),
  'explain': ('input',),
}
_READ_NO_DATA = (
  *('generate', 'predict', 'export', 'benchmark', 'detect', 'recalibrate', 'explain'),
  *('phantom_series', 'forensics', 'forensics_bench'),
)


def _check_type(key: str, value: Any) -> None:
  """Raises UserError where a value is of another type than its key's."""
  row = KEYS[key]
  whole = row.kind is float and type(value) is int
  unset = value is None and row.default is None
  if type(value) is not row.kind and not whole and not unset:
    raise UserError(
      f'config.{key} = {value!r}: must be {row.kind.__name__}, not {type(value).__name__}'
    )


_ALWAYS_READ = ('task', 'seed', 'distributed', 'dry_run', 'mesh.', 'runtime.')
_DATA = ('data.', 'phantom.', 'split.')
_LOOP = ('train.log_every', 'train.steps_at_once')
_CLASSIFIER = ('augment.', 'model.', 'train.')
_GENERATORS = tuple(f'{name}.' for name in GENERATORS)
_LIMITS = (
  'data.max_pixels',
  *(f'detection.{k}' for k in ('seconds_per_file', 'decoder_mib', 'workers')),
)
_FILES = tuple(
  f'data.{key}'
  for key in (
    'source',
    'path',
    'labels_csv',
    'classes',
    'patient_folders',
    'stream',
    'synthetic_ok',
  )
)
_JUDGING = (*_LIMITS, 'detection.false_alarm_rate', 'fake_prevalence', 'detector', 'input')
# Of the images that a task takes by `data.`: keys that some sources alone read.
_OF_SOURCES = {
  'phantom.': ('phantom',),
  'data.labels_csv': ('dicom',),
  'data.synthetic_ok': ('dicom',),
  'data.patient_folders': ('folders',),
  'data.classes': ('folders', 'dicom'),
}
# What each task reads, by how a key begins.
_READ: dict[str, tuple[str, ...]] = {
  'classifier': (*_DATA, *_CLASSIFIER),
  **{name: (*_DATA, *_LOOP, f'{name}.') for name in GENERATORS},
  'generate': (*_DATA, 'generate.'),
  # A network brings its own view of images; only the phantom is made in `data.image_size`.
  'evaluate': (*_FILES, *_LIMITS, 'data.image_size', 'phantom.', 'split.', 'checkpoint'),
  'predict': (*_LIMITS, 'checkpoint', 'input'),
  'export': ('checkpoint',),
  'study': (*_DATA, *_CLASSIFIER, 'gan.', 'generate.', 'study.'),
  'benchmark': ('data.', *_CLASSIFIER, 'gan.', 'benchmark.'),
  'detector': (*_DATA, *_LOOP, *_GENERATORS, 'detection.', 'explain.', 'fake_prevalence'),
  'phantom_series': ('phantom.', 'data.image_size'),
  'tamper': (
    *('phantom.', 'tamper.', 'data.source', 'data.path', 'data.image_size', 'data.max_pixels'),
    'data.synthetic_ok',
  ),
  'forensics': (
    *('phantom.', 'forensics.', 'data.path', 'data.max_pixels', 'data.synthetic_ok'),
    *(*_LOOP, 'detection.false_alarm_rate'),
  ),
  'forensics_bench': (
    *('phantom.', 'forensics.', 'forensics_bench.', 'data.path', 'data.max_pixels'),
    *(*_LOOP, 'data.synthetic_ok'),
  ),
  'detect': (*_JUDGING, 'detection.maps'),
  'recalibrate': (*_JUDGING, 'data.patient_folders', 'data.synthetic_ok', 'split.'),
  'explain': (*_LIMITS, 'fake_prevalence', 'detector', 'input', 'explain.', 'checkpoint'),
  'detector_bench': (
    *(*_DATA, *_CLASSIFIER, *_GENERATORS),
    *('detection.', 'bench.', 'explain.', 'fake_prevalence'),
  ),
}
