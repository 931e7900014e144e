"""The model card of a forensic detector (Mitchell et al. 2019, arXiv:1810.03993), as Markdown."""

from pathlib import Path

import jinja2

from ctfake_jax.forensics.bundle import ForensicDetector

TEMPLATE = Path(__file__).parent / 'card.md'
NAME_LENGTH = 12  # hexadecimal digits of a hash that are shown


def write(detector: ForensicDetector, workdir: Path) -> None:
  """Leaves MODEL_CARD.md."""
  environment = jinja2.Environment(
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # noqa: S701 (Markdown; names of files are shown as code)
    keep_trailing_newline=True,
    trim_blocks=True,
  )
  text = environment.from_string(TEMPLATE.read_text()).render(
    d=detector,
    f=detector.facts,
    levels={
      name: known.level(detector.false_alarm_rate)
      for name, known in (('slices', detector.slices), ('series', detector.series))
    },
    collections=_collections(detector.facts),
    pc=lambda share: '-' if share is None else f'{100 * share:.0f} %',
    number=lambda value: '-' if value is None else f'{value:.2f}',
  )
  (workdir / 'MODEL_CARD.md').write_text(text)


def _collections(facts: dict) -> list[dict]:
  """Series that were read, by the part that saw them; phantoms as one row each."""
  rows = []
  for part in ('learnt', 'calibrated'):
    phantoms = [s for s in facts[part] if s['name'].startswith('phantom-')]
    for source in facts[part]:
      if source not in phantoms:
        name = source['name'].replace('`', "'").replace('|', '/')
        rows.append({**source, 'part': part, 'name': name})
    if phantoms:
      slices = sum(source['slices'] for source in phantoms)
      name = f'{len(phantoms)} phantoms'
      rows.append({'part': part, 'name': name, 'slices': slices, 'sha256': ''})
  return rows
