"""What a value may be, in words and in code."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a value must satisfy, in words and in code."""

  allowed: str
  holds: Callable[[Any], bool]


EITHER = Rule('True or False', lambda v: isinstance(v, bool))
TEXT = Rule('a text', lambda v: isinstance(v, str))
TEXTS = Rule('texts', lambda v: all(isinstance(text, str) for text in v))
MULTIPLE_OF_8 = Rule('a multiple of 8', lambda v: v > 0 and v % 8 == 0)


def one_of(*names: str) -> Rule:
  """One of these names."""
  return Rule('one of ' + ', '.join(names), lambda v: v in names)


def some_of(*names: str) -> Rule:
  """One or more of these names, each once."""
  return Rule(
    f"one or more of {', '.join(names)}, each once, as ('{names[0]}',)",
    lambda v: len(v) > 0 and len(set(v)) == len(v) and set(v) <= set(names),
  )


def between(low: float, high: float) -> Rule:
  """A finite number of [low, high]."""
  return Rule(f'a number from {low:g} to {high:g}', lambda v: math.isfinite(v) and low <= v <= high)


def at_least(low: float) -> Rule:
  """A finite number of at least `low`."""
  return Rule(f'a number of at least {low:g}', lambda v: math.isfinite(v) and v >= low)


def unset_or(rule: Rule) -> Rule:
  """None, or what the rule allows."""
  return Rule(f'unset or {rule.allowed}', lambda v: v is None or rule.holds(v))


def is_grey_range(value: str) -> bool:
  """Whether this is a value of `data.grey_range`."""
  return value in ('type', 'auto') or bool(parse_grey_range(value))


def parse_grey_range(text: str) -> tuple[float, float, int] | None:
  """Low, high and maximum of `data.grey_range`; None where they are not in it, or make no range."""
  found = re.fullmatch(r'(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)/(\d+)', text)
  if not found:
    return None
  low, high, most = float(found[1]), float(found[2]), int(found[3])
  return (low, high, most) if low < high <= most else None
