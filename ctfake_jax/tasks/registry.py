"""Every task by its name in the config; its module is imported when it is asked for."""

import importlib
from collections.abc import Callable
from pathlib import Path

import ml_collections

from ctfake_jax import config as config_lib
from ctfake_jax.config import GENERATORS
from ctfake_jax.config.keys import Config
from ctfake_jax.data import dataset
from ctfake_jax.models.ops import platform
from ctfake_jax.types import ImageSet
from ctfake_jax.workdir import files as workdir_files

MODULES: dict[str, str] = {
  'classifier': 'train.classifier',
  **dict.fromkeys(GENERATORS, 'train.generator'),
  'generate': 'fakes.generation',
  'evaluate': 'tasks.evaluate',
  'predict': 'tasks.predict',
  'export': 'tasks.export',
  'study': 'tasks.study.run',
  'benchmark': 'tasks.benchmark',
  'detector': 'detector.build',
  'detect': 'tasks.detect',
  'recalibrate': 'tasks.recalibrate',
  'explain': 'tasks.explain',
  'detector_bench': 'detector_bench.run',
  'phantom_series': 'tasks.phantom_series',
  'tamper': 'tampering.run',
  'forensics': 'forensics.build',
  'forensics_bench': 'forensics.bench',
}


def find(task: str) -> Callable[[Config, Path], dict]:
  """The function (config, workdir) -> results of a task that `config.validate` let pass."""
  return importlib.import_module(f'ctfake_jax.{MODULES[task]}').run


def run(config: ml_collections.ConfigDict, workdir: Path | str) -> dict:
  """Runs the config's task in a workdir that no other run uses; returns its results.

  Raises:
    UserError: a key has no sense, or the workdir belongs to another run.
  """
  return run_resolved(_checked(config), Path(workdir))


def run_resolved(config: Config, workdir: Path) -> dict:
  """As `run`, of a config that `config.validate` let pass."""
  if config.input:
    workdir_files.refuse_inside(workdir, Path(config.input))
  with workdir_files.locked(workdir), platform.reference_ops(config.runtime.reference_ops):
    return find(config.task)(config, workdir)


def load_images(config: ml_collections.ConfigDict) -> ImageSet:
  """The labelled images that `config.data` names; raises UserError as `run` does."""
  return dataset.load(_checked(config))[0]


def _checked(config: ml_collections.ConfigDict) -> Config:
  resolved = config_lib.resolve(config)
  config_lib.validate(resolved)
  return resolved
