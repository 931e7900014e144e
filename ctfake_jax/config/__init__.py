"""The resolved configuration: keys with their defaults, rules, and what a run records of it.

`defaults()` lists every key once. A file in `configs/` starts from it and overrides a few; the
command line overrides those (`--config.train.epochs=5`).
"""

from ctfake_jax.config.keys import KEYS, defaults, leaves, parse_grey_range
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
from ctfake_jax.config.rules import (
  FEWEST_DEEPFAKES,
  check_record,
  unread,
  validate,
)
from ctfake_jax.config.saved import (
  SCHEDULES,
  as_dict,
  changed_keys,
  differing_keys,
  for_stage,
  from_dict,
)

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
  'as_dict',
  'changed_keys',
  'check_record',
  'defaults',
  'differing_keys',
  'for_stage',
  'from_dict',
  'leaves',
  'parse_grey_range',
  'unread',
  'validate',
]
