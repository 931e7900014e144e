"""What values must satisfy, as a record and to be run.

`validate` runs before any work; `check_record` is the part of it that a record of a finished run
must satisfy, too.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import ml_collections

from ctfake_jax.config.keys import defaults, leaves
from ctfake_jax.config.names import (
  BENCH_METHODS,
  CLASSIFIERS,
  EDITS,
  FAMILIES,
  GENERATORS,
  METHODS_ON_REALS,
  MODELS,
  TASKS,
)
from ctfake_jax.types import UserError

FEWEST_DEEPFAKES = 40
EVERY_FOLD = -1


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a value must satisfy, in words and in code."""

  allowed: str
  holds: Callable[[Any], bool]


def _one_of(*names: str) -> Rule:
  return Rule('one of ' + ', '.join(names), lambda v: v in names)


def _some_of(*names: str) -> Rule:
  return Rule(
    'one or more of ' + ', '.join(names) + ', each once',
    lambda v: len(v) > 0 and len(set(v)) == len(v) and set(v) <= set(names),
  )


def _between(low: float, high: float) -> Rule:
  return Rule(f'a number from {low:g} to {high:g}', lambda v: math.isfinite(v) and low <= v <= high)


def _at_least(low: float) -> Rule:
  return Rule(f'a number of at least {low:g}', lambda v: math.isfinite(v) and v >= low)


def _is_grey_range(value: str) -> bool:
  return value in ('type', 'auto') or bool(parse_grey_range(value))


def parse_grey_range(text: str) -> tuple[float, float, int] | None:
  """Low, high and maximum of `data.grey_range`; None where they are not in it, or make no range."""
  found = re.fullmatch(r'(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)/(\d+)', text)
  if not found:
    return None
  low, high, most = float(found[1]), float(found[2]), int(found[3])
  return (low, high, most) if low < high <= most else None


_POWER_OF_TWO = Rule('a power of two from 32 to 256', lambda v: 32 <= v <= 256 and v & (v - 1) == 0)
_MULTIPLE_OF_4 = Rule('a multiple of 4', lambda v: v > 0 and v % 4 == 0)
_SIDES = {
  **dict.fromkeys(('gan', 'vae', 'study', 'detector', 'detector_bench'), _POWER_OF_TWO),
  **dict.fromkeys(('diffusion', 'autoencoder'), _MULTIPLE_OF_4),
}

