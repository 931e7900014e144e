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
from tqdm import tqdm

from ctfake_jax import sampling
from ctfake_jax import workdir as workdir_lib
from ctfake_jax.data.dicom_writer import SyntheticSeries, write_synthetic_ct
from ctfake_jax.data.preprocess import Preprocess, to_uint8
from ctfake_jax.figures import save_grid
from ctfake_jax.types import UserError

UNLABELLED = 'unlabelled'


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
  """Writes `generate.count` images spread evenly over the classes; returns the manifest."""
  checkpoint = Path(config.generate.checkpoint)
  gan = sampling.load(checkpoint)
  if config.generate.dicom:
    _check_hounsfield(gan)
  workdir_lib.record_config(workdir, config, {'class_names': list(gan.class_names)})
  labels = spread_labels(config.generate.count, len(gan.class_names))
  images = gan.sampler.sample(labels, config.seed)
  manifest = {
    'seed': config.seed,
    'checkpoint': checkpoint.name,
    'checkpoint_step': gan.step,
    'generator_config': workdir_lib.read_json(checkpoint / 'config.json')['config'],
    'class_names': list(gan.class_names),
    'files': write_pngs(workdir, images, labels, gan),
  }
  if config.generate.dicom:
    manifest['files'] += write_dicoms(workdir, images, labels, gan)
  workdir_lib.write_json(workdir / 'manifest.json', manifest)
  save_grid(workdir / 'samples' / 'first.png', images[:64], columns=8)
  return manifest


def spread_labels(count: int, classes: int) -> np.ndarray:
  """i32[count], sorted, every class as often as the others to within one."""
  return np.sort(np.arange(count, dtype=np.int32) % classes)


def write_pngs(workdir: Path, images: np.ndarray, labels: np.ndarray, gan) -> list[dict]:
  """8-bit grey PNGs by class folder; one manifest row each."""
  rows = []
  for i, pixels in enumerate(tqdm(to_uint8(images[..., 0]), 'writing PNG', mininterval=5)):
    name = _class_of(gan, labels[i])
    path = workdir / 'images' / _folder_name(name) / f'{i:06d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    rows.append(_row(workdir, path, name))
  return rows


def write_dicoms(workdir: Path, images: np.ndarray, labels: np.ndarray, gan) -> list[dict]:
  """One synthetic CT series for each class; HU by the inverse of the model's window."""
  view, rows = Preprocess.from_config(gan.config.data), []
  hu = view.to_hu(images[..., 0])
  spacing_mm = TYPICAL_FIELD_OF_VIEW_MM / hu.shape[1]
  for label in np.unique(labels):
    name = _class_of(gan, label)
    series = SyntheticSeries.create(label=name, generator=f'ctfake_jax {gan.config.gan.name}')
    for number, i in enumerate(np.nonzero(labels == label)[0], 1):
      path = workdir / 'dicom' / _folder_name(name) / f'{i:06d}.dcm'
      path.parent.mkdir(parents=True, exist_ok=True)
      write_synthetic_ct(
        path, hu[i], spacing_mm=spacing_mm, series=series, instance_number=number
      )
      rows.append(_row(workdir, path, name))
  return rows


# A chest's usual reconstruction circle; a model's view keeps no spacing of its own.
TYPICAL_FIELD_OF_VIEW_MM = 350.0


def _check_hounsfield(gan) -> None:
  if gan.unit != 'HU':
    raise UserError(
      'config.generate.dicom: this generator learnt from grey pictures, whose values are no HU; '
      'a CT DICOM of them would lie. Train on DICOM or the phantom, or leave generate.dicom off'
    )


def _class_of(gan, label: int) -> str:
  return gan.class_names[label] if gan.config.gan.conditional else UNLABELLED


def _folder_name(name: str) -> str:
  return ''.join(c if c.isalnum() or c in '._-' else '_' for c in name).lstrip('.') or '_'


def _row(workdir: Path, path: Path, label: str) -> dict:
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  return {'path': str(path.relative_to(workdir)), 'label': label, 'sha256': digest}
