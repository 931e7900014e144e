"""The exported file against the checkpoint it came from, run by a process without this package."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_images

from ctfake_jax.config import resolve
from ctfake_jax.data import splits
from ctfake_jax.inference import classifier as inference
from ctfake_jax.inference import generator as sampling
from ctfake_jax.tasks import export
from ctfake_jax.train import classifier, generator
from ctfake_jax.types import UserError

# What the README tells users; not a word of this package.
RUN = """
import sys
import numpy as np
from jax import export

with open(sys.argv[1] + '/model.jax_export', 'rb') as file:
  model = export.deserialize(bytearray(file.read()))
inputs = np.load(sys.argv[1] + '/inputs.npz', allow_pickle=False)
np.save(sys.argv[1] + '/outputs.npy', model.call(*[inputs[key] for key in inputs]))
assert not any(name.startswith('ctfake_jax') for name in sys.modules)
"""


def run_elsewhere(folder: Path, **inputs: np.ndarray) -> np.ndarray:
  np.savez(folder / 'inputs.npz', allow_pickle=False, **inputs)
  subprocess.run([sys.executable, '-c', RUN, str(folder)], check=True, cwd=folder)
  return np.load(folder / 'outputs.npy', allow_pickle=False)


def exported(config, checkpoint: Path, folder: Path) -> dict:
  config.checkpoint = str(checkpoint)
  export.run(resolve(config), folder)
  artefact = jax.export.deserialize(bytearray((folder / export.FILE).read_bytes()))
  assert 'stablehlo.case' in artefact.mlir_module(), 'one form for all platforms'
  return json.loads((folder / 'export.json').read_text())


@pytest.mark.slow
def test_a_classifier_gives_the_same_probabilities(tiny_config, tmp_path):
  images = make_images(48)
  tiny_config.model.cnn.widths = (16, 16)
  tiny_config.train.epochs = 1
  parts = splits.split(images, resolve(tiny_config).split, 0)
  classifier.train_classifier(resolve(tiny_config), images, parts, tmp_path / 'run')
  # Traced for this platform alone, which must not get into the file.
  inference.load(tmp_path / 'run').predict(images.images[:1])
  facts = exported(tiny_config, tmp_path / 'run', tmp_path / 'out')
  assert facts['class_names'] == list(images.class_names)
  assert facts['platforms'] == ['cpu', 'cuda', 'tpu']
  for batch in (1, 5):
    ours = inference.load(tmp_path / 'run').predict(images.images[:batch])
    theirs = run_elsewhere(tmp_path / 'out', images=images.images[:batch])
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.slow
def test_a_generator_gives_the_same_images(tiny_config, tmp_path):
  images = make_images(48, size=32)
  tiny_config.task = 'gan'
  tiny_config.data.image_size = 32
  tiny_config.gan.width = 4
  tiny_config.gan.batch_size = 8
  tiny_config.gan.updates = tiny_config.gan.eval_every = 2
  tiny_config.gan.quality_images = 16
  parts = splits.split(images, resolve(tiny_config).split, 0)
  generator.train_generator(resolve(tiny_config), images, parts, tmp_path / 'run')
  facts = exported(tiny_config, tmp_path / 'run', tmp_path / 'out')
  assert facts['kind'] == 'generator'
  sampler = sampling.load(tmp_path / 'run').sampler
  latent = np.random.default_rng(0).normal(size=(3, sampler.latent)).astype(np.float32)
  labels = np.array([0, 1, 1], np.int32)
  ours, _ = sampler.generator.apply(
    sampler.variables, jnp.asarray(latent), jnp.asarray(labels), train=False
  )
  theirs = run_elsewhere(tmp_path / 'out', latent=latent, labels=labels)
  np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_a_folder_without_a_network_is_named(tiny_config, tmp_path):
  tiny_config.checkpoint = str(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='nowhere'):
    export.run(resolve(tiny_config), tmp_path / 'out')