RULES: dict[str, Rule] = {
  'task': _one_of(*TASKS),
  'seed': _between(0, 2**31 - 1),
  'distributed': _one_of('auto', 'on', 'off'),
  'data.source': _one_of('phantom', 'folders', 'dicom', 'tfds'),
  'data.image_size': _between(16, 1024),
  'data.max_pixels': _at_least(1),
  'data.window_width_hu': _between(1, 65536),
  'data.window_center_hu': _between(-2048, 65536),
  'data.grey_range': Rule(
    'type, auto, or LOW-HIGH/MAXIMUM in stored values, such as 0-4095/65535', _is_grey_range
  ),
  'data.aspect': _one_of('crop', 'letterbox', 'stretch'),
  'phantom.patients': _at_least(8),
  'phantom.slices_per_patient': _between(1, 64),
  'phantom.size': Rule('0 or from 16 to 512', lambda v: v == 0 or 16 <= v <= 512),
  'phantom.seed': _between(0, 2**31 - 1),
  'split.by': _one_of('auto', 'patient', 'duplicates', 'slice'),
  'split.duplicate_correlation': _between(0.5, 1),
  'split.folds': Rule('0 or from 3 to 100', lambda v: v == 0 or 3 <= v <= 100),
  'split.fold': Rule('-1 or a whole number of at least 0', lambda v: v >= EVERY_FOLD),
  'split.val_fraction': _between(0.01, 0.5),
  'split.test_fraction': _between(0.01, 0.5),
  'augment.shift': _between(0, 0.5),
  'augment.scale': _between(0, 0.5),
  'augment.rotate_degrees': _between(0, 180),
  'augment.sharp': _between(0, 1),
  'augment.intensity': _between(0, 0.9),
  'augment.mixup': _between(0, 10),
  'model.name': _one_of(*MODELS),
  'model.dtype': _one_of('float32', 'bfloat16'),
  'model.views': Rule('1, 5 or 9', lambda v: v in (1, 5, 9)),
  'model.cnn.widths': Rule(
    'one or more positive whole numbers',
    lambda v: len(v) > 0 and all(isinstance(w, int) and w > 0 for w in v),
  ),
  'model.cnn.convs': Rule(
    'one or more whole numbers from 1 to 8',
    lambda v: len(v) > 0 and all(isinstance(n, int) and 1 <= n <= 8 for n in v),
  ),
  'model.cnn.stem_stride': _between(1, 4),
  'model.cnn.dropout': _between(0, 0.95),
  'train.batch_size': _at_least(2),
  'train.epochs': _at_least(1),
  'train.optimizer': _one_of('adamw', 'adam', 'sgd'),
  'train.learning_rate': _between(1e-8, 10),
  'train.schedule': _one_of('cosine', 'constant'),
  'train.warmup_epochs': _at_least(0),
  'train.weight_decay': _between(0, 1),
  'train.label_smoothing': _between(0, 0.9),
  'train.ema_decay': _between(0, 0.99999),
  'train.eval_every_epochs': _at_least(1),
  'train.choose': _one_of('loss', 'last'),
  'train.early_stop_evals': _at_least(0),
  'train.log_every': _at_least(1),
  'train.steps_at_once': _at_least(0),
  'train.keep_checkpoints': _at_least(1),
  'gan.name': _one_of('dcgan', 'resize_gan'),
  'gan.width': _between(1, 512),
  'gan.latent': _between(1, 4096),
  'gan.label_loss': _between(0, 100),
  'gan.learning_rate_generator': _between(1e-8, 1),
  'gan.learning_rate_discriminator': _between(1e-8, 1),
  'gan.schedule': _one_of('cosine', 'constant'),
  'gan.beta1': _between(0, 0.999),
  'vae.width': _between(1, 512),
  'vae.latent': _between(1, 4096),
  'vae.beta': _between(0, 1000),
  'vae.learning_rate': _between(1e-8, 1),
  'diffusion.width': Rule('a multiple of 8', lambda v: v > 0 and v % 8 == 0),
  'diffusion.learning_rate': _between(1e-8, 1),
  'diffusion.warmup_updates': _at_least(0),
  'diffusion.sample_steps': _between(1, 1000),
  'autoencoder.width': _between(1, 512),
  'autoencoder.learning_rate': _between(1e-8, 1),
  'generate.method': _one_of('samples', *METHODS_ON_REALS),
  'generate.count': _between(1, 10**7),
  'generate.field_of_view_mm': Rule(
    '0 or a number from 50 to 1000', lambda v: v == 0 or 50 <= v <= 1000
  ),
  'study.classifiers': _some_of(*CLASSIFIERS),
  'benchmark.models': _some_of('dcgan', *CLASSIFIERS),
  'benchmark.modes': _some_of('train', 'infer'),
  'benchmark.steps': _at_least(1),
  'benchmark.repeats': _at_least(1),
  'detection.families': _some_of(*FAMILIES),
  'detection.fakes_to_learn': _at_least(8),
  'detection.fakes_per_family': _at_least(8),
  'detection.width': _between(1, 512),
  'detection.batch_size': Rule('an even number of at least 4', lambda v: v >= 4 and v % 2 == 0),
  'detection.updates': _at_least(1),
  'detection.learning_rate': _between(1e-8, 1),
  'detection.weight_decay': _between(0, 1),
  'detection.ema_decay': _between(0, 0.99999),
  'detection.eval_every': _at_least(1),
  'detection.keep_checkpoints': _at_least(1),
  'detection.dtype': _one_of('float32', 'bfloat16'),
  'detection.seconds_per_file': _between(0.1, 3600),
  'detection.decoder_mib': _at_least(256),
  'detection.workers': _between(0, 256),
  'detection.false_alarm_rate': Rule(
    '0 or a number from 1e-05 to 0.5', lambda v: v == 0 or 1e-5 <= v <= 0.5
  ),
  'prior_fake': _between(1e-6, 1 - 1e-6),
  'bench.methods': _some_of(*BENCH_METHODS),
  'bench.network_updates': _at_least(1),
  'bench.winners_seeds': _at_least(1),
  'explain.count': _at_least(1),
  'explain.superpixels': _between(2, 10000),
  'explain.lime_samples': _between(16, 10**6),
  'study.folds': _at_least(1),
  'study.seeds': _between(1, 100),
  'study.label_shuffles': _at_least(0),
}
for _name in GENERATORS:
  RULES |= {
    f'{_name}.batch_size': _at_least(2),
    f'{_name}.updates': _at_least(1),
    f'{_name}.ema_decay': _between(0, 0.99999),
    f'{_name}.eval_every': _at_least(1),
    f'{_name}.quality_images': _at_least(8),
    f'{_name}.keep_checkpoints': _at_least(1),
    f'{_name}.dtype': _one_of('float32', 'bfloat16'),
  }
