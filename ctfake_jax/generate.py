"""The task `generate`: deepfakes as PNG and, where true, as DICOM CT.

`generate.method` says how: samples of a trained generator; reconstructions of the images of
`config.data` by one; or local edits of them, which need no generator. Leaves
`images/<class>/<number>.png` (8-bit grey), of edits also `masks/<class>/<number>.png` (white: what
was changed), with `generate.dicom` also `dicom/<class>/<number>.dcm`, and `manifest.json`: seed,
checkpoint, config, and of every file its label, its source where it has one, and its SHA-256. A
label is what the conditional generator was asked for, or the source's; an unconditional generator
was asked for nothing, and its classes are named `unlabelled`.
"""

import dataclasses
import hashlib
from pathlib import Path

import ml_collections
import numpy as np
from PIL import Image

from ctfake_jax import __version__, fakes, progress, sampling
from ctfake_jax import config as config_lib
from ctfake_jax import workdir as workdir_lib
from ctfake_jax.data import pipeline
from ctfake_jax.data.class_mix import labels_in_mix
from ctfake_jax.data.dicom_writer import SyntheticSeries, write_synthetic_ct
from ctfake_jax.data.preprocess import Preprocess, to_uint8
from ctfake_jax.fakes import Fakes
from ctfake_jax.figures import save_grid
from ctfake_jax.sampling import TrainedGenerator
from ctfake_jax.types import ImageSet, UserError

UNLABELLED = 'unlabelled'
# A chest's usual reconstruction circle; a model's view keeps no spacing of its own.
TYPICAL_FIELD_OF_VIEW_MM = 350.0


@dataclasses.dataclass(frozen=True)
class Maker:
  """What the files must say of who made the images.

  Attributes:
    name: of the generator or of the edit.
    class_names: folder of each label.
    unit: of the images learnt from or edited, 'HU' or 'grey'.
    view: through which the images came.
    digest: of the generator's parameters, or the edit's name.
  """

  name: str
  class_names: tuple[str, ...]
  unit: str
  view: Preprocess
  digest: str

  @classmethod
  def trained(cls, generator: TrainedGenerator, method: str) -> 'Maker':
    """A trained generator; its classes have names where it was asked for them."""
    names = generator.class_names
    asked = generator.conditional or method != 'samples'
    return cls(
      f'ctfake_jax {generator.family}',
      names if asked else (UNLABELLED,) * len(names),
      generator.unit,
      Preprocess.from_config(generator.config.data),
      generator.digest,
    )

  @classmethod
  def editor(cls, config: ml_collections.ConfigDict, reals: ImageSet) -> 'Maker':
    """The edit that the config names."""
    method = config.generate.method
    view = Preprocess.from_config(config.data)
    return cls(f'ctfake_jax edit, {method}', reals.class_names, reals.unit, view, method)


def run(config: ml_collections.ConfigDict, workdir: Path, mix: np.ndarray | None = None) -> dict:
  """Writes `generate.count` images; returns the manifest.

  Samples come in the class mix [c] of `mix`, or of the images that the generator learnt from.
  """
  if config.generate.method == 'samples':
    made, maker, facts = _samples(config, mix)
  else:
    made, maker, facts = _on_reals(config)
  if config.generate.dicom:
    _check_hounsfield(maker)
  workdir_lib.record_config(workdir, config, {'class_names': list(maker.class_names)})
  rows = write_pngs(workdir, made, maker)
  if config.generate.dicom:
    rows += write_dicoms(workdir, made, maker, config.seed)
  manifest = {
    'seed': config.seed,
    'method': config.generate.method,
    **facts,
    'class_names': list(maker.class_names),
    'files': rows,
  }
  workdir_lib.write_json(workdir / 'manifest.json', manifest)
  save_grid(workdir / 'samples' / 'first.png', made.images[:64], columns=8)
  return manifest


def _samples(
  config: ml_collections.ConfigDict, mix: np.ndarray | None
) -> tuple[Fakes, Maker, dict]:
  trained = sampling.load(Path(config.generate.checkpoint))
  labels = labels_in_mix(trained.class_counts if mix is None else mix, config.generate.count)
  made = fakes.sample(trained, labels, config.seed)
  return made, Maker.trained(trained, 'samples'), _checkpoint(config, trained)


