"""The report's plots, drawn off screen. In go results.json and metric rows, out come figures.

Matplotlib's object interface alone: nothing is kept in its global state. Colours are Okabe & Ito's
(2008), which the colour-blind can tell apart; marker or line style says the same once more.
"""

import unicodedata
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctfake_jax.report import words
from ctfake_jax.report.page import Rows

BLUE, VERMILLION, GREEN, ORANGE = '#0072B2', '#D55E00', '#009E73', '#E69F00'
PURPLE, SKY, BLACK, GREY = '#CC79A7', '#56B4E9', '#000000', '#666666'
_CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)
_STYLES = ('-', '--', '-.', ':')
_WIDTH = 5.6
_LONGEST = 30
_MOST_CELLS_WITH_TEXT = 12


def label(text: str) -> str:
  """Text from a file made fit to draw: short, on one line, and no formula."""
  shown = ''.join(c if unicodedata.category(c)[0] != 'C' else '·' for c in text)
  shown = shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + '…'
  return shown.replace('$', r'\$')


def accuracy(results: dict) -> Figure:
  """Each classifier with its interval, and lines for what needs no network."""
  rows = list(results['classifiers'].items())
  figure, axes = _figure(1.9 + 0.34 * len(rows))
  for y, (key, row) in enumerate(rows):
    color, marker = (VERMILLION, 'D') if key == results['best'] else (BLUE, 'o')
    _whisker(axes, y, row, color, marker)
  names = [
    label(words.name(key, words.NETWORKS)) + (' (chosen)' if key == results['best'] else '')
    for key, _ in rows
  ]
  lines = ((GREY, ':'), (GREEN, '--'), (PURPLE, '-.'))
  for (key, title), (color, style) in zip(words.BASELINES.items(), lines):
    if key in results['baselines']:
      _baseline(axes, results['baselines'][key]['accuracy'], title, color, style)
  _accuracy_axes(axes, names)
  figure.legend(loc='outside lower left', frameon=False, fontsize=9)
  return figure


def fall(results: dict) -> Figure:
  """Originals, harmless changes, deepfakes and shuffled labels, each with its interval."""
  rows = [('Originals', results['originals'], BLUE, 'o')]
  shuffled = []
  for key, row in results['controls'].items():
    if 'points' in row:
      rows.append((label(words.control(key)), row, SKY, 's'))
    else:
      shuffled.append((label(words.control(key)), row, ORANGE, '^'))
  rows += [('Deepfakes', results['deepfakes'], VERMILLION, 'D'), *shuffled]
  figure, axes = _figure(1.3 + 0.34 * len(rows))
  for y, (_, row, color, marker) in enumerate(rows):
    _whisker(axes, y, row, color, marker)
  chance = results['baselines'].get('chance')
  if chance:
    _baseline(axes, chance['accuracy'], words.BASELINES['chance'], GREY, ':')
    figure.legend(loc='outside lower left', frameon=False, fontsize=9)
  _accuracy_axes(axes, [name for name, *_ in rows])
  return figure


def confusion(results: dict) -> Figure:
  """What the best classifier called the images of each class, in shares of the class."""
  counts = np.array(results['classifiers'][results['best']]['confusion'], float)
  names = [label(name) for name in results['data']['classes']]
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  side = min(1.9 + 0.5 * len(names), 9.0)
  figure = Figure((max(side, _WIDTH), side), layout='constrained')
  axes = figure.add_subplot()
  axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
  axes.set_xticks(range(len(names)), names, rotation=35, ha='right', rotation_mode='anchor')
  axes.set_yticks(range(len(names)), names)
  axes.set(xlabel='answer of the network', ylabel='class')
  if len(names) <= _MOST_CELLS_WITH_TEXT:
    for (row, column), share in np.ndenumerate(shares):
      color = 'white' if share > 0.5 else 'black'
      text = f'{counts[row, column]:.0f}'
      axes.text(column, row, text, ha='center', va='center', color=color)
  return figure


def spectra(results: dict) -> Figure | None:
  """Power by spatial frequency, reals and fakes; None where it was not measured."""
  curves = [results['dcgan'].get(f'spectrum_{kind}') for kind in ('real', 'fake')]
  if None in curves:
    return None
  figure, axes = _figure(3.0)
  for curve, name, color, style in zip(curves, ('real', 'fake'), _CYCLE, ('-', '--')):
    axes.plot(np.arange(1, len(curve) + 1), _numbers(curve), style, color=color, label=name)
  axes.set(xlabel='spatial frequency (cycles per image)', ylabel='power (log10)', xscale='log')
  _plain_ticks(axes, len(curves[0]))
  axes.legend(frameon=False)
  return figure


