"""The detector's report: how often it errs, where it breaks, and why it says what it says.

In go results.json, config.json and explanations/*.png of a detector's workdir, out come
`report.html` and its plot in `figures/`.
"""

from pathlib import Path

from ctfake_jax.report import page, plots, words
from ctfake_jax.types import UserError

_SECTIONS = ('data', 'audit', 'threshold', 'families', 'robustness', 'reasons')


def write(workdir: Path) -> Path:
  """Draws the plot and writes `workdir/report.html`; returns its path.

  Raises:
    UserError: results.json or config.json is missing, damaged or not a detector's.
  """
  results, record = (page.read_json(workdir / name) for name in ('results.json', 'config.json'))
  missing = [key for key in _SECTIONS if key not in results]
  if missing:
    raise UserError(
      f'results.json has no {", ".join(missing)}: this report needs the workdir of a detector'
    )
  (workdir / 'figures').mkdir(exist_ok=True)
  return page.write(
    workdir / 'report.html',
    'detector.html',
    results=results,
    record=record,
    families=[(words.name(key, words.FAMILIES), row) for key, row in results['families'].items()],
    audit=[(words.name(key, words.FAMILIES), row) for key, row in results['audit'].items()],
    changes=[(words.name(key, words.CHANGES), rows) for key, rows in results['robustness'].items()],
    robustness=page.save(
      plots.robustness(results['robustness']), workdir / 'figures' / 'plot_robustness.png'
    ),
    reasons=[
      (words.name(row['family'], words.FAMILIES), row, page.picture(workdir / row['picture']))
      for row in results['reasons']['images']
    ],
    command=page.command(record['config'], 'detector'),
  )
