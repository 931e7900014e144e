"""Images from a generator: fresh batch statistics first, then seeded samples.

A moving average of parameters has activations of its own, so the running statistics of training
do not fit it; they are measured anew over a fixed number of latents.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Key

from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import Config, GeneratorConfig
from ctfake_jax.data.class_mix import labels_in_mix
from ctfake_jax.models import layers, registry
from ctfake_jax.runtime import batching, streams
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.types import UserError
from ctfake_jax.workdir import checkpoints
from ctfake_jax.workdir import files as workdir_lib

CALIBRATION_BATCHES = 8


@dataclasses.dataclass(frozen=True)
class Sampler:
  """A generator ready to sample: its variables hold statistics that fit its parameters."""

  generator: nn.Module
  variables: dict
  latent: int
  classes: int

  def sample(self, labels: Int[np.ndarray, ' n'], seed: int) -> Float32[np.ndarray, 'n h w 1']:
    """Images in [-1, 1], one for each label; ValueError where one is no class of its training."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < self.classes:
      raise ValueError(
        f'labels from {labels.min()} to {labels.max()}: the generator knows 0 to {self.classes - 1}'
      )
    constants = self.variables, streams.key(seed, 'samples')
    draw = functools.partial(draw_samples, self.generator, self.latent)
    return batching.map_batches(draw, constants, labels, title='sampling')


def make_sampler(
  generator: nn.Module, variables: dict, latent: int, class_counts: Int[np.ndarray, ' c']
) -> Sampler:
  """Re-estimates the batch statistics of `variables` {params, batch_stats} where it has some.

  Labels come in the mix of `class_counts`, those of the training images: other proportions
  have other statistics.
  """
  if 'batch_stats' not in variables:
    return Sampler(generator, mesh_lib.replicate(variables), latent, len(class_counts))
  labels = labels_in_mix(class_counts, CALIBRATION_BATCHES * batching.BATCH_SIZE)
  mixed = streams.generator(0, 'batch statistics, labels').permutation(labels)
  stream = streams.key(0, 'batch statistics')
  stats = [
    _batch_statistics(generator, variables, _latents(stream, i, latent), jnp.asarray(asked))
    for i, asked in enumerate(np.split(mixed, CALIBRATION_BATCHES))
  ]
  mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *stats)
  fitting = {'params': variables['params'], 'batch_stats': mean}
  return Sampler(generator, mesh_lib.replicate(fitting), latent, len(class_counts))


@dataclasses.dataclass(frozen=True)
class TrainedGenerator:
  """A sampler with what its images mean.

  Attributes:
    unit: of the training images, 'HU' or 'grey'.
    class_counts: of the training images.
    step: of the checkpoint.
    digest: SHA-256 of the generator's parameters.
    encoder: averaged variables of a VAE's encoder, None for other generators.
    spacing_mm: of rows and columns of the training images, their median; None where unknown.
  """

  sampler: Sampler
  config: Config
  class_names: tuple[str, ...]
  unit: str
  class_counts: Int[np.ndarray, ' c']
  step: int
  digest: str
  encoder: dict | None
  spacing_mm: tuple[float, float] | None = None

  @property
  def family(self) -> str:
    """Its name: that of the adversarial pair, or of the task."""
    return self.config.generator_name

  @property
  def conditional(self) -> bool:
    """Whether it was trained with labels."""
    return getattr(self.section, 'conditional', False)

  @property
  def section(self) -> GeneratorConfig:
    """The part of the config that it was trained by."""
    return self.config.generator


def load(workdir: Path | str) -> TrainedGenerator:
  """The best generator of a finished training; UserError where there is none."""
  workdir = Path(workdir)
  saved = workdir_lib.read_json(workdir / 'config.json')
  results = workdir_lib.read_json(workdir / 'results.json')
  if not {'frechet_validation', 'class_counts'} <= results.keys():
    raise UserError(f'{workdir} holds no trained generator of this version: name its training')
  config = config_lib.from_dict(saved['config'])
  class_names, step = tuple(saved['class_names']), results['best_step']
  generator, latent = registry.generator(config, len(class_names))
  variables = checkpoints.restore_part(workdir, step, 'ema')
  class_counts = np.array(results['class_counts'])
  sampler = make_sampler(generator, variables, latent, class_counts)
  digest = hashlib.sha256(b''.join(leaf.tobytes() for leaf in jax.tree.leaves(variables)))
  vae = config.task == 'vae'
  encoder = checkpoints.restore_part(workdir, step, 'ema_encoder') if vae else None
  known = saved.get('spacing_mm')  # not in records of earlier trainings
  spacing_mm = (float(known[0]), float(known[1])) if known else None
  return TrainedGenerator(
    sampler,
    config,
    class_names,
    saved['unit'],
    class_counts,
    step,
    digest.hexdigest(),
    encoder,
    spacing_mm,
  )


def _latents(stream: jax.Array, batch: int, latent: int) -> jax.Array:
  return jax.random.normal(jax.random.fold_in(stream, batch), (batching.BATCH_SIZE, latent))


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw_samples(
  generator: nn.Module,
  latent: int,
  constants: tuple[dict, Key[Array, '']],
  number: Int[Array, ''],
  labels: Int[Array, ' b'],
) -> Float32[Array, 'b h w 1']:
  """Images of batch `number`; `constants` are (variables, random stream).

  They are made with the running statistics of the variables.
  """
  variables, stream = constants
  latents = jax.random.normal(jax.random.fold_in(stream, number), (len(labels), latent))
  return generator.apply(variables, latents, labels, train=False)[0]


@functools.partial(jax.jit, static_argnums=0)
def _batch_statistics(generator, variables, latent, labels) -> dict:
  """Statistics of this one batch: what an update from zero adds, momentum undone."""
  zeros = jax.tree.map(jnp.zeros_like, variables['batch_stats'])
  _, updates = generator.apply(
    {'params': variables['params'], 'batch_stats': zeros},
    latent,
    labels,
    train=True,
    mutable=['batch_stats'],
  )
  return jax.tree.map(lambda s: s / (1 - layers.MOMENTUM), updates['batch_stats'])