# Each of eight members takes its turns.
RULES['autoencoder.batch_size'] = Rule('a multiple of 8', lambda v: v > 0 and v % 8 == 0)


def check_record(config: ml_collections.ConfigDict) -> None:
  """Raises UserError naming a key that is unknown, or whose type or range is wrong.

  What a record of a finished run must satisfy: its paths may be gone, or left out on purpose.
  """
  values = dict(leaves(config))
  _check_keys_and_types(values)
  for key, rule in RULES.items():
    if not _holds(rule, values[key]):
      raise UserError(f'config.{key} = {values[key]!r}: must be {rule.allowed}')


def validate(config: ml_collections.ConfigDict) -> None:
  """Raises UserError naming what keeps the config's task from running: `check_record` and more."""
  check_record(config)
  values = dict(leaves(config))
  for needs, keys in _REQUIRED_PATHS.items():
    if needs == config.task:
      for key in keys:
        if not values[key] and not (needs == 'generate' and values['generate.method'] in EDITS):
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
  if config.train.choose == 'last' and config.train.early_stop_evals:
    raise UserError(
      f'config.train.early_stop_evals = {config.train.early_stop_evals}: the last checkpoint is '
      'asked for; set train.choose=loss, or early_stop_evals=0'
    )
  if config.task == 'study':
    _check_study(config)
  _check_mesh(config.mesh)
  times_a_gan = config.task == 'benchmark' and 'dcgan' in config.benchmark.models
  side = _POWER_OF_TWO if times_a_gan else _SIDES.get(config.task)
  if side and not side.holds(config.data.image_size):
    raise UserError(
      f'config.data.image_size = {config.data.image_size}: the generator needs {side.allowed}'
    )


def _check_mesh(mesh: ml_collections.ConfigDict) -> None:
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


def _check_study(config: ml_collections.ConfigDict) -> None:
  """What would otherwise fail after hours."""
  folds = max(config.split.folds, 1)
  per_model = {f'study.per_model.{n}.folds': config.study.per_model[n].folds for n in CLASSIFIERS}
  for key, value in {'study.folds': config.study.folds, **per_model}.items():
    most = folds if key == 'study.folds' else config.study.folds
    if value > most:
      raise UserError(f'config.{key} = {value}: must be at most {most}')
  if config.generate.count < FEWEST_DEEPFAKES:
    raise UserError(
      f'config.generate.count = {config.generate.count}: a study needs at least '
      f'{FEWEST_DEEPFAKES} deepfakes to measure their quality'
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
  'detect': ('detector', 'input'),
  'recalibrate': ('detector', 'input'),
  'explain': ('input',),
}
_READ_NO_DATA = ('generate', 'predict', 'export', 'benchmark', 'detect', 'recalibrate', 'explain')


def _check_keys_and_types(values: dict[str, Any]) -> None:
  known = dict(leaves(defaults()))
  for key, value in values.items():
    if key not in known:
      raise UserError(f'config.{key}: unknown key; have: {", ".join(sorted(known))}')
    check_type(key, value, known[key])
  for key in known.keys() - values.keys():
    raise UserError(f'config.{key} is missing: start from ctfake_jax.config.defaults()')


def check_type(key: str, value: Any, default: Any) -> None:
  """Raises UserError where a value is of another type than its key's default."""
  number = isinstance(default, float) and type(value) is int
  if None not in (value, default) and type(value) is not type(default) and not number:
    raise UserError(
      f'config.{key} = {value!r}: must be {type(default).__name__}, not {type(value).__name__}'
    )
