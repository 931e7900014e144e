"""Every task by its name in the config."""

from collections.abc import Callable
from pathlib import Path

import ml_collections

from ctfake_jax import benchmark, detect, evaluate, explain, export, generate, predict, study
from ctfake_jax.detector import making, recalibration
from ctfake_jax.detector_bench import running
from ctfake_jax.train import classifier, generator

TASKS: dict[str, Callable[[ml_collections.ConfigDict, Path], dict]] = {
  'classifier': classifier.run,
  **dict.fromkeys(generator.FAMILIES, generator.run),
  'generate': generate.run,
  'evaluate': evaluate.run,
  'predict': predict.run,
  'export': export.run,
  'study': study.run,
  'benchmark': benchmark.run,
  'detector': making.run,
  'detect': detect.run,
  'recalibrate': recalibration.run,
  'explain': explain.run,
  'detector_bench': running.run,
}
