"""The keys of `config.keys` by their dotted names, and nested values as dotted ones and back."""

import dataclasses
import types
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from ctfake_jax.config.keys import Config
from ctfake_jax.config.value_rules import Rule


@dataclasses.dataclass(frozen=True)
class Key:
  """A row of the configuration.

  Attributes:
    default: its value where nobody gives one.
    kind: the type of its value, where it is not None.
    rule: what a value must satisfy.
    meaning: in words, with the unit.
    may_change: whether it may differ when a run goes on in its workdir.
  """

  default: Any
  kind: type
  rule: Rule
  meaning: str
  may_change: bool


def _rows(values: Any, prefix: str = '') -> Iterator[tuple[str, Key]]:
  """Dotted keys of a section, those of the sections in it included."""
  hints = get_type_hints(type(values))
  for field in dataclasses.fields(values):
    default = getattr(values, field.name)
    if dataclasses.is_dataclass(default):
      yield from _rows(default, f'{prefix}{field.name}.')
    else:
      yield prefix + field.name, Key(default, _kind(hints[field.name]), **field.metadata)


def _kind(annotation: Any) -> type:
  """The type int of `int | None`, tuple of `tuple[int, ...]`."""
  if isinstance(annotation, types.UnionType):
    return next(kind for kind in get_args(annotation) if kind is not types.NoneType)
  return get_origin(annotation) or annotation


KEYS: dict[str, Key] = dict(_rows(Config()))


def leaves(tree: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Dotted keys and values of a Config, or of a nested mapping as JSON and ConfigDict have it."""
  fields = dataclasses.is_dataclass(tree)
  names = [field.name for field in dataclasses.fields(tree)] if fields else list(tree)
  for name in names:
    value = getattr(tree, name) if fields else tree[name]
    if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
      yield from leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
  """Plain dicts in dicts of dotted keys, what `leaves` undoes."""
  made: dict[str, Any] = {}
  for key, value in values.items():
    *sections, name = key.split('.')
    place = made
    for section in sections:
      place = place.setdefault(section, {})
    place[name] = value
  return made


def from_leaves(values: Mapping[str, Any], like: Any = None, prefix: str = '') -> Any:
  """The Config of dotted keys, or the section of `like`'s class; a key that lacks is as there."""
  like = Config() if like is None else like
  own = {}
  for field in dataclasses.fields(like):
    default = getattr(like, field.name)
    if dataclasses.is_dataclass(default):
      own[field.name] = from_leaves(values, default, f'{prefix}{field.name}.')
    else:
      own[field.name] = values.get(prefix + field.name, default)
  return type(like)(**own)
