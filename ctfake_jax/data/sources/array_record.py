"""Any source as a TensorFlow Datasets set of ArrayRecord files, and back again.

Enters a `types.Source`; leaves a folder that `tfds.builder_from_directory` opens and that
`TfdsSource` (random access, as Grain wants it) gives back as a `types.Source`. Neither way needs
TensorFlow or a network.

Pixels are kept as uint16 with `value = code / steps_per_unit + offset`, compressed by zlib:
  grey   offset 0, 65535 steps: 8- and 16-bit pictures return bit by bit, others within 8e-6;
  HU     whole numbers spanning at most 65535: one step per HU, bit by bit;
         others: 65535 steps over the slice's own range, within half a step (0.03 HU for 4096).
Labels, patients (by pseudonyms of this set), provenance and splits are also kept in the set's
metadata.json, so that data can be counted and split without decoding a picture. A record's split
becomes the TFDS split, 'unsplit' where it has none ('all' is TFDS's word for every split together).
"""

import contextlib
import dataclasses
import hmac
import io
import pathlib
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format

from ctfake_jax.runtime import progress_bar
from ctfake_jax.types import Record, Slice, Source, UnreadableImageError, UserError

_CODES = 65535
_UNSPLIT = 'unsplit'
# Small enough to lose little of a broken file, large enough that the files stay few.
_IMAGES_PER_SHARD = 2048


class CtSlices(tfds.core.ShardBasedBuilder):
  """The TFDS set 'ct_slices', written from a `Source` shard by shard in the source's order.

  Not a GeneratorBasedBuilder: that one's shuffler holds every example in memory, and beyond 1 GB
  spills them with TensorFlow's file functions.
  """

  VERSION = tfds.core.Version('1.0.0')
  # Where TFDS seeks checksums of downloads. Finding it by itself needs importlib_resources, which
  # TFDS 4.9.10 does not install from Python 3.9 on; there are no downloads.
  code_path = None

  def __init__(self, *, source: Source | None = None, **kwargs: Any):
    """Takes the `source` to write; without one the builder only reads what lies in `data_dir`."""
    self._source = source
    super().__init__(file_format='array_record', **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        'pixels': tfds.features.Tensor(shape=(None, None), dtype=np.uint16, encoding='zlib'),
        'steps_per_unit': np.float32,
        'offset': np.float32,
        'unit': tfds.features.Text(),
        'spacing_mm': np.float32,  # 0: unknown
        'label': np.int64,  # index into metadata's class_names, -1: unknown
        'patient_id': tfds.features.Text(),  # '': unknown
        'provenance': tfds.features.Text(),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self,
      description='Grey slices; value = pixels / steps_per_unit + offset, in HU or in [0, 1].',
      features=features,
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,
    )

  def _shard_iterators_per_split(self, dl_manager: object) -> dict[str, list[Callable]]:
    if self._source is None:
      raise UserError('ct_slices: nothing to write; call write_records(source, directory)')
    source, metadata = _Pseudonymous(self._source), self.info.metadata
    unreadable = [[error.path, error.reason] for error in source.unreadable]
    metadata.update(
      class_names=list(source.class_names),
      records={},
      whites={},
      unreadable=unreadable,
      skipped=dict(getattr(self._source, 'skipped', {})),
    )
    shards: dict[str, list[Callable]] = {}
    for split in sorted({record.split or _UNSPLIT for record in source.records}):
      kept: list[list] = []
      metadata['records'][split] = kept
      whites: list[int] = []
      metadata['whites'][split] = whites
      members = [i for i, r in enumerate(source.records) if (r.split or _UNSPLIT) == split]
      starts = range(0, len(members), _IMAGES_PER_SHARD)
      parts = [members[start : start + _IMAGES_PER_SHARD] for start in starts]
      shards[split] = [
        _Shard(
          source, part, kept, whites, unreadable, f'{split} records, shard {n} of {len(parts)}'
        )
        for n, part in enumerate(parts, 1)
      ]
    return shards