def robustness(sweeps: dict[str, Rows]) -> Figure:
  """AUROC, detection and false alarms under each harmless change; none at all is dotted."""
  unchanged = sweeps['unchanged'][0]
  shown = {key: rows for key, rows in sweeps.items() if len(rows) > 1}
  figure = Figure((_WIDTH, 1.7 * -(-len(shown) // 2) + 0.4), layout='constrained')
  grid = figure.subplots(-(-len(shown) // 2), 2, squeeze=False, sharey=True).ravel()
  curves = (
    ('auroc', 'AUROC'),
    ('detection', 'fakes above the threshold'),
    ('false_alarms', 'originals above it'),
  )
  for axes, (key, rows) in zip(grid, shown.items()):
    _calm(axes)
    strengths = [row['strength'] for row in rows]
    for (curve, title), color, style in zip(curves, (BLUE, GREEN, VERMILLION), _STYLES):
      values = _numbers([row[curve] for row in rows])
      axes.plot(strengths, values, style, color=color, marker='o', ms=3, label=title)
      axes.axhline(unchanged[curve], color=color, ls=':', lw=0.8)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel(words.name(key, words.CHANGES), fontsize=9)
  for axes in grid[len(shown) :]:
    axes.set_axis_off()
  handles, titles = grid[0].get_legend_handles_labels()
  figure.legend(handles, titles, loc='outside upper left', ncols=3, frameon=False, fontsize=9)
  return figure


def gan_losses(rows: Rows) -> Figure | None:
  """Both losses and the discriminator's accuracies over the updates; None without rows."""
  return _stacked(
    rows,
    {
      'loss': {'loss_discriminator': 'discriminator', 'loss_generator': 'generator'},
      'discriminator right': {'accuracy_real': 'on reals', 'accuracy_fake': 'on fakes'},
    },
  )


def gan_quality(rows: Rows, kept: int | None) -> Figure | None:
  """Texture Frechet distance and diversity at every evaluation; None without rows."""
  figure = _stacked(
    rows,
    {
      'Texture Fréchet distance, not FID': {'val/frechet': 'to validation reals'},
      'diversity': {'val/diversity': 'pairwise, reals = 1'},
    },
  )
  if figure and kept is not None:
    for axes in figure.axes:
      axes.axvline(kept, color='0.4', ls=':', label='kept')
      axes.legend(frameon=False, fontsize=9)
  return figure


def training(runs: dict[str, list[Rows]]) -> Figure | None:
  """Training loss and validation accuracy; one line a fold, one colour a network."""
  runs = {key: folds for key, folds in runs.items() if any(folds)}
  if not runs:
    return None
  figure, panels = _panels(2)
  for i, (key, folds) in enumerate(runs.items()):
    for fold, rows in enumerate(folds):
      for axes, metric in zip(panels, ('loss', 'val/accuracy')):
        name = label(words.name(key, words.NETWORKS)) if fold == 0 else None
        style: dict[str, Any] = {
          'color': _CYCLE[i % len(_CYCLE)],
          'ls': _STYLES[i % len(_STYLES)],
          'lw': 1.4,
        }
        steps, values = _series(rows, metric)
        style['marker'] = _dots(steps)
        axes.plot(steps, values, label=name, alpha=1 if fold == 0 else 0.4, **style)
  panels[0].set(ylabel='training loss')
  panels[1].set(ylabel='validation accuracy', xlabel='step')
  panels[0].legend(frameon=False, fontsize=9)
  return figure


def _stacked(rows: Rows, panels: dict[str, dict[str, str]]) -> Figure | None:
  """One panel a unit, one line a metric; None where no metric has a row."""
  if not any(key in row for row in rows for metrics in panels.values() for key in metrics):
    return None
  figure, axes_of = _panels(len(panels))
  for axes, (unit, metrics) in zip(axes_of, panels.items()):
    for i, (key, name) in enumerate(metrics.items()):
      steps, values = _series(rows, key)
      style: dict[str, Any] = {'ls': _STYLES[i], 'color': _CYCLE[i], 'marker': _dots(steps)}
      axes.plot(steps, values, ms=4, label=name, **style)
    axes.set(ylabel=unit)
    axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))
    axes.legend(frameon=False, fontsize=9)
  axes_of[-1].set(xlabel='update')
  return figure


def _figure(height: float) -> tuple[Figure, Axes]:
  figure = Figure((_WIDTH, height), layout='constrained')
  axes = figure.add_subplot()
  _calm(axes)
  return figure, axes


def _panels(number: int) -> tuple[Figure, list[Axes]]:
  figure = Figure((_WIDTH, 2.2 * number), layout='constrained')
  panels = list(figure.subplots(number, 1, sharex=True))
  for axes in panels:
    _calm(axes)
  return figure, panels


def _calm(axes: Axes) -> None:
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(color='0.9')
  axes.set_axisbelow(True)


def _whisker(axes: Axes, y: int, row: dict, color: str, marker: str) -> None:
  """A dot at the accuracy with its 95 % interval; the number stands beside it."""
  value = 100 * _number(row['accuracy'])
  low, high = (100 * _number(bound) for bound in row['ci95'] or (None, None))
  axes.plot([low, high], [y, y], color=color, lw=2)
  axes.plot([value], [y], marker, color=color, ms=7)


def _baseline(axes: Axes, value: float, title: str, color: str, style: str) -> None:
  name = f'{title}: {words.percent(value)}'
  axes.axvline(100 * _number(value), color=color, ls=style, lw=1.6, label=name, zorder=1)


def _accuracy_axes(axes: Axes, names: list[str]) -> None:
  axes.set_yticks(range(len(names)), names)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.set_xlim(0, 101)
  axes.set(xlabel='accuracy (%), with 95 % interval')


def _plain_ticks(axes: Axes, most: int) -> None:
  ticks = 2 ** np.arange(int(np.log2(most)) + 1)
  axes.set_xticks(ticks, [str(tick) for tick in ticks])
  axes.minorticks_off()


def _series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
  """(steps, values) of the rows that have `key`; a null is a gap in the line."""
  found = [(row['step'], row[key]) for row in rows if key in row]
  return _numbers([step for step, _ in found]), _numbers([value for _, value in found])


def _dots(steps: np.ndarray) -> str:
  """A marker for short series: a line of one point cannot be seen."""
  return 'o' if len(steps) <= 12 else ''


def _number(value: float | None) -> float:
  return np.nan if value is None else float(value)


def _numbers(values: list[float | None]) -> np.ndarray:
  return np.array([_number(value) for value in values])
