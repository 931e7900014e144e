"""The study's report: one page that opens without a network, for radiologist and engineer alike.

In go JSON and PNG files of a study's workdir, out come `report.html`, with all pictures inside,
and its plots in `figures/`. No number is computed here that results.json does not hold, save
shares of a confusion. All text that came from files is hostile: the template escapes it.
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

from ctfake_jax.report import plots, tables, words
from ctfake_jax.types import UserError

_DPI = 150
_PNG = b'\x89PNG\r\n\x1a\n'
_SECTIONS = (
  *('data', 'baselines', 'classifiers', 'best', 'dcgan', 'originals', 'deepfakes'),
  *('fall', 'controls', 'per_image'),
)
_FILTERS = (
  *('percent', 'percent_interval', 'number', 'number_interval'),
  *('count', 'millions', 'gigabytes', 'p_equation', 'duration'),
)
_TABLES = (
  *('classifiers', 'baselines', 'per_class', 'trial', 'readings'),
  *('scores', 'images_needed', 'quality'),
)


def write(workdir: Path) -> Path:
  """Draws the plots and writes `workdir/report.html`; returns its path.

  Raises:
    UserError: results.json or config.json is missing, damaged or not a study's.
  """
  results, record = _read_study(workdir)
  headline, sentences = words.verdict(results['fall'], results['controls'])
  page = _template().render(
    results=results,
    record=record,
    headline=headline,
    sentences=sentences,
    best=words.name(results['best'], words.NETWORKS),
    groups=words.GROUPS.get(results['baselines']['split_by'], 'groups'),
    method=words.name(results['fall']['method'], words.METHODS),
    tables={name: getattr(tables, name)(results) for name in _TABLES},
    plots=_plots(workdir, results),
    faces=_faces(workdir, list(results['data']['classes'])),
    progress=_progress(workdir, results['dcgan'].get('best_step')),
    training_seconds=_training_seconds(results),
    command=_command(record['config']),
  )
  path = workdir / 'report.html'
  temporary = path.with_name('.report.html.tmp')
  # File names that were no Unicode arrive as lone surrogates, which UTF-8 refuses.
  temporary.write_bytes(page.encode('utf-8', 'replace'))
  temporary.replace(path)
  return path


def _read_study(workdir: Path) -> tuple[dict, dict]:
  results, record = (_read_json(workdir / name) for name in ('results.json', 'config.json'))
  missing = [key for key in _SECTIONS if key not in results]
  if missing:
    raise UserError(
      f'results.json has no {", ".join(missing)}: a report needs the workdir of a finished study'
    )
  return results, record


def _read_json(path: Path) -> dict:
  try:
    content = json.loads(path.read_text('utf-8'))
  except FileNotFoundError:
    raise UserError(f'{path.name} is missing: a report needs the workdir of a study') from None
  except ValueError as error:
    raise UserError(f'{path.name} is damaged ({error}): run the study again') from None
  if not isinstance(content, dict):
    raise UserError(f'{path.name} holds no table of keys: run the study again')
  return content


def _template() -> jinja2.Template:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  for name in _FILTERS:
    environment.filters[name] = getattr(words, name)
  return environment.get_template('template.html')


def _plots(workdir: Path, results: dict) -> dict[str, str | None]:
  """Every plot as a data URI, None where there was nothing to draw; PNGs in `figures/`."""
  gan_rows = _rows(workdir / 'dcgan' / 'metrics.jsonl')
  figures = {
    'accuracy': plots.accuracy(results),
    'confusion': plots.confusion(results),
    'fall': plots.fall(results),
    'spectra': plots.spectra(results),
    'gan_losses': plots.gan_losses(gan_rows),
    'gan_quality': plots.gan_quality(gan_rows),
    'training': plots.training(_training_rows(workdir, results)),
  }
  (workdir / 'figures').mkdir(exist_ok=True)
  return {
    name: None if figure is None else _save(figure, workdir / 'figures' / f'plot_{name}.png')
    for name, figure in figures.items()
  }


def _save(figure: Figure, path: Path) -> str | None:
  with warnings.catch_warnings():
    # A class name in a script that the font lacks: the tables still show it.
    warnings.filterwarnings('ignore', 'Glyph .* missing from font', UserWarning)
    figure.savefig(path, dpi=_DPI)
  return _picture(path)


def _picture(path: Path) -> str | None:
  """The PNG as a data URI; None where there is none."""
  content = path.read_bytes() if path.is_file() else b''
  if not content.startswith(_PNG):
    return None
  return 'data:image/png;base64,' + base64.b64encode(content).decode()


def _training_rows(workdir: Path, results: dict) -> dict[str, list[plots.Rows]]:
  return {
    key: [
      _rows(workdir / 'classifiers' / key / f'fold{fold}' / 'metrics.jsonl')
      for fold in range(row.get('folds', 1))
    ]
    for key, row in results['classifiers'].items()
  }


def _rows(path: Path) -> plots.Rows:
  """Rows of a metrics.jsonl; a torn line is passed over, a missing file has none."""
  rows = []
  for line in path.read_text('utf-8').splitlines() if path.is_file() else ():
    with contextlib.suppress(json.JSONDecodeError):
      rows.append(json.loads(line))
  return rows


def _faces(workdir: Path, class_names: list[str]) -> list[dict[str, Any]]:
  """Grids of real and fake images of each class."""
  folder = workdir / 'figures'
  return [
    {'name': name, **{kind: _picture(folder / f'{kind}_{i}.png') for kind in ('real', 'fake')}}
    for i, name in enumerate(class_names)
  ]


def _progress(workdir: Path, best_step: int | None) -> list[dict[str, Any]]:
  """The generator's first and best sample grids; the last where the best has none."""
  grids = {int(p.stem.rpartition('_')[2]): p for p in workdir.glob('dcgan/samples/step_*.png')}
  if not grids:
    return []
  shown = dict.fromkeys((min(grids), best_step if best_step in grids else max(grids)))
  return [{'step': words.count(step), 'picture': _picture(grids[step])} for step in shown]


def _training_seconds(results: dict) -> float:
  runs = [*results['classifiers'].values(), results['dcgan']]
  return sum(run.get('train_seconds') or 0 for run in runs)


def _command(config: dict) -> str:
  """A command with every key of the config; folders are left out, they may bear names."""
  flags = [
    f'--config.{key}={shlex.quote(_flag_value(value))}'
    for key, value in _leaves(config)
    if value is not None and value != '' and key != 'task'
  ]
  return ' \\\n  '.join(['python launch.py --config=configs/study.py --workdir=NEW_FOLDER', *flags])


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
