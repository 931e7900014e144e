"""Model cards of detectors (Mitchell et al. 2019, arXiv:1810.03993), as Markdown."""

from pathlib import Path
from typing import Any

import jinja2

from ctfake_jax.config.keys import Config
from ctfake_jax.detector import bundle

TEMPLATES = Path(__file__).parent


def write(config: Config, results: dict, workdir: Path) -> None:
  """Leaves MODEL_CARD.md of a detector made with `config`."""
  _render('card.md', config, workdir, config=config, r=results, t=results['threshold'])


def write_site(config: Config, figures: dict, workdir: Path) -> None:
  """Leaves that of a recalibrated one, with the `figures` of its directory."""
  site = figures['recalibration']
  content = {
    's': site,
    't': site['threshold'],
    'source_site': figures['source_site'],
    'says': bundle.ALARMS,
  }
  _render('site_card.md', config, workdir, **content)


def _render(name: str, made_with: Config, workdir: Path, **content: Any) -> None:
  environment = jinja2.Environment(
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # noqa: S701 (Markdown, and no text of files)
    keep_trailing_newline=True,
  )
  text = environment.from_string((TEMPLATES / name).read_text()).render(
    phantom=made_with.data.source == 'phantom',
    pc=lambda share: f'{100 * share:.1f} %',
    **content,
  )
  (workdir / 'MODEL_CARD.md').write_text(text)
