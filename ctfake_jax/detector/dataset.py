"""Reals and fakes of every part of a detector's life, made from the originals alone.

Groups (patients or near-duplicates) are dealt to five parts: `train` (generators and the network),
`validation` (checkpoints), `calibration` (p_fake), `conformal` (reals alone, which set the
threshold), `test`. Fakes made
from reals stay in their reals' part and group; sampled fakes are groups of their own.
"""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import Config
from ctfake_jax.data import dataset, file_facts, splits
from ctfake_jax.data.class_mix import class_counts, labels_in_mix
from ctfake_jax.data.fingerprints import Fingerprints, fingerprint
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.data.sources import layout, sandboxed
from ctfake_jax.data.sources.image_folder import FolderSource
from ctfake_jax.data.sources.sandboxed import Decoded
from ctfake_jax.data.splits import Split
from ctfake_jax.data.transforms import controls
from ctfake_jax.detector import calibration
from ctfake_jax.fakes import families as fakes
from ctfake_jax.inference import generator as sampling
from ctfake_jax.runtime import progress_bar, streams
from ctfake_jax.train import generator
from ctfake_jax.types import GroupedImages, ImageSet, Source, UserError
from ctfake_jax.workdir import files as workdir_lib

# Shares of the groups. The threshold's part is large: 99 groups are the least for 1 %.
PARTS = {'train': 0.45, 'validation': 0.08, 'calibration': 0.1, 'conformal': 0.22, 'test': 0.15}
REALS_ALONE = 'conformal'  # the part without fakes
# Streams are named once and for all: with other names all fakes would be others.
STREAMS = {
  **{part: part for part in PARTS},
  'train': 'learn',
  'validation': 'choose',
  'calibration': 'scale',
}
WITH_FAKES = {part: share for part, share in PARTS.items() if part != REALS_ALONE}
REAL, FOLDER = 'real', 'folder'
LEAST_EXTERNAL_FAKES = 4  # of somebody's fakes in each part


@dataclasses.dataclass(frozen=True, repr=False)
class DetectorDataset(GroupedImages):
  """n images of one part, all through 8 bits; the class of external fakes is -1.

  Attributes:
    families: str[n], 'real' or the family.
    masks: bool[n, h, w], what is synthetic: nothing of a real, all of a sample.
    file_facts: f64[n, 7] as `data.file_facts` names them, NaN for images that are no files.
    stored: object[n], a function () -> f[h, w], grey levels in [0, 1] at the size that the image is
      stored in; that of `images` for what was made here.
  """

  families: Shaped[np.ndarray, ' n']
  masks: Bool[np.ndarray, 'n h w']
  file_facts: Float[np.ndarray, 'n f']
  stored: Shaped[np.ndarray, ' n']

  @property
  def fake(self) -> Bool[np.ndarray, ' n']:
    """Which are."""
    return self.families != REAL

  def of(self, *families: str) -> 'DetectorDataset':
    """The images of these families."""
    return self.take(np.isin(self.families, families))

  def decoded(self, view: Preprocess, unit: str) -> list[Decoded]:
    """The images as `detect` meets them in files of `unit` values."""
    return [sandboxed.seen(levels(), view, unit) for levels in self.stored]


@dataclasses.dataclass(frozen=True)
class SplitImages:
  """Images dealt to parts: the originals, or somebody's fakes.

  Attributes:
    parts: rows of each of `PARTS`, or of `WITH_FAKES`.
    root: folder that the records' provenance starts from; None where they are no files.
    source: where the images are stored.
    view: how they are seen.
  """

  images: ImageSet
  groups: Shaped[np.ndarray, ' n']
  parts: dict[str, Int[np.ndarray, ' _']]
  root: Path | None
  source: Source
  view: Preprocess

  def split(self) -> Split:
    """The parts that trainings of one kind of image need."""
    parts = self.parts
    return Split(parts['train'], parts['validation'], parts['test'], self.groups, 'detector')

  def part(self, part: str, family: str) -> DetectorDataset:
    """All images of a part, as stored in 8 bits."""
    rows = self.parts[part]
    own = self.images.take(rows)
    pixels = controls.through_png(np.asarray(own.images))
    paths = [record.path for record in own.records]
    levels = [functools.partial(self._levels, record.provenance) for record in own.records]
    return DetectorDataset(
      images=pixels,
      labels=own.labels,
      groups=self.groups[rows],
      families=np.full(len(rows), family, dtype=object),
      masks=np.full(pixels.shape[:3], family != REAL),
      file_facts=file_facts.of_files(self.root, paths) if self.root else _unknown(len(rows)),
      stored=_objects(levels),
    )

  def _levels(self, provenance: str) -> np.ndarray:
    return self.view.levels(self.source[self._places[provenance]])

  @functools.cached_property
  def _places(self) -> dict[str, int]:
    return {record.provenance: i for i, record in enumerate(self.source.records)}


