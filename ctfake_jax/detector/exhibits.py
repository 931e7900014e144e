"""Reals and fakes of every part of a detector's life, made from the originals alone.

Groups (patients or near-duplicates) are dealt to five parts: `learn` (generators and the network),
`choose` (checkpoints), `scale` (temperature), `threshold` (reals alone set it), `test`. Fakes made
from reals stay in their reals' part and group; sampled fakes are groups of their own.
"""

import dataclasses
import functools
import zlib
from pathlib import Path

import ml_collections
import numpy as np

from ctfake_jax import config as config_lib
from ctfake_jax import controls, fakes, generate, sampling
from ctfake_jax import workdir as workdir_lib
from ctfake_jax.data import splits
from ctfake_jax.data.splits import Split
from ctfake_jax.train import generator
from ctfake_jax.types import ImageSet, UserError

# Shares of the groups. The threshold's part is large: 99 groups are the least for 1 %.
PARTS = {'learn': 0.45, 'choose': 0.08, 'scale': 0.1, 'threshold': 0.22, 'test': 0.15}
REAL = 'real'


@dataclasses.dataclass(frozen=True)
class Exhibits:
  """n images of one part.

  Attributes:
    images: f32[n, h, w, 1] in [-1, 1], all through 8 bits.
    fake: bool[n].
    families: str[n], 'real' or the family.
    groups: int[n].
    masks: bool[n, h, w], what is synthetic: nothing of a real, all of a sample.
  """

  images: np.ndarray
  fake: np.ndarray
  families: np.ndarray
  groups: np.ndarray
  masks: np.ndarray

  def __len__(self) -> int:
    return len(self.fake)

  def take(self, rows: np.ndarray) -> 'Exhibits':
    """The images at `rows` (indices or bool[n])."""
    return Exhibits(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

  def of(self, *families: str) -> 'Exhibits':
    """The images of these families."""
    return self.take(np.isin(self.families, families))


def deal(groups: np.ndarray, seed: int) -> dict[str, np.ndarray]:
  """Rows of each of `PARTS`; whole groups, at random."""
  names = np.random.default_rng(seed).permutation(np.unique(groups))
  ends = np.round(np.cumsum(list(PARTS.values())) * len(names)).astype(int)
  chosen = np.split(names, ends[:-1])
  parts = {part: np.nonzero(np.isin(groups, own))[0] for part, own in zip(PARTS, chosen)}
  empty = [part for part, rows in parts.items() if not len(rows)]
  if empty:
    raise UserError(
      f'config.data: {len(names)} patients or near-duplicate groups are too few for the parts '
      f'{", ".join(empty)}; add data'
    )
  return parts


def train_generators(
  config: ml_collections.ConfigDict,
  images: ImageSet,
  groups: np.ndarray,
  parts: dict[str, np.ndarray],
  workdir: Path,
) -> None:
  """Every generator that `detection.families` need, on the part `learn`; finished ones are kept."""
  split = Split(parts['learn'], parts['choose'], parts['test'], groups, 'detector')
  for name in networks(config):
    own, folder = generator_config(config, name), generator_dir(workdir, name)
    workdir_lib.once(folder, own, functools.partial(generator.fit, own, images, split, folder))


def networks(config: ml_collections.ConfigDict) -> list[str]:
  """Names of the generators behind the families, each once."""
  return sorted({fakes.FAMILIES[f].network for f in config.detection.families} - {''})


def generator_dir(workdir: Path, name: str) -> Path:
  """Where the generator of this name is trained."""
  return workdir / 'generators' / name


def generator_config(config: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
  """The config of a training of its own for the generator `name`."""
  task = name if name in config_lib.GENERATORS else 'gan'
  own = config_lib.for_stage(config, task, task)
  own.train.log_every = config.train.log_every
  if task == 'gan':
    own.gan.name = name
  return own


def gather(
  config: ml_collections.ConfigDict,
  images: ImageSet,
  groups: np.ndarray,
  rows: np.ndarray,
  part: str,
  workdir: Path,
) -> Exhibits:
  """The reals at `rows` and `detection.fakes_per_family` fakes of each family for them.

  As many fakes are made as there are reals where those are fewer.
  """
  reals = images.take(rows)
  real_images = controls.through_png(np.asarray(reals.images))
  side = real_images.shape[1]
  count = min(config.detection.fakes_per_family, len(rows))
  sets = [
    Exhibits(
      real_images,
      np.zeros(len(rows), bool),
      np.full(len(rows), REAL, dtype=object),
      groups[rows],
      np.zeros((len(rows), side, side), bool),
    )
  ]
  free = groups.max() + 1
  for family in config.detection.families:
    # A seed of its own for each part and family: no sample is drawn twice.
    seed = zlib.crc32(f'{config.seed}/{part}/{family}'.encode()) % 2**31
    made = _make(fakes.FAMILIES[family], reals, count, seed, workdir)
    sampled = made.sources < 0
    own = np.where(sampled, free + np.arange(count), groups[rows][made.sources])
    free += count
    sets.append(
      Exhibits(
        controls.through_png(made.images),
        np.ones(count, bool),
        np.full(count, family, dtype=object),
        own,
        np.ones((count, side, side), bool) if made.masks is None else made.masks,
      )
    )
  return join(sets)


def join(sets: list[Exhibits]) -> Exhibits:
  """One after the other."""
  return Exhibits(
    *(np.concatenate([getattr(s, f.name) for s in sets]) for f in dataclasses.fields(Exhibits))
  )


def group_reals(config: ml_collections.ConfigDict, images: ImageSet) -> np.ndarray:
  """int[n]: patients or near-duplicates."""
  return splits.group(images, config.split)[1]


def _make(family: fakes.Family, reals: ImageSet, count: int, seed: int, workdir: Path):
  if not family.network:
    return fakes.from_reals(family.method, None, reals, count, seed)
  trained = sampling.load(generator_dir(workdir, family.network))
  if family.method != 'samples':
    return fakes.from_reals(family.method, trained, reals, count, seed)
  return fakes.sample(trained, generate.spread_labels(count, len(reals.class_names)), seed)
