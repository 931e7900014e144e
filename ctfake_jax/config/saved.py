"""Configs as JSON and back, what differs between two, and what may differ."""

from typing import Any

import ml_collections

from ctfake_jax.config.keys import KEYS, defaults, leaves
from ctfake_jax.config.names import RENAMED
from ctfake_jax.config.rules import check_record, check_type
from ctfake_jax.types import UserError

# Length of a training -> its schedule: under a falling one, what is done had other rates than the
# steps of a straight run of the new length.
SCHEDULES = {'train.epochs': 'train.schedule', 'gan.updates': 'gan.schedule'}

_DATA_SECTIONS = ('data', 'phantom', 'split', 'mesh')


def differing_keys(old: dict, new: dict) -> list[str]:
  """Dotted keys whose values differ between two resolved configs.

  A key that was unknown when a config was saved had its default.
  """
  a, b = (_resolved(config) for config in (old, new))
  return sorted(k for k in a.keys() | b.keys() if _plain(a.get(k)) != _plain(b.get(k)))


def _resolved(config: dict) -> dict[str, Any]:
  """Dotted keys by today's names, with defaults for those that the config lacks."""
  return {**dict(leaves(defaults())), **{RENAMED.get(k, k): v for k, v in leaves(config)}}


def changed_keys(old: dict, new: dict) -> list[str]:
  """Those of the `differing_keys` that may not change while a run is resumed."""
  return [key for key in differing_keys(old, new) if not _may_change(key, old, new)]


def _may_change(key: str, old: dict, new: dict) -> bool:
  if key not in SCHEDULES:
    return key in KEYS and KEYS[key].may_change
  configs = [_resolved(config) for config in (old, new)]
  constant = all(values[SCHEDULES[key]] == 'constant' for values in configs)
  # A warmup is cut to half of a short training.
  whole = key != 'train.epochs' or all(2 * v['train.warmup_epochs'] <= v[key] for v in configs)
  return constant and whole


def for_stage(config: ml_collections.ConfigDict, task: str, *sections: str):
  """A copy for the stage `task` of a study: sections that it does not read are at their defaults.

  A stage is then finished or resumable whatever is changed for the others.
  """
  own = ml_collections.ConfigDict(config.to_dict())
  for name, default in defaults().items():
    if isinstance(default, ml_collections.ConfigDict) and name not in (*_DATA_SECTIONS, *sections):
      own[name] = default
  own.task = task
  return own


def as_dict(config: ml_collections.ConfigDict) -> dict:
  """Nested plain dict, ready for JSON."""
  return {
    k: as_dict(v) if isinstance(v, ml_collections.ConfigDict) else _plain(v)
    for k, v in config.items()
  }


def from_dict(saved: dict) -> ml_collections.ConfigDict:
  """The config that `as_dict` wrote, on top of today's defaults; raises as `check_record`."""
  config, known = defaults(), dict(leaves(defaults()))
  values = {
    RENAMED.get(k, k): tuple(v) if isinstance(v, list) else v
    for k, v in leaves(saved)
    if v is not None
  }
  if unknown := sorted(values.keys() - known.keys()):
    raise UserError(
      f'a recorded config has keys that this version does not know ({", ".join(unknown)}): use the '
      'version that wrote it, or run its command again'
    )
  for key, value in values.items():
    check_type(key, value, known[key])
  config.update_from_flattened_dict(values)
  check_record(config)
  return config


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value