def originals(config: Config) -> tuple[SplitImages, Config]:
  """The reals of `config.data`, dealt by patients or near-duplicates; the config as of `load`."""
  images, config = dataset.load(config)
  by, groups = splits.group(images, config.split)
  splits.refuse_one_patient(by, groups)
  root = dataset.root_of_files(config.data)
  source, view = dataset.open_source(config), Preprocess.from_config(config.data)
  parts = split_groups(groups, config.seed)
  return SplitImages(images, groups, parts, root, source, view), config


def external_fakes(config: Config, reals: SplitImages) -> SplitImages | None:
  """The fakes in `detection.fakes_folder`, dealt by near-duplicates; None where it is not set.

  A fake that is a near-duplicate of an original, as an edit of it is, joins its group and part.
  """
  folder = config.detection.fakes_folder
  if not folder:
    return None
  source = FolderSource(Path(folder), max_pixels=config.data.max_pixels, unlabelled_ok=True)
  layout.refuse_masks(folder, [record.path for record in source.records])
  view = Preprocess.from_config(config.data)
  images = dataset.gather(source, view, labelled=False)
  if images.unit != reals.images.unit:
    raise UserError(
      f'config.detection.fakes_folder = {folder}: pictures have {images.unit} values, the '
      f'originals {reals.images.unit} values; give both in one form'
    )
  groups, own = _beside(reals, images, config.split.duplicate_correlation)
  rows, parts = np.nonzero(own)[0], {}
  for part, dealt in _split_by_groups(groups[own], WITH_FAKES, config.seed).items():
    joined = np.isin(groups, reals.groups[reals.parts[part]]) & ~own
    parts[part] = np.sort(np.concatenate([rows[dealt], np.nonzero(joined)[0]]))
  few = [part for part, found in parts.items() if len(found) < LEAST_EXTERNAL_FAKES]
  if few:
    raise UserError(
      f'config.detection.fakes_folder = {folder}: {len(images)} pictures give fewer than '
      f'{LEAST_EXTERNAL_FAKES} to the parts {", ".join(few)} (near-duplicates stay together); '
      'add fakes'
    )
  return SplitImages(images, groups, parts, Path(folder), source, view)


def _beside(
  reals: SplitImages, images: ImageSet, correlation: float
) -> tuple[np.ndarray, np.ndarray]:
  """Groups int[n] of external images, and bool[n]: a group of its own, not an original's."""
  small = [Fingerprints.of(stock).small for stock in (reals.images, images)]
  linked = splits.near_duplicate_groups(np.concatenate(small), correlation)
  originals, external = np.split(linked, [len(reals.groups)])
  owner = dict(zip(originals.tolist(), reals.groups.tolist()))
  own = ~np.isin(external, originals)
  fresh = external + 1 + reals.groups.max()
  groups = np.where(own, fresh, [owner.get(component, -1) for component in external.tolist()])
  return groups, own


def split_groups(groups: Shaped[np.ndarray, ' n'], seed: int) -> dict[str, Int[np.ndarray, ' _']]:
  """Rows of each of `PARTS`; whole groups, at random."""
  parts = _split_by_groups(groups, PARTS, seed)
  empty = [part for part, rows in parts.items() if not len(rows)]
  if empty:
    raise UserError(
      f'config.data: {len(np.unique(groups))} patients or near-duplicate groups are too few for '
      f'the parts {", ".join(empty)}; add data'
    )
  return parts


def _split_by_groups(
  groups: np.ndarray, shares: dict[str, float], seed: int
) -> dict[str, np.ndarray]:
  names = streams.generator(seed, 'parts').permutation(np.unique(groups))
  ends = np.cumsum(list(shares.values()))
  ends = np.round(ends / ends[-1] * len(names)).astype(int)
  chosen = np.split(names, ends[:-1])
  return {part: np.nonzero(np.isin(groups, own))[0] for part, own in zip(shares, chosen)}


