"""Every way to make fakes, by name: samples of a generator, its versions of reals, local edits.

A family is a method and the generator that it needs. Fakes made from reals belong to the reals'
patients, so `sources` says which image each was.
"""

import dataclasses
import functools
import hashlib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from ctfake_jax import config as config_lib
from ctfake_jax.data.class_mix import rows_in_mix
from ctfake_jax.data.preprocess import from_uint8, to_uint8
from ctfake_jax.fakes import local_edits
from ctfake_jax.inference.generator import TrainedGenerator
from ctfake_jax.models import autoencoder, diffusion, registry
from ctfake_jax.runtime import batching, streams
from ctfake_jax.types import Images, ImageSet, UserError

# How far a diffusion model noises a real before it denoises it again, share of its time.
RECONSTRUCTION_TIME = 0.3
RECONSTRUCTION_STEPS = 10


@dataclasses.dataclass(frozen=True)
class Family:
  """How fakes of a kind are made.

  Attributes:
    method: 'samples' or one of `config.METHODS_ON_REALS`.
    network: the generator's name, '' where none is needed.
  """

  method: str
  network: str = ''

  @property
  def local(self) -> bool:
    """Whether a part of a real image is left as it was."""
    return self.method in config_lib.EDITS


FAMILIES: dict[str, Family] = {
  'dcgan': Family('samples', 'dcgan'),
  'resize_gan': Family('samples', 'resize_gan'),
  'vae': Family('samples', 'vae'),
  'vae_reconstruction': Family('reconstructions', 'vae'),
  'diffusion': Family('samples', 'diffusion'),
  'diffusion_reconstruction': Family('reconstructions', 'diffusion'),
  'autoencoder_reconstruction': Family('reconstructions', 'autoencoder'),
  **{kind: Family(kind) for kind in local_edits.EDITS},
}


@dataclasses.dataclass(frozen=True, repr=False)
class Fakes(Images):
  """m fakes of one family; their classes are those asked for or their sources'.

  Attributes:
    sources: int[m], rows of the reals they were made from; -1 for samples.
    masks: bool[m, h, w], what was changed; None where all was.
    donors: int[m], rows of the reals whose tissue was put in; None where there are none.
  """

  sources: Int[np.ndarray, ' n']
  masks: Bool[np.ndarray, 'n h w'] | None = None
  donors: Int[np.ndarray, ' n'] | None = None


# What the pixels of fakes hang on, below the package.
CODE = (
  *('fakes/families.py', 'fakes/local_edits.py', 'inference/generator.py', 'models'),
  *('runtime/batching.py', 'runtime/streams.py', 'data/class_mix.py', 'data/preprocess.py'),
)


@functools.cache
def code_digest() -> str:
  """SHA-256 of the sources that make fakes: an edit of any of them makes kept fakes stale."""
  package, digest = Path(__file__).parents[1], hashlib.sha256()
  for part in CODE:
    whole = package / part
    for path in sorted(whole.rglob('*.py')) if whole.is_dir() else [whole]:
      digest.update(f'{path.relative_to(package).as_posix()}\0'.encode() + path.read_bytes())
  return digest.hexdigest()


def load_or_create(path: Path, origin: str, make: Callable[[], Fakes]) -> Fakes:
  """The fakes in the npz `path` if of this origin and code, else those of `make`, put there.

  They are kept in 8 bits, so they come back in 8 bits the first time, too.
  """
  origin = f'{code_digest()} {origin}'
  found = _read(path, origin)
  if found:
    return found
  made = make()
  parts = {k: v for k, v in vars(made).items() if v is not None}
  parts['images'] = to_uint8(made.images)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.tmp')
  with open(temporary, 'wb') as file:
    np.savez_compressed(file, allow_pickle=False, origin=np.array(origin), **parts)
  temporary.replace(path)
  return dataclasses.replace(made, images=from_uint8(parts['images']))


