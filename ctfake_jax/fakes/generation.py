"""The task `generate`: deepfakes as PNG and, where true, as DICOM CT.

`generate.method` says how: samples of a trained generator; reconstructions of the images of
`config.data` by one; or local edits of them, which need no generator. Leaves
`images/<class>/<number>.png` (8-bit grey), of edits also `masks/<class>/<number>.png` (white: what
was changed), with `generate.dicom` also `dicom/<class>/<number>.dcm`, and `manifest.json`: seed,
checkpoint, config, and of every file its label, its source where it has one, and its SHA-256. A
label is what the conditional generator was asked for, or the source's; an unconditional generator
was asked for nothing, and its classes are named `unlabelled`.

DICOM of what was made from an image lies where that image lies and refers to it, and to the image
whose tissue was put in, by pseudonyms of the workdir's key; DICOM of samples has the spacing of the
images that the generator was trained on.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from ctfake_jax import __version__
from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import Config
from ctfake_jax.data import dataset
from ctfake_jax.data.class_mix import labels_in_mix
from ctfake_jax.data.image_grids import save_grid
from ctfake_jax.data.preprocess import Preprocess, to_uint8
from ctfake_jax.data.sources.dicom import statements as dicom_statements
from ctfake_jax.data.sources.dicom.pseudonyms import Pseudonyms
from ctfake_jax.data.sources.dicom.writer import write_ct
from ctfake_jax.fakes import families as fakes
from ctfake_jax.fakes.families import Fakes
from ctfake_jax.inference import generator as sampling
from ctfake_jax.inference.generator import TrainedGenerator
from ctfake_jax.runtime import progress_bar
from ctfake_jax.types import AS_STORED, ImageSet, Plane, Record, UserError, centred
from ctfake_jax.workdir import files as workdir_lib

UNLABELLED = 'unlabelled'
# What `generate.method` does to an image, in words.
_DONE = {
  'inpainted': 'A part was filled with a smooth continuation of its surroundings',
  'blended': 'A part was replaced by tissue of another image',
  'copied': 'A part was replaced by a copy of another part of it',
  'reconstructions': 'All of it was rebuilt by a neural network',
}


@dataclasses.dataclass(frozen=True)
class Maker:
  """What the files must say of who made the images.

  Attributes:
    name: of the generator or of the edit.
    class_names: folder of each label.
    unit: of the training images or edited, 'HU' or 'grey'.
    view: through which the images came.
    digest: of the generator's parameters, or the edit's name.
    spacing_mm: of rows and columns of samples, None where unknown.
    records: of the images that fakes were made from; () for samples.
  """

  name: str
  class_names: tuple[str, ...]
  unit: str
  view: Preprocess
  digest: str
  spacing_mm: tuple[float, float] | None = None
  records: tuple[Record, ...] = ()

  @classmethod
  def trained(
    cls, generator: TrainedGenerator, method: str, records: tuple[Record, ...] = ()
  ) -> 'Maker':
    """A trained generator; its classes have names where it was asked for them."""
    names = generator.class_names
    asked = generator.conditional or method != 'samples'
    return cls(
      f'ctfake_jax {generator.family}',
      names if asked else (UNLABELLED,) * len(names),
      generator.unit,
      Preprocess.from_config(generator.config.data),
      generator.digest,
      spacing_mm=generator.spacing_mm,
      records=records,
    )

  @classmethod
  def editor(cls, config: Config, reals: ImageSet) -> 'Maker':
    """The edit that the config names."""
    method = config.generate.method
    view = Preprocess.from_config(config.data)
    name = f'ctfake_jax edit, {method}'
    return cls(name, reals.class_names, reals.unit, view, method, records=reals.records)

  def planes(self, made: Fakes, field_of_view_mm: float) -> list[Plane]:
    """Where the fakes lie: as their sources do, else about the origin.

    Raises:
      UserError: one has no spacing, and `field_of_view_mm` is 0, which is unknown.
    """
    return [self._plane(row, field_of_view_mm / self.view.size) for row in made.sources.tolist()]

  def _plane(self, row: int, given_mm: float) -> Plane:
    native = self.records[row].plane if self.records else None
    own = self.view.seen(native) if native else None
    if own and own.height_mm is not None:
      return own
    given = (given_mm, given_mm) if given_mm else None
    spacing = own.spacing_mm if own else (None if self.records else self.spacing_mm) or given
    if spacing is None:
      raise UserError(
        'config.generate.field_of_view_mm = 0: the data do not tell the spacing of these images, '
        'without which a CT DICOM would lie; set how many mm they are wide (a chest: about 350), '
        'or leave generate.dicom off'
      )
    return centred((self.view.size, self.view.size), spacing)


def run(config: Config, workdir: Path, mix: Int[np.ndarray, ' c'] | None = None) -> dict:
  """Writes `generate.count` images; returns the manifest.

  Samples come in the class mix [c] of `mix`, or of its training images.
  """
  if config.generate.method == 'samples':
    made, maker, facts = _samples(config, mix)
  else:
    made, maker, facts = _on_reals(config)
  if config.generate.dicom:
    _check_hounsfield(maker)
    planes = maker.planes(made, config.generate.field_of_view_mm)
  workdir_lib.record_config(workdir, config, {'class_names': list(maker.class_names)})
  rows = write_pngs(workdir, made, maker)
  if config.generate.dicom:
    rows += write_dicoms(workdir, made, maker, config, planes)
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


def _samples(config: Config, mix: np.ndarray | None) -> tuple[Fakes, Maker, dict]:
  trained = sampling.load(Path(config.generate.checkpoint))
  labels = labels_in_mix(trained.class_counts if mix is None else mix, config.generate.count)
  made = fakes.sample(trained, labels, config.seed)
  return made, Maker.trained(trained, 'samples'), _checkpoint(config, trained)


def _on_reals(config: Config) -> tuple[Fakes, Maker, dict]:
  """Of the images of `config.data`; `sources` names the one that each fake was made from."""
  c, trained = config.generate, None
  if c.method == 'reconstructions':
    trained = sampling.load(Path(c.checkpoint))
  reals, config = dataset.load(config)
  largest, side = int(reals.native_sizes.max()), config.data.image_size
  if largest > side:
    print(
      f'what is made has {side} x {side} pixels, its originals up to {largest}: '
      'data.image_size sets it'
    )
  facts: dict = {}
  if trained:
    _check_same_view(config, trained, reals)
    facts = _checkpoint(config, trained)
  maker = (
    Maker.trained(trained, c.method, reals.records) if trained else Maker.editor(config, reals)
  )
  made = fakes.from_reals(c.method, trained, reals, c.count, config.seed)
  facts['sources'] = [reals.records[i].provenance for i in made.sources]
  if made.donors is not None:
    facts['donors'] = [reals.records[i].provenance for i in made.donors]
  return made, maker, facts


def _checkpoint(config: Config, trained: TrainedGenerator) -> dict:
  return {
    'checkpoint': Path(config.generate.checkpoint).name,
    'checkpoint_step': trained.step,
    'generator_sha256': trained.digest,
    'generator_config': config_lib.as_dict(trained.config),
  }


def _check_same_view(config: Config, trained: TrainedGenerator, reals: ImageSet) -> None:
  for key in ('image_size', 'window_center_hu', 'window_width_hu', 'aspect', 'grey_range'):
    learnt, asked = (getattr(c.data, key) for c in (trained.config, config))
    if learnt != asked:
      raise UserError(
        f'config.data.{key} = {asked}: the generator was trained on {learnt}, set that'
      )
  if trained.class_names != reals.class_names:
    raise UserError(
      f'config.data: classes {", ".join(reals.class_names)} differ from those that the generator '
      f'learnt, {", ".join(trained.class_names)}'
    )


def write_pngs(workdir: Path, made: Fakes, maker: Maker) -> list[dict]:
  """8-bit grey PNGs by class folder, masks beside them; one manifest row an image."""
  rows = []
  for i, pixels in enumerate(progress_bar.bar('writing PNG', to_uint8(made.images[..., 0]))):
    name = maker.class_names[made.labels[i]]
    path = _path(workdir, 'images', name, i, 'png')
    Image.fromarray(pixels).save(path)
    rows.append(_row(workdir, path, name))
    if made.masks is not None:
      mask = _path(workdir, 'masks', name, i, 'png')
      Image.fromarray(made.masks[i]).save(mask)
      rows[-1]['mask'] = str(mask.relative_to(workdir))
  return rows


def write_dicoms(
  workdir: Path,
  made: Fakes,
  maker: Maker,
  config: Config,
  planes: list[Plane],
) -> list[dict]:
  """CT that says that it is synthetic by class folder, each image a series of its own.

  HU come from the inverse of the model's window: what lay outside it stays clipped. Fakes made from
  an image have rows and columns run as that image stores them; `planes` is where they lie as they
  are displayed.
  """
  pseudonyms = Pseudonyms.of(workdir) if maker.records else None
  rows = []
  for i, hu in enumerate(progress_bar.bar('writing DICOM', maker.view.to_hu(made.images[..., 0]))):
    name = maker.class_names[made.labels[i]]
    facts = {'made_by': maker.name, 'version': __version__, 'label': name}
    number, turn = f'{maker.digest}/{config.seed}/{i}', AS_STORED
    if pseudonyms is None:
      statement = dicom_statements.generated(**facts, seed=number)
    else:
      source = maker.records[made.sources[i]]
      turn = source.plane.display.inverse if source.plane else AS_STORED
      change = _change(config.generate.method, maker, made, i)
      statement = dicom_statements.edited(
        source, change, **facts, number=number, pseudonyms=pseudonyms
      )
    path = _path(workdir, 'dicom', name, i, 'dcm')
    plane = planes[i].turned(turn)
    write_ct(path, turn(hu), plane=plane, statement=statement, instance_number=1)
    rows.append(_row(workdir, path, name))
  return rows


def _change(method: str, maker: Maker, made: Fakes, row: int) -> dicom_statements.Change:
  view, plane = maker.view, maker.records[made.sources[row]].plane
  share = 1.0 if made.masks is None else float(made.masks[row].mean())
  donor = None if made.donors is None else maker.records[made.donors[row]]
  # By its spacing as displayed: a crop alone does not change that.
  resampled = plane is None or (
    view.seen(plane).spacing_mm != plane.turned(plane.display).spacing_mm
  )
  return dicom_statements.Change(_DONE[method], share, resampled, view.range_hu, donor)


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
