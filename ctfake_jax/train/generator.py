"""Training a generator of any family on the training part alone.

A family is a module of this package (`gan`, `vae`, `diffusion`, `autoencoder`) with

- `build(config, classes)`: its networks; `.generator` maps (latents f[b, .latent], labels) to
  images; an autoencoder's rebuilds images,
- `init_state(networks, size, seed)`: a state on the host with `step`, `first_bad_step`,
  `parameter_counts()` and `ema`, the averaged {params, batch_stats} of the generator,
- `make_train_step(networks, config)`: the pure step.

Its keys are the config's section of the same name.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from ctfake_jax.config.keys import Config
from ctfake_jax.data import dataset, splits
from ctfake_jax.data.class_mix import class_counts, labels_in_mix
from ctfake_jax.data.fingerprints import identity
from ctfake_jax.data.image_grids import save_grid
from ctfake_jax.data.loader import open_feed
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.data.splits import Split
from ctfake_jax.evaluation import baselines
from ctfake_jax.evaluation.sample_quality.measure import frechet_distance
from ctfake_jax.evaluation.sample_quality.reference_extractor import phantom_extractor
from ctfake_jax.inference.generator import make_sampler
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.runtime import streams
from ctfake_jax.train import autoencoder, diffusion, gan, loop, vae
from ctfake_jax.types import ImageSet
from ctfake_jax.workdir import files as workdir_lib

FAMILIES: dict[str, ModuleType] = {
  'gan': gan,
  'vae': vae,
  'diffusion': diffusion,
  'autoencoder': autoencoder,
}
# Below this share of the reals' pairwise distance the fixed latents give one image: collapse.
COLLAPSED_DIVERSITY = 0.2
PREVIEW_PER_CLASS = 8


def run(config: Config, workdir: Path) -> dict:
  """The tasks of `FAMILIES`: data, split, training on the training part."""
  images, config = dataset.load(config)
  parts = splits.split(images, config.split, config.split.fold)
  workdir_lib.record_config(workdir, config, identity(images, Preprocess.from_config(config.data)))
  workdir_lib.write_json(workdir / 'split.json', parts.as_json(images))
  results = {**train_generator(config, images, parts, workdir), 'data': baselines.describe(images)}
  workdir_lib.write_results(workdir, results)
  return results


def train_generator(config: Config, images: ImageSet, parts: Split, workdir: Path) -> dict:
  """Trains on `parts.train`, keeps the generator nearest to `parts.val`; writes results.json."""
  workdir_lib.record_config(workdir, config, identity(images, Preprocess.from_config(config.data)))
  train, val = images.take(parts.train), images.take(parts.val)
  batch_size = config.generator.batch_size
  loop.check_batch_size(f'{config.task}.batch_size', batch_size, len(train))
  networks = FAMILIES[config.task].build(config, len(images.class_names))
  state, progress = _train(config, networks, train, val, workdir)
  result = {
    'best_step': progress.best_step,
    'frechet_validation': -progress.best_score,
    **loop.costs(progress, config.generator.batch_size),
    'parameters': state.parameter_counts(),
    'train_images': len(train),
    'class_counts': class_counts(train.labels, len(train.class_names)).tolist(),
  }
  workdir_lib.write_results(workdir, result)
  return result


def _train(config: Config, networks: Any, train: ImageSet, val: ImageSet, workdir: Path):
  family, c, mesh = FAMILIES[config.task], config.generator, mesh_lib.data_mesh()
  return loop.train(
    name=f'{config.task} {workdir.name}',
    workdir=workdir,
    schedule=loop.Schedule.of(config.train, c.updates, c.eval_every),
    keep=c.keep_checkpoints,
    seed=config.seed,
    state=family.init_state(networks, config.data.image_size, config.seed),
    train_step=family.make_train_step(networks, config),
    feed=open_feed(mesh, train, c.batch_size, config.seed),
    evaluate=_evaluator(config, networks, train, val, workdir),
  )


def _evaluator(config: Config, networks: Any, train: ImageSet, val: ImageSet, workdir: Path):
  """Judges a generator by the texture Frechet distance (not FID) to validation reals.

  Leaves a grid of samples.

  The fakes come in the class mix of those reals.
  """
  extract = phantom_extractor(config.data.image_size)
  classes = len(val.class_names)
  real_features = extract(val.images)
  real_diversity = diversity(val.images, val.labels, classes, seed=config.seed)
  mix = class_counts(val.labels, classes)
  labels = labels_in_mix(mix, config.generator.quality_images)
  learnt = class_counts(train.labels, classes)
  preview = np.repeat(np.arange(classes, dtype=np.int32), PREVIEW_PER_CLASS)

  def evaluate(state, step):
    """Score (minus the distance) and metrics; leaves the sample grid of this step."""
    make = _maker(config, networks, mesh_lib.to_host(state.ema), learnt, val)
    fakes = make(labels, streams.seed(config.seed, 'evaluation'))
    shown = make(preview, streams.seed(config.seed, 'preview'))  # by all processes together
    if mesh_lib.is_main_process():
      save_grid(workdir / 'samples' / f'step_{step:06d}.png', shown, columns=PREVIEW_PER_CLASS)
    distance = frechet_distance(extract(fakes), real_features)
    spread = diversity(fakes, labels, classes, seed=config.seed) / real_diversity
    if spread < COLLAPSED_DIVERSITY:
      print(f'step {step}: mode collapse, fakes vary {spread:.0%} as much as reals')
    return -distance, {'frechet': distance, 'diversity': spread}

  return evaluate


def _maker(
  config: Config, networks: Any, variables: dict, learnt: np.ndarray, val: ImageSet
) -> Callable:
  """(labels i32[n], seed) -> images f32[n, h, w, 1]: samples, or images of `val` rebuilt."""
  if config.task == 'autoencoder':
    return functools.partial(autoencoder.rebuilt_of, networks.generator, variables, val)
  return make_sampler(networks.generator, variables, networks.latent, learnt).sample


def diversity(
  images: Float32[np.ndarray, 'n h w 1'],
  labels: Int[np.ndarray, ' n'],
  classes: int,
  seed: int,
) -> float:
  """Mean root-mean-square difference of random pairs within a class."""
  rng = streams.generator(seed, 'pairs')
  differences = []
  for label in range(classes):
    rows = np.nonzero(labels == label)[0]
    if len(rows) > 1:
      a, b = rng.permutation(rows)[: len(rows) // 2 * 2].reshape(2, -1)
      differences.append(np.sqrt(((images[a] - images[b]) ** 2).mean((1, 2, 3))).mean())
  return float(np.mean(differences))