class _Pseudonymous:
  """A source whose patients have names that nobody can link to them.

  A hash of a Patient ID can be checked by whoever guesses it; the key of this one (HMAC-SHA256) is
  kept nowhere.
  """

  def __init__(self, source: Source):
    key = secrets.token_bytes(32)

    def name(patient: str | None) -> str | None:
      return patient and hmac.digest(key, patient.encode(), 'sha256').hex()[:12]

    self._source = source
    self.class_names, self.unreadable = source.class_names, source.unreadable
    self.records = [
      dataclasses.replace(record, patient_id=name(record.patient_id)) for record in source.records
    ]

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Slice:
    return self._source[index]


class _Shard:
  """Yields the examples of one shard, noting which were written and which could not be read."""

  def __init__(
    self,
    source: Source,
    indices: list[int],
    kept: list,
    whites: list[int],
    unreadable: list,
    title: str,
  ):
    self._source, self._indices, self._title = source, indices, title
    self._kept, self._whites, self._unreadable = kept, whites, unreadable

  def __call__(self) -> Iterator[tuple[int, dict[str, Any]]]:
    for index in progress_bar.bar(self._title, self._indices):
      record = self._source.records[index]
      try:
        image = self._source[index]
        example = _encode(image, record)
      except UnreadableImageError as error:
        self._unreadable.append([error.path, error.reason])
        continue
      self._kept.append([record.label, record.patient_id, record.provenance])
      self._whites.append(image.white)
      yield index, example


# Where TFDS lays a set: name/version below the folder it is given.
_BELOW = pathlib.Path(CtSlices.name, str(CtSlices.VERSION))


