"""The task `generate`: deepfakes from a trained generator, as PNG and, where true, as DICOM CT.

Leaves `images/<class>/<number>.png` (8-bit grey), with `generate.dicom` also
`dicom/<class>/<number>.dcm`, and `manifest.json`: seed, checkpoint, config, label and SHA-256 of
every file. A label is what the conditional generator was asked for; an unconditional one was
asked for nothing, and its classes are named `unlabelled`.
"""

import hashlib
from pathlib import Path

import ml_collections
import numpy as np
from PIL import Image

from ctfake_jax import __version__, progress, sampling
from ctfake_jax import workdir as workdir_lib
from ctfake_jax.data.dicom_writer import SyntheticSeries, write_synthetic_ct
from ctfake_jax.data.preprocess import Preprocess, to_uint8
from ctfake_jax.figures import save_grid
from ctfake_jax.sampling import TrainedGenerator
from ctfake_jax.types import UserError

UNLABELLED = 'unlabelled'
# A chest's usual reconstruction circle; a model's view keeps no spacing of its own.
TYPICAL_FIELD_OF_VIEW_MM = 350.0


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
  """Writes `generate.count` images spread evenly over the classes; returns the manifest."""
  checkpoint = Path(config.generate.checkpoint)
  trained = sampling.load(checkpoint)
  if config.generate.dicom:
    _check_hounsfield(trained)
  workdir_lib.record_config(workdir, config, {'class_names': list(trained.class_names)})
  labels = spread_labels(config.generate.count, len(trained.class_names))
  images = trained.sampler.sample(labels, config.seed)
  manifest = {
    'seed': config.seed,
    'checkpoint': checkpoint.name,
    'checkpoint_step': trained.step,
    'generator_config': workdir_lib.read_json(checkpoint / 'config.json')['config'],
    'class_names': list(trained.class_names),
    'files': write_pngs(workdir, images, labels, trained),
  }
  if config.generate.dicom:
    manifest['files'] += write_dicoms(workdir, images, labels, trained, config.seed)
  workdir_lib.write_json(workdir / 'manifest.json', manifest)
  save_grid(workdir / 'samples' / 'first.png', images[:64], columns=8)
  return manifest


def spread_labels(count: int, classes: int) -> np.ndarray:
  """i32[count], sorted, every class as often as the others to within one."""
  return np.sort(np.arange(count, dtype=np.int32) % classes)


def write_pngs(
  workdir: Path, images: np.ndarray, labels: np.ndarray, trained: TrainedGenerator
) -> list[dict]:
  """8-bit grey PNGs by class folder; one manifest row each."""
  rows = []
  for i, pixels in enumerate(progress.bar('writing PNG', to_uint8(images[..., 0]))):
    name = _class_of(trained, labels[i])
    path = workdir / 'images' / folder_name(name) / f'{i:06d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    rows.append(_row(workdir, path, name))
  return rows


def write_dicoms(
  workdir: Path, images: np.ndarray, labels: np.ndarray, trained: TrainedGenerator, seed: int
) -> list[dict]:
  """Synthetic CT by class folder, each image a series and a synthetic patient of its own.

  HU come from the inverse of the model's window: what lay outside it stays clipped.
  """
  hu = Preprocess.from_config(trained.config.data).to_hu(images[..., 0])
  spacing_mm = TYPICAL_FIELD_OF_VIEW_MM / hu.shape[1]
  rows = []
  for i, pixels in enumerate(progress.bar('writing DICOM', hu)):
    name = _class_of(trained, labels[i])
    series = SyntheticSeries(
      label=name,
      generator=f'ctfake_jax {trained.family}',
      version=__version__,
      seed=f'{trained.digest}/{seed}/{i}',
    )
    path = workdir / 'dicom' / folder_name(name) / f'{i:06d}.dcm'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_synthetic_ct(path, pixels, spacing_mm=spacing_mm, series=series, instance_number=1)
    rows.append(_row(workdir, path, name))
  return rows


def _check_hounsfield(trained: TrainedGenerator) -> None:
  if trained.unit != 'HU':
    raise UserError(
      'config.generate.dicom: this generator learnt from grey pictures, whose values are no HU; '
      'a CT DICOM of them would lie. Train on DICOM or the phantom, or leave generate.dicom off'
    )


def _class_of(trained: TrainedGenerator, label: int) -> str:
  return trained.class_names[label] if trained.conditional else UNLABELLED


def folder_name(name: str) -> str:
  """A class name as one harmless path component."""
  return ''.join(c if c.isalnum() or c in '._-' else '_' for c in name).lstrip('.') or '_'


def _row(workdir: Path, path: Path, label: str) -> dict:
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  return {'path': str(path.relative_to(workdir)), 'label': label, 'sha256': digest}
