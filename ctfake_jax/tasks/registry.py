"""Every task by its name in the config; its module is imported when it is asked for."""

import importlib
from collections.abc import Callable
from pathlib import Path

import ml_collections

from ctfake_jax.config import GENERATORS

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
  'recalibrate': 'detector.recalibration',
  'explain': 'tasks.explain',
  'detector_bench': 'detector_bench.run',
}


def find(task: str) -> Callable[[ml_collections.ConfigDict, Path], dict]:
  """The function (config, workdir) -> results of a task that `config.validate` let pass."""
  return importlib.import_module(f'ctfake_jax.{MODULES[task]}').run
