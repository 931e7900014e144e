"""The task `export`: a trained network as one file that runs where JAX does, without this package.

The file is a serialised `jax.export` artefact: StableHLO with the weights inside, for any batch
size, lowered for CPU, CUDA and TPU. `export.json` beside it says what goes in and comes out.
"""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from ctfake_jax.config.keys import Config
from ctfake_jax.inference import classifier as inference
from ctfake_jax.inference import generator as sampling
from ctfake_jax.models.ops import platform
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.types import UserError
from ctfake_jax.workdir import files as workdir_lib

PLATFORMS = ('cpu', 'cuda', 'tpu')
FILE = 'model.jax_export'


def run(config: Config, workdir: Path) -> dict:
  """Writes model.jax_export and export.json of the classifier or generator in config.checkpoint."""
  workdir_lib.check_same_command(workdir, config)
  source = Path(config.checkpoint)
  is_generator = 'frechet_validation' in workdir_lib.read_json(source / 'results.json')
  artefact, facts = (_generator if is_generator else _classifier)(source)
  serialised = artefact.serialize()
  workdir_lib.record_command(workdir, config)
  path = workdir / FILE
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(serialised)
  results = {
    **facts,
    'platforms': list(artefact.platforms),
    'sha256': hashlib.sha256(serialised).hexdigest(),
  }
  workdir_lib.write_json(workdir / 'export.json', results)
  return results


def _classifier(source: Path) -> tuple[jax_export.Exported, dict]:
  trained = inference.load(source)
  variables = mesh_lib.to_host(trained.variables)
  size = trained.config.data.image_size

  def classify(images):
    """Class probabilities f32[b, c] of images f32[b, size, size, 1] in [-1, 1]."""
    return jax.nn.softmax(inference.forward(trained.model, variables, images)[0])

  images = jax.ShapeDtypeStruct((_batch(), size, size, 1), jnp.float32)
  data = trained.config.data
  facts = {
    'kind': 'classifier',
    'inputs': [{'images': f'f32[b, {size}, {size}, 1] in [-1, 1]'}],
    'outputs': [{'probabilities': f'f32[b, {len(trained.class_names)}]'}],
    'class_names': list(trained.class_names),
    'preprocessing': {
      'unit': trained.unit,
      'window_center_hu': data.window_center_hu,
      'window_width_hu': data.window_width_hu,
      'grey_range': data.grey_range,
      'aspect': data.aspect,
      'image_size': size,
    },
  }
  return _exported(classify, images), facts


def _generator(source: Path) -> tuple[jax_export.Exported, dict]:
  trained = sampling.load(source)
  if trained.config.task == 'autoencoder':
    raise UserError(
      f'config.checkpoint = {source}: an autoencoder rebuilds images, it has no samples'
    )
  sampler, variables = trained.sampler, mesh_lib.to_host(trained.sampler.variables)
  size = trained.config.data.image_size

  def generate(latent, labels):
    """Images f32[b, size, size, 1] in [-1, 1] from latents f32[b, d] and labels i32[b]."""
    return sampler.generator.apply(variables, latent, labels, train=False)[0]

  batch = _batch()
  latent = jax.ShapeDtypeStruct((batch, sampler.latent), jnp.float32)
  labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
  facts = {
    'kind': 'generator',
    'inputs': [{'latent': f'f32[b, {sampler.latent}], standard normal'}, {'labels': 'i32[b]'}],
    'outputs': [{'images': f'f32[b, {size}, {size}, 1] in [-1, 1]'}],
    'class_names': list(trained.class_names),
    'unit': trained.unit,
  }
  return _exported(generate, latent, labels), facts


def _exported(function, *arguments) -> jax_export.Exported:
  with platform.every_platform(True):
    return jax_export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)


def _batch() -> Any:
  return jax_export.symbolic_shape('b')[0]