def _read(path: Path, origin: str) -> Fakes | None:
  """Whole fakes of this origin, or None: a torn or altered file is made again."""
  try:
    with np.load(path, allow_pickle=False) as file:
      if str(file['origin']) != origin:
        return None
      parts = {key: file[key] for key in file.files if key != 'origin'}
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
    print(f'{path} is damaged: made again', flush=True)
    return None
  return Fakes(**{**parts, 'images': from_uint8(parts['images'])})


def sample(trained: TrainedGenerator, labels: Int[np.ndarray, ' n'], seed: int) -> Fakes:
  """One sample for each label; UserError for autoencoders, which have none."""
  if trained.config.task == 'autoencoder':
    raise UserError(
      'autoencoders have no samples, they rebuild images: set generate.method=reconstructions'
    )
  images = trained.sampler.sample(labels, seed)
  return Fakes(images, labels, np.full(len(labels), -1))


def from_reals(
  method: str, trained: TrainedGenerator | None, reals: ImageSet, count: int, seed: int
) -> Fakes:
  """`count` fakes by one of `config.METHODS_ON_REALS`; reals come in their class mix."""
  rows = rows_in_mix(reals.labels, count, seed)
  if method in local_edits.EDITS:
    made = local_edits.edit(reals, rows, method, seed)
    return Fakes(made.images, reals.labels[rows], rows, made.masks, made.donors)
  if trained is None:
    raise UserError(f'reconstructions need a trained {_REBUILDERS}: name its workdir')
  images = reconstruct(trained, np.asarray(reals.images)[rows], reals.labels[rows], seed)
  return Fakes(images, reals.labels[rows], rows)


def reconstruct(
  trained: TrainedGenerator,
  images: Float[np.ndarray, 'n h w 1'],
  labels: Int[np.ndarray, ' n'],
  seed: int,
) -> Float[np.ndarray, 'n h w 1']:
  """What one of `_RECONSTRUCT` makes of reals f32[n, h, w, 1]; UserError for a GAN."""
  kind = trained.config.task
  if kind not in _RECONSTRUCT:
    raise UserError(f'a {trained.family} cannot reconstruct images: name a {_REBUILDERS}')

  through = functools.partial(_RECONSTRUCT[kind], trained)
  constants = trained.sampler.variables, trained.encoder, streams.key(seed, 'rebuilding')

  def rebuilt(constants, number, batch, asked):
    variables, encoder, stream = constants
    return through(variables, encoder, batch, asked, jax.random.fold_in(stream, number))

  return batching.map_batches(rebuilt, constants, images, labels, title='rebuilding')


def _through_vae(trained: TrainedGenerator, variables, encoder_variables, images, labels, key):
  del key
  encoder, generator = registry.encoder(trained.config), trained.sampler.generator
  return _decoded(encoder, generator, encoder_variables, variables, images, labels)


def _through_diffusion(trained: TrainedGenerator, variables, encoder, images, labels, key):
  del encoder
  return _renoised(trained.sampler.generator.unet, variables, images, labels, key)  # type: ignore[attr-defined]


def _through_autoencoder(trained: TrainedGenerator, variables, encoder, images, labels, key):
  del encoder, labels
  return autoencoder.rebuild(trained.sampler.generator, variables, images, key)  # type: ignore[arg-type]


_REBUILDERS = 'vae, diffusion model or autoencoder'
_RECONSTRUCT = {
  'vae': _through_vae,
  'diffusion': _through_diffusion,
  'autoencoder': _through_autoencoder,
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decoded(encoder, generator, encoder_variables, variables, images, labels):
  mean, _ = encoder.apply(encoder_variables, images, train=False)
  return generator.apply(variables, mean, labels, train=False)[0]


@functools.partial(jax.jit, static_argnums=0)
def _renoised(unet, variables, images, labels, key):
  signal, noise = diffusion.signal_and_noise(jnp.asarray(RECONSTRUCTION_TIME))
  x = signal * images + noise * jax.random.normal(key, images.shape)
  return diffusion.denoise(unet, variables, x, labels, RECONSTRUCTION_TIME, RECONSTRUCTION_STEPS)