def build_parts(
  config: Config, workdir: Path
) -> tuple[SplitImages, dict[str, DetectorDataset], Config]:
  """Originals, and reals and fakes of every part; generators and fakes are kept in the workdir.

  The config that is returned has what was found in the place of an 'auto'.
  """
  reals, config = originals(config)
  others = external_fakes(config, reals)
  threshold_groups = reals.groups[reals.parts[REALS_ALONE]]
  calibration.refuse_few_groups(threshold_groups, calibration.asked_rate(config))
  data = ' '.join(fingerprint(own.images) for own in (reals, others) if own)
  workdir_lib.record_config(workdir, config, {'data': data, 'unit': reals.images.unit})
  progress_bar.stage('generators')
  train_generators(config, reals, workdir)
  progress_bar.stage('fakes')
  shown = {part: build_part(config, reals, others, part, workdir) for part in PARTS}
  return reals, shown, config


def train_generators(config: Config, reals: SplitImages, workdir: Path) -> None:
  """Every generator that `detection.families` need, on the part `train`; finished ones are kept."""
  split = reals.split()
  for name in networks(config):
    own, folder = generator_config(config, name), generator_dir(workdir, name)
    make = functools.partial(generator.train_generator, own, reals.images, split, folder)
    workdir_lib.run_stage_once(folder, own, make)


def networks(config: Config) -> list[str]:
  """Names of the generators behind the families, each once."""
  return sorted({fakes.FAMILIES[f].network for f in config.detection.families} - {''})


def generator_dir(workdir: Path, name: str) -> Path:
  """Where the generator of this name is trained."""
  return workdir / 'generators' / name


def generator_config(config: Config, name: str) -> Config:
  """The config of a training of its own for the generator `name`."""
  task = name if name in config_lib.GENERATORS else 'gan'
  own = config_lib.for_stage(config, task, task)
  own = dataclasses.replace(own, seed=streams.seed(config.seed, 'generator', name))
  if task == 'gan':
    return dataclasses.replace(own, gan=dataclasses.replace(own.gan, name=name))
  return own


def build_part(
  config: Config,
  reals: SplitImages,
  others: SplitImages | None,
  part: str,
  workdir: Path,
) -> DetectorDataset:
  """The reals of a part, the external fakes for it, and fakes of each of `detection.families`.

  All in the class mix of the part's reals. To learn from, `detection.train_fakes_per_family`,
  several of a real where need be; elsewhere `detection.eval_fakes_per_family`, at most as many as
  there are reals. The threshold needs none.
  """
  own, c = reals.images.take(reals.parts[part]), config.detection
  data = fingerprint(own)
  count = c.train_fakes_per_family if part == 'train' else min(c.eval_fakes_per_family, len(own))
  sets = [reals.part(part, REAL)]
  if others and part != REALS_ALONE:
    sets.append(others.part(part, FOLDER))
  # Far above every other group's number.
  free = reals.groups.max() + 1 + (others.groups.max() + 1 if others else 0)
  for family in config.detection.families if part != REALS_ALONE else ():
    # A seed of its own for each part and family: no sample is drawn twice.
    seed = streams.seed(config.seed, 'fakes', STREAMS[part], family)
    made = _made(family, own, data, count, seed, workdir, part)
    alone = free + np.arange(count)
    free += count
    sets.append(
      DetectorDataset(
        images=made.images,
        labels=made.labels,
        groups=np.where(made.sources < 0, alone, sets[0].groups[made.sources]),
        families=np.full(count, family, dtype=object),
        masks=np.ones(made.images.shape[:3], bool) if made.masks is None else made.masks,
        file_facts=_unknown(count),
        stored=_objects([functools.partial(_levels, image) for image in made.images]),
      )
    )
  return DetectorDataset.join(sets)


def _levels(image: np.ndarray) -> np.ndarray:
  return (image[..., 0] + 1) / 2


def _objects(items: list) -> np.ndarray:
  found = np.empty(len(items), object)
  found[:] = items
  return found


def _unknown(count: int) -> np.ndarray:
  return np.full((count, len(file_facts.NAMES)), np.nan)


def _made(
  name: str, reals: ImageSet, data: str, count: int, seed: int, workdir: Path, part: str
) -> fakes.Fakes:
  """Fakes of one family for one part of fingerprint `data`; kept while what makes them stays."""
  family = fakes.FAMILIES[name]
  trained = sampling.load(generator_dir(workdir, family.network)) if family.network else None
  digest = trained.digest if trained else ''
  origin = json.dumps([name, count, seed, digest, data])

  def make() -> fakes.Fakes:
    if trained and family.method == 'samples':
      mix = class_counts(reals.labels, len(reals.class_names))
      return fakes.sample(trained, labels_in_mix(mix, count), seed)
    return fakes.from_reals(family.method, trained, reals, count, seed)

  return fakes.load_or_create(workdir / 'fakes' / part / f'{name}.npz', origin, make)
