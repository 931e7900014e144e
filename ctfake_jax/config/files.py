"""The files in `configs/`: those of a checkout, or those that came with an installed package."""

import importlib.metadata
import runpy
from pathlib import Path

import ml_collections

from ctfake_jax.types import UserError

_CHECKOUT = Path(__file__).parents[2] / 'configs'
_INSTALLED = 'share/ctfake_jax/configs'  # as pyproject.toml has it


def named() -> dict[str, Path]:
  """Every config file by its name, sorted."""
  if _CHECKOUT.is_dir():
    found = list(_CHECKOUT.glob('*.py'))
  else:
    files = importlib.metadata.files('ctfake-jax') or []
    found = [Path(str(f.locate())) for f in files if f.parent.as_posix().endswith(_INSTALLED)]
  return {path.stem: path.resolve() for path in sorted(found)}


def path_of(name: str) -> str:
  """The path of a config file that may be given by its name alone, `study` for configs/study.py."""
  return str(named().get(name, name))


def get_config(name: str) -> ml_collections.ConfigDict:
  """A fresh config of the file of this name or path; its keys are set as those of a dict.

  Raises:
    UserError: there is no such file.
  """
  path = Path(path_of(name))
  if not path.is_file():
    raise UserError(f'{name}: no such config; there are {", ".join(named())}')
  return runpy.run_path(str(path))['get_config']()


def summary(path: Path) -> str:
  """The first line of a config file's docstring."""
  return path.read_text(encoding='utf-8').split('"""')[1].strip().splitlines()[0]
