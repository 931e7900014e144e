"""Configs as JSON and back, what differs between two, and what may differ."""

import dataclasses
from typing import Any

from ctfake_jax.config.keys import Config
from ctfake_jax.config.names import RENAMED
from ctfake_jax.config.tree import KEYS, from_leaves, leaves, nested
from ctfake_jax.config.validation import check_values
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
  return {**dict(leaves(Config())), **{RENAMED.get(k, k): v for k, v in leaves(config)}}


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


def for_stage(config: Config, task: str, *sections: str) -> Config:
  """A copy for the stage `task` of a study: sections that it does not read are at their defaults.

  A stage is then finished or resumable whatever is changed for the others. How often it logs stays.
  """
  default = Config()
  others = {
    field.name: getattr(default, field.name)
    for field in dataclasses.fields(config)
    if dataclasses.is_dataclass(getattr(default, field.name))
    and field.name not in (*_DATA_SECTIONS, *sections)
  }
  if 'train' in others:
    others['train'] = dataclasses.replace(default.train, log_every=config.train.log_every)
  return dataclasses.replace(config, task=task, **others)


def as_dict(config: Config) -> dict:
  """Nested plain dict, ready for JSON."""
  return nested({key: _plain(value) for key, value in leaves(config)})


def from_dict(saved: dict) -> Config:
  """The config that `as_dict` wrote, on top of today's defaults; raises as `check_values`."""
  values = {
    RENAMED.get(k, k): tuple(v) if isinstance(v, list) else v
    for k, v in leaves(saved)
    if v is not None
  }
  if unknown := sorted(values.keys() - KEYS.keys()):
    raise UserError(
      f'a recorded config has keys that this version does not know ({", ".join(unknown)}): use the '
      'version that wrote it, or run its command again'
    )
  values = {**dict(leaves(Config())), **values}
  check_values(values)
  return from_leaves(values)


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value
