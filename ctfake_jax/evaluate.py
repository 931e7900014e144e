"""The task `evaluate`: a trained classifier on all of a labelled data set.

The data section of the config names the images; the checkpoint brings its own preprocessing.
Class names must be those that the checkpoint was trained on.
"""

from pathlib import Path

import ml_collections

from ctfake_jax import inference, metrics
from ctfake_jax import workdir as workdir_lib
from ctfake_jax.data import baselines, pipeline, splits
from ctfake_jax.types import UserError


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
  """Writes results.json: accuracy with its interval over groups, per class, AUROC, confusion."""
  trained = inference.load(Path(config.checkpoint))
  images = pipeline.gather(pipeline.open_source(config), trained.view)
  if images.class_names != trained.class_names:
    raise UserError(
      f'config.data: classes {", ".join(images.class_names)}, but the checkpoint knows '
      f'{", ".join(trained.class_names)}: name the folders alike'
    )
  by, groups = splits.group(images, config.split)
  results = {
    'data': baselines.describe(images),
    'groups_by': by,
    **metrics.classification_report(
      images.labels,
      trained.predict(images.images),
      groups=groups,
      class_names=images.class_names,
      seed=config.seed,
    ),
  }
  workdir_lib.write_json(workdir / 'results.json', results)
  return results
