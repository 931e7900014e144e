"""The task `evaluate`: a trained classifier on all of a labelled data set.

The data section of the config names the images; the checkpoint brings its own preprocessing. Files
are decoded as `predict` and `detect` decode theirs, in processes with limits.
Class names must be those that the checkpoint was trained on.
"""

import dataclasses
from pathlib import Path

import numpy as np

from ctfake_jax.config.keys import Config
from ctfake_jax.data import dataset, grey_range, splits
from ctfake_jax.data.fingerprints import digests
from ctfake_jax.data.sources.sandboxed import Limits
from ctfake_jax.evaluation import baselines, metrics
from ctfake_jax.inference import classifier as inference
from ctfake_jax.types import ImageSet, UserError
from ctfake_jax.workdir import files as workdir_lib


def run(config: Config, workdir: Path) -> dict:
  """Writes results.json: accuracy with its interval over groups, per class, AUROC, confusion."""
  workdir_lib.check_same_command(workdir, config)
  trained = inference.load(Path(config.checkpoint))
  source = dataset.open_source(config)
  if trained.view.grey is None:
    remedy = 'the network was not trained on such: train one with data.grey_range=auto'
    grey_range.refuse_narrow(grey_range.find(source), remedy)
  limits = Limits.from_config(config) if dataset.root_of_files(config.data) else None
  images = dataset.gather(source, trained.view, unit=trained.unit, limits=limits)
  images = in_order_of(images, trained.class_names)
  known = sum(name in trained.trained_on for name in digests(images))
  if known:
    print(
      f'careful: {known} of {len(images)} images are among those that the network was trained on '
      'or chosen by; the accuracy is not that on new images'
    )
  by, groups = splits.group(images, config.split)
  results = {
    'data': baselines.describe(images),
    'groups_by': by,
    'trained_on': known,
    **metrics.classification_report(
      images.labels,
      trained.predict(images.images),
      groups=groups,
      class_names=images.class_names,
    ),
  }
  workdir_lib.record_command(workdir, config)
  workdir_lib.write_results(workdir, results)
  return results


def in_order_of(images: ImageSet, class_names: tuple[str, ...]) -> ImageSet:
  """The images with labels that mean what the checkpoint's mean; UserError for other classes."""
  if set(images.class_names) != set(class_names):
    raise UserError(
      f'config.data: classes {", ".join(images.class_names)}, but the checkpoint knows '
      f'{", ".join(class_names)}: name the folders alike'
    )
  order = np.array([class_names.index(name) for name in images.class_names], np.int32)
  records = tuple(dataclasses.replace(r, label=int(order[r.label])) for r in images.records)
  return dataclasses.replace(
    images, labels=order[images.labels], records=records, class_names=class_names
  )
