"""From a source to an image set, in host memory or left on disk."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from ctfake_jax.config.keys import Config, DataConfig
from ctfake_jax.data import grey_range
from ctfake_jax.data.fingerprints import (
  DIGEST_BYTES,
  SMALL_SIDE,
  Fingerprints,
  thumbnail_and_digest,
)
from ctfake_jax.data.lazy_images import LazyImages
from ctfake_jax.data.preprocess import TWO_VALUES, Preprocess
from ctfake_jax.data.sources import layout, sandboxed, walker
from ctfake_jax.data.sources.sandboxed import Decoded, Limits
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.runtime import progress_bar
from ctfake_jax.types import (
  UNKNOWN_LABEL,
  ImageSet,
  Plane,
  Record,
  Source,
  UnreadableImageError,
  UserError,
)

FEW_FILES = 2000  # read without a progress bar
WORDS_BYTES = 400  # of why an image cannot be read, or of the remarks on it
FEW_REASONS = 3  # on the screen; results have all
FEWEST_MASKS, SHARE_OF_MASKS = 3, 0.2  # of a class: more is no chance


def open_source(config: Config) -> Source:
  """The source that `config.data` and `config.phantom` name."""
  data = config.data
  if data.source == 'phantom':
    from ctfake_jax.data.sources.phantom.source import PhantomSource

    return PhantomSource(
      patients=config.phantom.patients,
      slices_per_patient=config.phantom.slices_per_patient,
      size=config.phantom.size or data.image_size,
      seed=config.phantom.seed,
      scanners=tuple(config.phantom.scanners),
    )
  if data.source == 'folders':
    from ctfake_jax.data.sources.image_folder import FolderSource

    return FolderSource(
      Path(data.path),
      classes=tuple(data.classes),
      max_pixels=data.max_pixels,
      patient_folders=data.patient_folders,
    )
  if data.source == 'dicom':
    from ctfake_jax.data.sources.dicom.source import DicomSource

    labels = Path(data.labels_csv) if data.labels_csv else None
    return DicomSource(
      Path(data.path),
      labels_csv=labels,
      max_pixels=data.max_pixels,
      classes=tuple(data.classes),
      synthetic_ok=data.synthetic_ok,
    )
  from ctfake_jax.data.sources.array_record import TfdsSource

  return TfdsSource(Path(data.path))


def root_of_files(data: DataConfig) -> Path | None:
  """The folder that paths in records start from; None where the images are no files."""
  return Path(data.path) if data.source in ('folders', 'dicom') else None


def gather(
  source: Source,
  view: Preprocess,
  *,
  labelled: bool = True,
  stream: bool = False,
  unit: str | None = None,
  limits: Limits | None = None,
) -> ImageSet:
  """Decodes and preprocesses all of a source; unreadable images are listed, not dropped silently.

  Args:
    source: where the images come from.
    view: what becomes of them.
    labelled: every image needs a label, and there must be two classes.
    stream: each image is decoded once to see that it can be, and again whenever it is needed.
    unit: that a network was trained on; images of another one are listed as unreadable.
    limits: of the processes that untrusted files are decoded in; None: in this one.

  Raises:
    UserError: nothing readable; where `labelled`, some images in HU and some not (otherwise the
      fewer are listed as unreadable), an image without a label, or fewer than two classes.
  """
  count, shares = len(source), jax.process_count()
  share = range(jax.process_index(), count, shares)
  decoded = sandboxed.decode_rows(source, view, share, limits)
  bar = progress_bar.bar('reading', decoded, total=len(share), hidden=len(share) < FEW_FILES)
  facts = _facts(iter(bar), -(-count // shares), 0 if stream else view.size, unit)
  facts = {name: rows[:count] for name, rows in mesh_lib.from_all_processes(facts).items()}
  odd, reason = _other_unit(facts['is_hu'], facts['readable'])
  found = facts['readable'] & ~odd
  if labelled and odd.any():
    _refuse_mixed_units(source.records, odd, reason)
  reasons = {
    i: reason if odd[i] else _text(facts['words'][i]) for i in np.nonzero(~found)[0].tolist()
  }
  unreadable = [
    *source.unreadable,
    *(UnreadableImageError(source.records[i].provenance, why) for i, why in reasons.items()),
  ]
  if not found.any():
    raise UserError(f'no readable image among {len(unreadable)}: {_first(unreadable)}')
  skipped = dict(getattr(source, 'skipped', {}))  # of those that walk folders
  if mesh_lib.is_main_process():
    _say_what_is_missing(unreadable, skipped)
    if unnamed := getattr(source, 'without_patient_id', 0):
      print(f'careful: {unnamed} images have no Patient ID: each study counts as a patient')
  indices = np.nonzero(found)[0]
  fingerprints = Fingerprints(facts['small'], facts['digests']).take(indices)
  records = tuple(_record(source.records[i], facts, i) for i in indices.tolist())
  _say_remarks(records)
  images = facts['images'] if found.all() else facts['images'][indices]
  result = ImageSet(
    images=LazyImages(source, view, indices, fingerprints) if stream else images,
    labels=np.array([record.label for record in records], np.int32),
    records=records,
    native_sizes=facts['size'][indices],
    class_names=source.class_names,
    unit='HU' if facts['is_hu'][indices[0]] else 'grey',
    unreadable=tuple(unreadable),
    skipped=skipped,
  )
  if labelled:
    _check_labels(result)
    _refuse_masks(result)
    if mesh_lib.is_main_process():
      for remark in alike_classes(source.class_names):
        print(remark)
  return result


def _refuse_mixed_units(records: Sequence[Record], odd: np.ndarray, reason: str) -> None:
  names = ', '.join(records[i].provenance for i in np.nonzero(odd)[0][:FEW_REASONS].tolist())
  more = ' ...' if odd.sum() > FEW_REASONS else ''
  raise UserError(
    f'{odd.sum()} images have {reason}: {names}{more}; keep them in separate data sets'
  )


def _first(unreadable: Sequence[UnreadableImageError]) -> str:
  return '; '.join(str(error) for error in unreadable[:FEW_REASONS])


def alike_classes(class_names: Sequence[str]) -> Iterator[str]:
  """Remarks on classes whose names are nearly the same."""
  for names in layout.alike(class_names):
    yield (
      f'careful: the classes {", ".join(map(repr, names))} differ by case or spelling alone; if '
      'they are one, give them one name'
    )


def check_classes(class_names: Sequence[str]) -> None:
  """Raises UserError where there is nothing to tell apart."""
  if len(class_names) < 2:
    raise UserError(f'only one class ({", ".join(class_names)}): need at least two')


def _say_what_is_missing(
  unreadable: Sequence[UnreadableImageError], skipped: Mapping[str, int]
) -> None:
  if unreadable:
    more = '; ...' if len(unreadable) > FEW_REASONS else ''
    print(f'unreadable images, left out: {len(unreadable)} ({_first(unreadable)}{more})')
  walker.say(skipped)


def _facts(
  images: Iterator[Decoded], rows: int, side: int, unit: str | None
) -> dict[str, np.ndarray]:
  """Facts of so many images, in arrays that processes can exchange; no pixels where `side` is 0."""
  facts = {
    'readable': np.zeros(rows, bool),
    'words': np.zeros((rows, WORDS_BYTES), np.uint8),
    'size': np.zeros((rows, 2), np.int32),
    'is_hu': np.zeros(rows, bool),
    'spacing_mm': np.zeros(rows, np.float32),
    'small': np.zeros((rows, SMALL_SIDE**2), np.float32),
    'digests': np.zeros((rows, DIGEST_BYTES), np.uint8),
    'images': np.zeros((rows, side, side, 1), np.float32),
  }
  for row, decoded in enumerate(images):
    reason = decoded.reason or (
      '; '.join(decoded.wrong_unit(unit, 'network')) if unit is not None else ''
    )
    _put_text(facts['words'][row], reason or '\n'.join(decoded.remarks))
    if decoded.image is None or reason:
      continue
    seen = decoded.image[..., None]
    facts['small'][row], facts['digests'][row] = thumbnail_and_digest(seen)
    facts['readable'][row], facts['size'][row] = True, decoded.native_size
    facts['is_hu'][row] = decoded.unit == 'HU'
    facts['spacing_mm'][row] = decoded.spacing_mm or 0
    if side:
      facts['images'][row] = seen
  return facts


def _other_unit(is_hu: np.ndarray, readable: np.ndarray) -> tuple[np.ndarray, str]:
  """bool[n], the readable images in the unit that fewer of them have, and what that means."""
  most_hu = 2 * (is_hu & readable).sum() >= readable.sum()
  units = ('grey values', 'HU') if most_hu else ('HU', 'grey values')
  return readable & (is_hu != most_hu), f'{units[0]}, while the others are in {units[1]}'


def _record(record: Record, facts: dict[str, np.ndarray], row: int) -> Record:
  """With what was found in decoding: remarks, and the plane where there was none but a spacing."""
  plane, spacing = record.plane, float(facts['spacing_mm'][row])
  if plane is None and spacing:
    height, width = facts['size'][row].tolist()
    plane = Plane((height, width), (spacing, spacing))
  remarks = tuple(_text(facts['words'][row]).splitlines())
  return dataclasses.replace(record, plane=plane, remarks=remarks)


def _say_remarks(records: tuple[Record, ...]) -> None:
  counts = collections.Counter(remark for record in records for remark in record.remarks)
  if mesh_lib.is_main_process():
    for remark, count in counts.items():
      print(f'{count} images: {remark}')


def _put_text(codes: np.ndarray, text: str) -> None:
  encoded = text.encode()[: len(codes)]
  codes[: len(encoded)] = np.frombuffer(encoded, np.uint8)


def _text(codes: np.ndarray) -> str:
  return codes.tobytes().rstrip(b'\0').decode(errors='ignore')


def load(config: Config) -> tuple[ImageSet, Config]:
  """The labelled image set that the config names; and the config, its 'auto' now what was found."""
  source = open_source(config)
  found, data = grey_range.settle(config.data, source)
  images = gather(source, Preprocess.from_config(data), stream=data.stream)
  return dataclasses.replace(images, grey_range=found), dataclasses.replace(config, data=data)


def _refuse_masks(images: ImageSet) -> None:
  """Raises UserError where many images of a class have two grey values, as masks do."""
  two_valued = np.array([TWO_VALUES in record.remarks for record in images.records])
  for label, name in enumerate(images.class_names):
    own = two_valued[images.labels == label]
    if own.sum() >= FEWEST_MASKS and own.mean() >= SHARE_OF_MASKS:
      raise UserError(
        f'class {name!r}: {own.sum()} of {len(own)} images have two grey values only, as masks '
        'have; move them out of the folder'
      )


def _check_labels(images: ImageSet) -> None:
  unlabelled = [r.provenance for r in images.records if r.label == UNKNOWN_LABEL]
  if unlabelled:
    raise UserError(
      f'{len(unlabelled)} images have no label, {unlabelled[0]} first: '
      'sort them into class folders or give data.labels_csv'
    )
  counts = np.bincount(images.labels, minlength=len(images.class_names))
  check_classes(images.class_names)
  for name, count in zip(images.class_names, counts):
    if not count:
      raise UserError(f'class {name!r} has no readable image: remove it or add images')
