"""The configuration: keys with their defaults and rules, and what a run records of it.

A file in `configs/` starts from `defaults()` and overrides a few; the command line overrides those
(`--config.train.epochs=5`). `resolve` checks and freezes: everything below a task reads a `Config`.
"""

from ctfake_jax.config.config_dict import defaults, resolve
from ctfake_jax.config.files import get_config
from ctfake_jax.config.keys import Config
from ctfake_jax.config.names import (
  BENCH_METHODS,
  CLASSIFIERS,
  EDITS,
  EVERY_FOLD,
  FAMILIES,
  GENERATORS,
  METHODS_ON_REALS,
  MODELS,
  RENAMED,
  TASKS,
)
from ctfake_jax.config.saved import (
  SCHEDULES,
  as_dict,
  changed_keys,
  differing_keys,
  for_stage,
  from_dict,
)
from ctfake_jax.config.tree import KEYS, leaves
from ctfake_jax.config.validation import FEWEST_DEEPFAKES, unread, unread_by_task, validate
from ctfake_jax.config.value_rules import parse_grey_range

__all__ = [
  'BENCH_METHODS',
  'CLASSIFIERS',
  'EDITS',
  'EVERY_FOLD',
  'FAMILIES',
  'FEWEST_DEEPFAKES',
  'GENERATORS',
  'KEYS',
  'METHODS_ON_REALS',
  'MODELS',
  'RENAMED',
  'SCHEDULES',
  'TASKS',
  'Config',
  'as_dict',
  'changed_keys',
  'defaults',
  'differing_keys',
  'for_stage',
  'from_dict',
  'get_config',
  'leaves',
  'parse_grey_range',
  'resolve',
  'unread',
  'unread_by_task',
  'validate',
]
