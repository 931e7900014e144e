"""From a source to an image set, in host memory or left on disk."""

from pathlib import Path

import ml_collections
import numpy as np
from tqdm import tqdm

from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.data.stored import StoredImages
from ctfake_jax.types import UNKNOWN_LABEL, ImageSet, Source, UnreadableImageError, UserError


def open_source(config: ml_collections.ConfigDict) -> Source:
  """The source that `config.data` and `config.phantom` name."""
  data = config.data
  if data.source == 'phantom':
    from ctfake_jax.data.phantom import PhantomSource

    return PhantomSource(
      patients=config.phantom.patients,
      slices_per_patient=config.phantom.slices_per_patient,
      size=config.phantom.size or data.image_size,
      seed=config.phantom.seed,
      scanners=tuple(config.phantom.scanners),
    )
  if data.source == 'folders':
    from ctfake_jax.data.folders import FolderSource

    return FolderSource(
      Path(data.path),
      classes=tuple(data.classes),
      max_pixels=data.max_pixels,
      patient_folders=data.patient_folders,
    )
  if data.source == 'dicom':
    from ctfake_jax.data.dicom import DicomSource

    labels = Path(data.labels_csv) if data.labels_csv else None
    return DicomSource(Path(data.path), labels_csv=labels, max_pixels=data.max_pixels)
  from ctfake_jax.data.tfds_builder import TfdsSource

  return TfdsSource(Path(data.path))


def gather(
  source: Source, view: Preprocess, *, labelled: bool = True, stream: bool = False
) -> ImageSet:
  """Decodes and preprocesses all of a source; unreadable images are listed, not dropped silently.

  With `stream` each image is decoded once to see that it can be, and again whenever it is needed.

  Raises:
    UserError: nothing readable, an image without a label, or fewer than two classes, where
      `labelled`.
  """
  images, indices, sizes, unreadable = [], [], [], list(source.unreadable)
  units = set()
  for i in tqdm(range(len(source)), 'reading', mininterval=5, disable=len(source) < 2000):
    try:
      image = source[i]
    except UnreadableImageError as error:
      unreadable.append(error)
      continue
    if not stream:
      images.append(view(image))
    indices.append(i)
    sizes.append(image.pixels.shape)
    units.add(image.unit)
  if not indices:
    reasons = '; '.join(str(error) for error in unreadable[:3])
    raise UserError(f'no readable image among {len(unreadable)}: {reasons}')
  if len(units) > 1:
    raise UserError('some images are in HU and some are not: keep them in separate data sets')
  records = [source.records[i] for i in indices]
  result = ImageSet(
    images=StoredImages(source, view, np.array(indices)) if stream else np.stack(images),
    labels=np.array([record.label for record in records], np.int32),
    records=tuple(records),
    native_sizes=np.array(sizes, np.int32),
    class_names=source.class_names,
    unit=units.pop(),
    unreadable=tuple(unreadable),
  )
  if labelled:
    _check_labels(result)
  return result


def load(config: ml_collections.ConfigDict) -> ImageSet:
  """The labelled image set that the config names."""
  view = Preprocess.from_config(config.data)
  return gather(open_source(config), view, stream=config.data.stream)


def _check_labels(images: ImageSet) -> None:
  unlabelled = [r.provenance for r in images.records if r.label == UNKNOWN_LABEL]
  if unlabelled:
    raise UserError(
      f'{len(unlabelled)} images have no label, {unlabelled[0]} first: '
      'sort them into class folders or give data.labels_csv'
    )
  counts = np.bincount(images.labels, minlength=len(images.class_names))
  if len(counts) < 2:
    raise UserError(f'only one class ({", ".join(images.class_names)}): need at least two')
  for name, count in zip(images.class_names, counts):
    if not count:
      raise UserError(f'class {name!r} has no readable image: remove it or add images')