def _on_reals(config: ml_collections.ConfigDict) -> tuple[Fakes, Maker, dict]:
  """Of the images of `config.data`; `sources` names the one that each fake was made from."""
  c, trained = config.generate, None
  if c.method == 'reconstructions':
    trained = sampling.load(Path(c.checkpoint))
  reals = pipeline.load(config)
  facts = {}
  if trained:
    _check_same_view(config, trained, reals)
    facts = _checkpoint(config, trained)
  maker = Maker.trained(trained, c.method) if trained else Maker.editor(config, reals)
  made = fakes.from_reals(c.method, trained, reals, c.count, config.seed)
  return made, maker, {**facts, 'sources': [reals.records[i].provenance for i in made.sources]}


def _checkpoint(config: ml_collections.ConfigDict, trained: TrainedGenerator) -> dict:
  return {
    'checkpoint': Path(config.generate.checkpoint).name,
    'checkpoint_step': trained.step,
    'generator_sha256': trained.digest,
    'generator_config': config_lib.as_dict(trained.config),
  }


def _check_same_view(
  config: ml_collections.ConfigDict, trained: TrainedGenerator, reals: ImageSet
) -> None:
  if trained.config.data.image_size != config.data.image_size:
    raise UserError(
      f'config.data.image_size = {config.data.image_size}: the generator makes images of '
      f'{trained.config.data.image_size} pixels, set that'
    )
  if trained.config.data.grey_range != config.data.grey_range:
    raise UserError(
      f'config.data.grey_range = {config.data.grey_range!r}: the generator learnt with '
      f'{trained.config.data.grey_range!r}, set that'
    )
  if trained.class_names != reals.class_names:
    raise UserError(
      f'config.data: classes {", ".join(reals.class_names)} differ from those that the generator '
      f'learnt, {", ".join(trained.class_names)}'
    )


def write_pngs(workdir: Path, made: Fakes, maker: Maker) -> list[dict]:
  """8-bit grey PNGs by class folder, masks beside them; one manifest row an image."""
  rows = []
  for i, pixels in enumerate(progress.bar('writing PNG', to_uint8(made.images[..., 0]))):
    name = maker.class_names[made.labels[i]]
    path = _path(workdir, 'images', name, i, 'png')
    Image.fromarray(pixels).save(path)
    rows.append(_row(workdir, path, name))
    if made.masks is not None:
      mask = _path(workdir, 'masks', name, i, 'png')
      Image.fromarray(made.masks[i]).save(mask)
      rows[-1]['mask'] = str(mask.relative_to(workdir))
  return rows


def write_dicoms(workdir: Path, made: Fakes, maker: Maker, seed: int) -> list[dict]:
  """Synthetic CT by class folder, each image a series and a synthetic patient of its own.

  HU come from the inverse of the model's window: what lay outside it stays clipped.
  """
  hu = maker.view.to_hu(made.images[..., 0])
  spacing_mm = TYPICAL_FIELD_OF_VIEW_MM / hu.shape[1]
  rows = []
  for i, pixels in enumerate(progress.bar('writing DICOM', hu)):
    name = maker.class_names[made.labels[i]]
    series = SyntheticSeries(
      label=name,
      generator=maker.name,
      version=__version__,
      seed=f'{maker.digest}/{seed}/{i}',
    )
    path = _path(workdir, 'dicom', name, i, 'dcm')
    write_synthetic_ct(path, pixels, spacing_mm=spacing_mm, series=series, instance_number=1)
    rows.append(_row(workdir, path, name))
  return rows


def _check_hounsfield(maker: Maker) -> None:
  if maker.unit != 'HU':
    raise UserError(
      'config.generate.dicom: these images come from grey pictures, whose values are no HU; '
      'a CT DICOM of them would lie. Use DICOM or the phantom, or leave generate.dicom off'
    )


def folder_name(name: str) -> str:
  """A class name as one harmless path component."""
  return ''.join(c if c.isalnum() or c in '._-' else '_' for c in name).lstrip('.') or '_'


def _path(workdir: Path, kind: str, name: str, number: int, suffix: str) -> Path:
  path = workdir / kind / folder_name(name) / f'{number:06d}.{suffix}'
  path.parent.mkdir(parents=True, exist_ok=True)
  return path


def _row(workdir: Path, path: Path, label: str) -> dict:
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  return {'path': str(path.relative_to(workdir)), 'label': label, 'sha256': digest}
