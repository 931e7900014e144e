"""The model card of a detector (Mitchell et al. 2019, arXiv:1810.03993), as Markdown."""

from pathlib import Path

import jinja2
import ml_collections

TEMPLATE = Path(__file__).parent / 'card.md'


def write(config: ml_collections.ConfigDict, results: dict, workdir: Path) -> None:
  """Leaves MODEL_CARD.md."""
  environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 (Markdown, and no text of files)
  text = environment.from_string(TEMPLATE.read_text()).render(
    config=config,
    r=results,
    t=results['threshold'],
    phantom=config.data.source == 'phantom',
    pc=lambda share: f'{100 * share:.1f} %',
  )
  (workdir / 'MODEL_CARD.md').write_text(text)