def write_records(source: Source, directory: pathlib.Path) -> pathlib.Path:
  """Writes `source` below `directory` as the TFDS set 'ct_slices'.

  The set is built beside its place and moved there when whole: a write that was interrupted
  leaves nothing that reads as a set. Images that cannot be read are left out and listed.

  Returns:
    the set's folder, for `TfdsSource` and `tfds.builder_from_directory`.

  Raises:
    UserError: `directory` holds a set already, is not a folder, or no image can be read.
  """
  if directory.exists() and not directory.is_dir():
    raise UserError(f'{directory}: is a file; name a folder for the records')
  if not len(source):
    raise UserError(f'{directory}: nothing to write, the source has no image')
  folder = directory / _BELOW
  if folder.exists():
    raise UserError(f'{directory}: holds a ct_slices set already; remove it or name another folder')
  builder = CtSlices(source=source, data_dir=directory)
  # TFDS makes a folder for downloads and prints that it downloads; there are none.
  with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(
      download_dir=downloads, download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
  if not any(builder.info.metadata['records'].values()):
    shutil.rmtree(folder)
    path, reason = builder.info.metadata['unreadable'][0]
    raise UserError(f'no image can be read; the first, {path}: {reason}')
  return folder


class TfdsSource:
  """A set written by `write_records`, as a `types.Source`.

  Order is that of the source it was written from within each split; with several splits, the
  splits follow each other by name.

  Attributes:
    class_names: what a label means.
    records: one per image, in order.
    unreadable: what was left out in writing.
    skipped: how many files were not read, by kind, when it was written.
  """

  def __init__(self, directory: pathlib.Path, split: str = 'all'):
    """Opens the set in `directory`: what `write_records` returned, or what it was given.

    Args:
      directory: the set's folder, or the one that holds it.
      split: 'all', or one of the set's splits.

    Raises:
      UserError: there is no whole set of ours, or it has no such split.
    """
    builder = _open(pathlib.Path(directory))
    have = sorted(builder.info.splits)
    if split != 'all' and split not in have:
      raise UserError(f'{directory}: no split {split!r}; have: all, {", ".join(have)}')
    names = have if split == 'all' else [split]
    try:
      self._read_facts(builder.info.metadata, names)
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(f'{directory}: metadata.json is damaged; write the set anew') from error
    self._examples = builder.as_data_source(split='+'.join(names))  # '+' keeps this order

  def _read_facts(self, metadata: dict[str, Any], splits: list[str]) -> None:
    self.class_names = tuple(metadata['class_names'])
    self.records = [
      Record(label, patient, provenance, None if split == _UNSPLIT else split)
      for split in splits
      for label, patient, provenance in metadata['records'][split]
    ]
    self.unreadable = [UnreadableImageError(*facts) for facts in metadata['unreadable']]
    whites = metadata.get('whites')  # older sets did not keep these, nor did they count
    kept = [white for split in splits for white in whites[split]] if whites else []
    self._whites = kept or [1] * len(self.records)
    if len(self._whites) != len(self.records):
      raise ValueError('whites do not fit the records')
    self.skipped: dict[str, int] = metadata.get('skipped', {})

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Slice:
    """Decodes image `index`: pixels float32[h, w] in HU or in [0, 1], as its unit says."""
    try:
      example = self._examples[range(len(self))[index]]
    except (RuntimeError, ValueError, zlib.error) as error:
      reason = 'its record is damaged; write the set anew'
      raise UnreadableImageError(self.records[index].provenance, reason) from error
    return dataclasses.replace(_decode(example), white=self._whites[index])


def _open(directory: pathlib.Path) -> CtSlices:
  """The builder of a set whose every file is there in its full length."""
  home = directory.parents[1] if directory.parts[-2:] == _BELOW.parts else directory
  if not (home / _BELOW / 'dataset_info.json').is_file():
    raise UserError(
      f'{directory}: holds no whole set ({_BELOW}/dataset_info.json is missing); write one with'
      ' write_records, and give the folder that it was given'
    )
  try:
    builder = CtSlices(data_dir=home)
    whole = all(_is_whole(split, builder.info) for split in builder.info.splits.values())
  except (OSError, ValueError, KeyError, TypeError, json_format.Error) as error:
    raise UserError(f'{directory}: the set is damaged ({error}); write it anew') from error
  if not whole:
    raise UserError(f'{directory}: a file of the set is missing or cut short; write the set anew')
  return builder


def _is_whole(split: tfds.core.SplitInfo, info: tfds.core.DatasetInfo) -> bool:
  files = [pathlib.Path(path) for path in split.filepaths]
  if not all(file.is_file() for file in files):
    return False
  kept = info.metadata['records'][split.name]
  return sum(f.stat().st_size for f in files) == split.num_bytes and len(kept) == split.num_examples


def _encode(image: Slice, record: Record) -> dict[str, Any]:
  """One example; raises `UnreadableImageError` where values cannot be told as codes."""
  pixels = image.pixels.astype(np.float64)
  if not np.isfinite(pixels).all():
    raise UnreadableImageError(record.provenance, 'has NaN or infinite values')
  steps, offset = (_CODES, 0) if image.unit == 'grey' else _hu_steps(pixels)
  codes = np.rint((pixels - offset) * steps)
  if codes.min() < 0 or codes.max() > _CODES:
    raise UnreadableImageError(record.provenance, 'has grey values outside [0, 1]')
  return {
    'pixels': codes.astype(np.uint16),
    'steps_per_unit': steps,
    'offset': offset,
    'unit': image.unit,
    'spacing_mm': image.spacing_mm or 0,
    'label': record.label,
    'patient_id': record.patient_id or '',
    'provenance': record.provenance,
  }


def _hu_steps(hu: np.ndarray) -> tuple[float, float]:
  """Steps per HU and the HU of code 0: whole steps if they lose nothing, else the finest."""
  low = float(hu.min())
  above = hu - low
  most = float(np.max(above))
  if most <= _CODES and (above == np.rint(above)).all():
    return 1.0, low
  # TFDS stores float32: rounded here already, and kept finite for spans near zero.
  return float(np.float32(min(_CODES / most, 1e30))), low


def _decode(example: dict[str, Any]) -> Slice:
  # float64 up to the last step: rounding to float32 in between would lose the last bit.
  codes, steps = example['pixels'].astype(np.float64), float(example['steps_per_unit'])
  pixels = codes / steps + float(example['offset'])
  return Slice(
    pixels=pixels.astype(np.float32),
    unit=example['unit'].decode(),
    spacing_mm=float(example['spacing_mm']) or None,
  )
