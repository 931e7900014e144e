"""What all report pages share: templates, pictures inside the page, files read with care.

All text that came from files is hostile: the templates escape it.
"""

import base64
import contextlib
import json
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import jinja2
from matplotlib.figure import Figure

from ctfake_jax.report import words
from ctfake_jax.types import UserError

_DPI = 150
_PNG = b'\x89PNG\r\n\x1a\n'
_FILTERS = (
  *('percent', 'percent_interval', 'number', 'number_interval'),
  *('count', 'millions', 'gigabytes', 'p_equation', 'duration'),
)
Rows = list[dict[str, Any]]


def write(path: Path, template: str, **content: Any) -> Path:
  """Renders a template of this package to `path`, whole or not at all."""
  page = _template(template).render(**content)
  temporary = path.with_name(f'.{path.name}.tmp')
  # File names that were no Unicode arrive as lone surrogates, which UTF-8 refuses.
  temporary.write_bytes(page.encode('utf-8', 'replace'))
  temporary.replace(path)
  return path


def read_json(path: Path) -> dict:
  """A table of keys; UserError where the file is missing or damaged."""
  try:
    content = json.loads(path.read_text('utf-8'))
  except FileNotFoundError:
    raise UserError(
      f'{path.name} is missing: a report needs the workdir of a finished run'
    ) from None
  except ValueError as error:
    raise UserError(f'{path.name} is damaged ({error}): run it again') from None
  if not isinstance(content, dict):
    raise UserError(f'{path.name} holds no table of keys: run it again')
  return content


def _template(template: str) -> jinja2.Template:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  for name in _FILTERS:
    environment.filters[name] = getattr(words, name)
  return environment.get_template(template)


def save(figure: Figure, path: Path) -> str | None:
  """Draws a plot into a PNG; returns it as a data URI."""
  with warnings.catch_warnings():
    # A class name in a script that the font lacks: the tables still show it.
    warnings.filterwarnings('ignore', 'Glyph .* missing from font', UserWarning)
    figure.savefig(path, dpi=_DPI)
  return picture(path)


def picture(path: Path) -> str | None:
  """The PNG as a data URI; None where there is none."""
  content = path.read_bytes() if path.is_file() else b''
  if not content.startswith(_PNG):
    return None
  return 'data:image/png;base64,' + base64.b64encode(content).decode()


def read_rows(path: Path) -> Rows:
  """Rows of a metrics.jsonl; a torn line is passed over, a missing file has none."""
  rows = []
  for line in path.read_text('utf-8').splitlines() if path.is_file() else ():
    with contextlib.suppress(json.JSONDecodeError):
      rows.append(json.loads(line))
  return rows


def command(config: dict, name: str) -> str:
  """A command with every key of the config; folders are left out, they may bear names."""
  flags = [
    f'--config.{key}={shlex.quote(_flag_value(value))}'
    for key, value in _leaves(config)
    if value is not None and value != '' and key != 'task'
  ]
  return ' \\\n  '.join(
    [f'python launch.py --config=configs/{name}.py --workdir=NEW_FOLDER', *flags]
  )


def _flag_value(value: Any) -> str:
  if isinstance(value, str):
    path = PurePath(value)
    return f'YOUR_PATH/{path.name}' if len(path.parts) > 1 else value
  return str(tuple(value) if isinstance(value, list) else value)


def _leaves(tree: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value
