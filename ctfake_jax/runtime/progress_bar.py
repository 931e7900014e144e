"""Progress on long work: its stages; a bar on a terminal, a line every half minute in a file."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30
PATIENCE = 10.0  # seconds, for work that is mostly short


def bar(
  title: str,
  items: Iterable | None = None,
  *,
  start: int = 0,
  total: int | None = None,
  hidden: bool = False,
  patience: float = 0.0,
) -> tqdm:
  """Over `items`, or moved on by its `update`; `start` of `total` is done already.

  Nothing is shown of work that ends within `patience` seconds.
  """
  on_terminal = sys.stderr.isatty()
  return tqdm(
    items,
    desc=title,
    initial=start,
    total=total,
    disable=hidden,
    delay=patience,
    mininterval=0.5 if on_terminal else SECONDS_BETWEEN_LINES,
    dynamic_ncols=on_terminal,
    ncols=None if on_terminal else 160,
    file=sys.stderr if on_terminal else _Lines(),
  )


def stage(name: str) -> None:
  """Says that a part of a task begins."""
  print(f'--- {name}', flush=True)


class _Lines:
  """Standard error for a bar that cannot overwrite itself: every state is a line of its own."""

  def write(self, text: str) -> None:
    if text.strip():
      sys.stderr.write(text.strip() + '\n')

  def flush(self) -> None:
    sys.stderr.flush()
