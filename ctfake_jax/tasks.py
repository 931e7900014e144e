"""Every task by its name in the config."""

from collections.abc import Callable
from pathlib import Path

import ml_collections

from ctfake_jax.train import classifier

TASKS: dict[str, Callable[[ml_collections.ConfigDict, Path], object]] = {
  'classifier': classifier.run,
}
