"""Trained classifiers at work: load one from its workdir, run it over any number of images."""

import dataclasses
import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import Config
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.models import registry
from ctfake_jax.models.test_time_augmentation import TestTimeAugmentation
from ctfake_jax.runtime import batching
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.types import ImagesOnDisk, UserError
from ctfake_jax.workdir import checkpoints
from ctfake_jax.workdir import files as workdir_lib

TRAINED_ON = 'trained_on.json'
RANGE_SLACK = 1e-4  # of resampling in float32


@dataclasses.dataclass(frozen=True)
class Trained:
  """A classifier ready for use: `trained.view(slice)` makes its input, `predict` its output.

  Attributes:
    trained_on: `fingerprints.digests` of the images that it was trained on or chosen by.
  """

  model: nn.Module
  variables: dict
  config: Config
  class_names: tuple[str, ...]
  unit: str
  view: Preprocess
  trained_on: frozenset[str] = frozenset()

  @property
  def network(self) -> nn.Module:
    """The classifier itself, which sees one view of an image."""
    return self.model.network if isinstance(self.model, TestTimeAugmentation) else self.model

  def predict(
    self, images: Float32[np.ndarray, 'n h w 1'] | ImagesOnDisk
  ) -> Float32[np.ndarray, 'n c']:
    """Class probabilities of images in [-1, 1], of the side that it was trained on.

    Raises:
      ValueError: they have another size or range; `view` makes such images of slices.
    """
    check_view(images, self.view.size)
    return softmax(logits_and_features(self.model, self.variables, images)[0])


def check_view(images: Float32[np.ndarray, 'n h w 1'] | ImagesOnDisk, side: int) -> None:
  """Raises ValueError where images are not `side` pixels wide and high, or leave [-1, 1]."""
  if images.shape[1:] != (side, side, 1):
    raise ValueError(f'images of shape {images.shape}: the network takes [n, {side}, {side}, 1]')
  if isinstance(images, np.ndarray) and images.size and not np.abs(images).max() <= 1 + RANGE_SLACK:
    raise ValueError(
      f'images from {images.min():g} to {images.max():g}: the network takes [-1, 1], as its '
      'view makes of slices'
    )


def load(workdir: Path | str) -> Trained:
  """The best checkpoint of a finished classifier run; UserError where there is none."""
  workdir = Path(workdir)
  saved = workdir_lib.read_json(workdir / 'config.json')
  results = workdir_lib.read_json(workdir / 'results.json')
  if saved['config']['task'] not in ('classifier', 'study') or 'best_step' not in results:
    raise UserError(f'{workdir} holds no trained classifier: name the workdir of such a run')
  config = config_lib.from_dict(saved['config'])
  class_names = tuple(saved['class_names'])
  model = registry.classifier(config.model, len(class_names))
  variables = mesh_lib.replicate(checkpoints.restore_part(workdir, results['best_step'], 'ema'))
  view = Preprocess.from_config(config.data)
  seen = workdir / TRAINED_ON
  trained_on = workdir_lib.read_json(seen)['digests'] if seen.exists() else ()
  return Trained(model, variables, config, class_names, saved['unit'], view, frozenset(trained_on))


def logits_and_features(
  model: nn.Module, variables: dict, images: Float32[np.ndarray, 'n h w 1'] | ImagesOnDisk
) -> tuple[Float32[np.ndarray, 'n c'], Float32[np.ndarray, 'n d']]:
  """Logits and pooled features, in batches of one shape over the mesh."""
  return batching.map_batches(lambda v, _, batch: forward(model, v, batch), variables, images)


def softmax(logits: Float32[np.ndarray, 'n c']) -> Float32[np.ndarray, 'n c']:
  """Class probabilities."""
  return np.asarray(jax.nn.softmax(logits, axis=-1))


@functools.partial(jax.jit, static_argnums=0)
def forward(
  model: nn.Module, variables: dict, images: Float32[Array, 'b h w 1']
) -> tuple[Float32[Array, 'b c'], Float32[Array, 'b d']]:
  """Logits and pooled features."""
  logits, features = model.apply(variables, images, train=False)
  return logits.astype(jnp.float32), features['pre_logits']
