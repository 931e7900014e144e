"""The study's report: one page that opens without a network, for radiologist and engineer alike.

In go JSON and PNG files of a study's workdir, out come `report.html`, with all pictures inside,
and its plots in `figures/`. No number is computed here that results.json does not hold, save
shares of a confusion. All text that came from files is hostile: the template escapes it.
"""

from pathlib import Path
from typing import Any

from ctfake_jax.report import page, plots, tables, words
from ctfake_jax.types import UserError

_SECTIONS = (
  *('data', 'baselines', 'classifiers', 'best', 'dcgan', 'originals', 'deepfakes'),
  *('fall', 'controls', 'per_image'),
)
_TABLES = (
  *('classifiers', 'baselines', 'per_class', 'trial', 'readings'),
  *('scores', 'required_sample_size', 'quality', 'repetitions'),
)


def write(workdir: Path) -> Path:
  """Draws the plots and writes `workdir/report.html`; returns its path.

  Raises:
    UserError: results.json or config.json is missing, damaged or not a study's.
  """
  results, record = _read_study(workdir)
  headline, sentences = words.verdict(results['fall'], results['controls'])
  return page.write(
    workdir / 'report.html',
    'study.html',
    results=results,
    record=record,
    headline=headline,
    sentences=sentences,
    best=words.name(results['best'], words.NETWORKS),
    groups=words.GROUPS.get(results['baselines']['split_by'], 'groups'),
    tables={name: getattr(tables, name)(results) for name in _TABLES},
    plots=_plots(workdir, results),
    faces=_faces(workdir, list(results['data']['classes'])),
    progress=_progress(workdir, results['dcgan'].get('best_step')),
    training_seconds=_training_seconds(results),
    command=page.command(record['config'], 'study'),
  )


def _read_study(workdir: Path) -> tuple[dict, dict]:
  results, record = (page.read_json(workdir / name) for name in ('results.json', 'config.json'))
  missing = [key for key in _SECTIONS if key not in results]
  if missing:
    raise UserError(
      f'results.json has no {", ".join(missing)}: a report needs the workdir of a finished study'
    )
  return results, record


def _plots(workdir: Path, results: dict) -> dict[str, str | None]:
  """Every plot as a data URI, None where there was nothing to draw; PNGs in `figures/`."""
  gan_rows = page.read_rows(workdir / 'dcgan' / 'metrics.jsonl')
  figures = {
    'accuracy': plots.accuracy(results),
    'confusion': plots.confusion(results),
    'fall': plots.fall(results),
    'spectra': plots.spectra(results),
    'gan_losses': plots.gan_losses(gan_rows),
    'gan_quality': plots.gan_quality(gan_rows, results['dcgan'].get('best_step')),
    'training': plots.training(_training_rows(workdir, results)),
  }
  (workdir / 'figures').mkdir(exist_ok=True)
  return {
    name: None if figure is None else page.save(figure, workdir / 'figures' / f'plot_{name}.png')
    for name, figure in figures.items()
  }


def _training_rows(workdir: Path, results: dict) -> dict[str, list[page.Rows]]:
  return {
    key: [
      page.read_rows(workdir / 'classifiers' / key / f'fold{fold}' / 'metrics.jsonl')
      for fold in range(row.get('folds', 1))
    ]
    for key, row in results['classifiers'].items()
  }


def _faces(workdir: Path, class_names: list[str]) -> list[dict[str, Any]]:
  """Grids of real and fake images of each class."""
  folder = workdir / 'figures'
  return [
    {'name': name, **{kind: page.picture(folder / f'{kind}_{i}.png') for kind in ('real', 'fake')}}
    for i, name in enumerate(class_names)
  ]


def _progress(workdir: Path, best_step: int | None) -> list[dict[str, Any]]:
  """The generator's first and best sample grids; the last where the best has none."""
  grids = {int(p.stem.rpartition('_')[2]): p for p in workdir.glob('dcgan/samples/step_*.png')}
  if not grids:
    return []
  shown = dict.fromkeys((min(grids), best_step if best_step in grids else max(grids)))
  return [{'step': words.count(step), 'picture': page.picture(grids[step])} for step in shown]


def _training_seconds(results: dict) -> float:
  runs = [*results['classifiers'].values(), results['dcgan']]
  return sum(run.get('train_seconds') or 0 for run in runs)
