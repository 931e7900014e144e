"""The task `recalibrate`: a detector fitted to another site's own originals, whichever it is."""

from pathlib import Path

from ctfake_jax.config.keys import Config
from ctfake_jax.detector import recalibration
from ctfake_jax.forensics import bundle
from ctfake_jax.forensics import recalibration as forensic_recalibration


def run(config: Config, workdir: Path) -> dict:
  """By the kind of detector in `config.detector`; empty, the one that comes with the package."""
  if not config.detector or bundle.is_one(Path(config.detector)):
    return forensic_recalibration.run(config, workdir)
  return recalibration.run(config, workdir)
