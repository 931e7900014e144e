"""Who trains, who validates, who tests; and what a split might leak.

Groups keep together what is not independent: a patient's slices, or near-duplicates where no
patient is known. Every function takes an `ImageSet` of n images and returns indices into it.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped
from scipy import sparse
from scipy.sparse import csgraph
from sklearn.model_selection import StratifiedGroupKFold

from ctfake_jax.config.keys import SplitConfig
from ctfake_jax.data.fingerprints import ROWS_AT_ONCE, Fingerprints
from ctfake_jax.runtime import streams
from ctfake_jax.types import ImageSet, UserError


@dataclasses.dataclass(frozen=True)
class Split:
  """Disjoint index arrays into an image set.

  Attributes:
    groups: of all images; those that share a number are never parted.
    by: 'patient', 'duplicates', 'slice' or 'given' (prescribed by the source).
  """

  train: Int[np.ndarray, ' train']
  val: Int[np.ndarray, ' val']
  test: Int[np.ndarray, ' test']
  groups: Int[np.ndarray, ' n']
  by: str

  def as_json(self, images: ImageSet) -> dict:
    """Provenance of every image by part."""
    parts = {'train': self.train, 'val': self.val, 'test': self.test}
    names = {part: [images.records[i].provenance for i in rows] for part, rows in parts.items()}
    return {'by': self.by, **names}


def split(images: ImageSet, config: SplitConfig, fold: int) -> Split:
  """The parts for `fold` (0 for a single split), stratified by class, fixed by `config.seed`."""
  by, groups = group(images, config)
  everyone = np.arange(len(images))
  given = _prescribed(images, everyone, 'test')
  if config.folds and any(record.split for record in images.records):
    raise UserError(
      f'config.split.folds = {config.folds}: the source prescribes its own parts (train, test); '
      'set split.folds=0 to keep them, or give the images without them'
    )
  prescribed = {record.split for record in images.records} - {None}
  if prescribed and not {'train', 'test'} <= prescribed:
    raise UserError(
      'the source prescribes parts but not both train and test: add what is missing, '
      'or give the images without part folders'
    )
  if given:
    by, (rest, test) = 'given', given
  else:
    refuse_one_patient(by, groups)
    parts = config.folds or round(1 / config.test_fraction)
    rest, test = _part(
      images.labels, groups, everyone, parts, fold, streams.seed(config.seed, 'test part')
    )
  parts = max(2, round(1 / config.val_fraction))
  train, val = (given and _prescribed(images, rest, 'val')) or _part(
    images.labels, groups, rest, parts, 0, streams.seed(config.seed, 'validation part', fold)
  )
  result = Split(train, val, test, groups, by)
  _check(images, result)
  return result


def halves(
  labels: Int[np.ndarray, ' n'], groups: Shaped[np.ndarray, ' n'], seed: int
) -> Bool[np.ndarray, ' n']:
  """Half of the groups at random, with half of each class of labels."""
  rows = np.arange(len(labels))
  return np.isin(rows, _part(labels, groups, rows, 2, 0, seed)[1])


def refuse_one_patient(by: str, groups: Int[np.ndarray, ' n']) -> None:
  """Raises UserError where groups are patients, and all images are of one."""
  if by == 'patient' and len(groups) > 1 and groups.min() == groups.max():
    raise UserError(
      f'all {len(groups)} images bear one patient ID: there is one patient, or the IDs were made '
      'one when names were removed; set --config.split.by=duplicates, which keeps near-twins '
      'together, or give each patient an ID of its own'
    )


def group(images: ImageSet, config: SplitConfig) -> tuple[str, Int[np.ndarray, ' n']]:
  """How images are grouped, and their group numbers."""
  patients = [record.patient_id for record in images.records]
  by = config.by
  unowned = [record.provenance for record in images.records if not record.patient_id]
  if by == 'auto' and unowned and len(unowned) < len(images):
    raise UserError(
      f'{unowned[0]} and {len(unowned) - 1} more images have no patient, others have: '
      'give them one, take them out, or choose split.by'
    )
  if by == 'auto':
    by = 'duplicates' if unowned else 'patient'
  if by == 'patient':
    if not all(patients):
      raise UserError(
        'config.split.by = patient: the source knows no patients; '
        'use duplicates or slice, or data.patient_folders'
      )
    return by, np.unique(np.asarray(patients), return_inverse=True)[1]
  if by == 'duplicates':
    return by, near_duplicate_groups(Fingerprints.of(images).small, config.duplicate_correlation)
  return by, np.arange(len(images))


def with_random_labels(images: ImageSet, config: SplitConfig) -> ImageSet:
  """The same images, every patient (or set of near-duplicates) of a random class.

  Nothing can be learnt of such labels but by recognising who was seen in training: accuracy above
  chance on the test part is leakage.
  """
  _, groups = group(images, dataclasses.replace(config, by='auto'))
  rng = streams.generator(config.seed, 'random labels')
  drawn = rng.permutation(np.arange(groups.max() + 1) % len(images.class_names))
  labels = drawn[groups].astype(np.int32)
  records = tuple(
    dataclasses.replace(record, label=int(label)) for record, label in zip(images.records, labels)
  )
  return dataclasses.replace(images, labels=labels, records=records)


def near_duplicate_groups(
  small: Float32[np.ndarray, 'n d'], correlation: float
) -> Int[np.ndarray, ' n']:
  """Connected components of pairs whose small pixels correlate above `correlation`."""
  rows, columns = [], []
  for start in range(0, len(small), ROWS_AT_ONCE):
    r, c = np.nonzero(small[start : start + ROWS_AT_ONCE] @ small.T > correlation)
    rows.append(r + start)
    columns.append(c)
  pairs = (np.concatenate(rows), np.concatenate(columns))
  links = sparse.coo_matrix((np.ones(len(pairs[0]), bool), pairs), (len(small), len(small)))
  return csgraph.connected_components(links, directed=False)[1]


def leak_audit(
  images: ImageSet, fingerprints: Fingerprints, parts: Split, correlation: float
) -> dict:
  """Counts of what the test part shares with the training and validation parts."""
  seen = np.concatenate([parts.train, parts.val])
  _, nearest = fingerprints.nearest(seen, parts.test)
  known = {record.patient_id for record in (images.records[i] for i in seen)} - {None}
  pixels = {digest.tobytes() for digest in fingerprints.digests[seen]}
  return {
    'test_images': len(parts.test),
    'exact_duplicates': sum(d.tobytes() in pixels for d in fingerprints.digests[parts.test]),
    'near_duplicates': int((nearest > correlation).sum()),
    'near_duplicate_correlation': correlation,
    'shared_groups': len(set(parts.groups[parts.test]) & set(parts.groups[seen])),
    'shared_patients': len({images.records[i].patient_id for i in parts.test} & known),
  }


def _part(labels, groups, rows, parts, which, seed) -> tuple[np.ndarray, np.ndarray]:
  """Splits `rows` into the rest and the `which`-th of `parts` stratified, grouped parts."""
  if len(np.unique(groups[rows])) < parts:
    raise UserError(
      f'config.split: {len(np.unique(groups[rows]))} groups (patients, or images that are linked '
      f'above split.duplicate_correlation) cannot be split into {parts} parts; add data, raise '
      'split.test_fraction and split.val_fraction, lower split.folds where it is set, or choose '
      'another split.by'
    )
  folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
  rest, part = list(folds.split(rows, labels[rows], groups[rows]))[which]
  return rows[rest], rows[part]


def _prescribed(
  images: ImageSet, rows: np.ndarray, part: str
) -> tuple[np.ndarray, np.ndarray] | None:
  """`rows` without and with those that the source assigns to `part`; None where it assigns none."""
  chosen = np.array([images.records[int(i)].split == part for i in rows])
  return (rows[~chosen], rows[chosen]) if chosen.any() and not chosen.all() else None


def _check(images: ImageSet, parts: Split) -> None:
  for name, rows in (('train', parts.train), ('val', parts.val), ('test', parts.test)):
    missing = set(range(len(images.class_names))) - set(images.labels[rows].tolist())
    if missing:
      names = ', '.join(images.class_names[i] for i in sorted(missing))
      raise UserError(
        f'config.split: no image of {names} in the {name} part ({len(rows)} images); '
        'add data, or change split.seed or the fractions'
      )
