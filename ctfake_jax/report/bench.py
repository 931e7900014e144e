"""The bench's report: methods against held-out generators, in one table.

In go results.json and config.json of a bench's workdir, out comes `report.html`.
"""

from pathlib import Path

from ctfake_jax.report import page, words
from ctfake_jax.types import UserError


def write(workdir: Path) -> Path:
  """Writes `workdir/report.html` of the methods measured so far; returns its path.

  Raises:
    UserError: results.json or config.json is missing, damaged or not a bench's.
  """
  results, record = (page.read_json(workdir / name) for name in ('results.json', 'config.json'))
  if 'units' not in results:
    raise UserError('results.json has no units: this report needs the workdir of a detector bench')
  return page.write(
    workdir / 'report.html',
    'bench.html',
    results=results,
    record=record,
    units=[(unit, words.name(unit, words.FAMILIES)) for unit in results['units']],
    rows=[(words.name(key, words.BENCH_METHODS), row) for key, row in results['rows'].items()],
    winners=[words.name(key, words.BENCH_METHODS) for key in _winners(results)],
    command=page.command(record['config'], 'detector_bench'),
  )


def _winners(results: dict) -> list[str]:
  return (results.get('winners') or {}).get('names', [])
