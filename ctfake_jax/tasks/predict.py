"""The task `predict`: class probabilities for an image or a folder, as CSV and JSON.

Takes PNG, JPEG, TIFF, BMP and DICOM, side by side; a checkpoint trained on HU sees DICOM through
the window that it was trained with. Files that cannot be read, or have values of another unit than
the network learnt from, are rows of their own, with the reason.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np

from ctfake_jax.data.dataset import gather
from ctfake_jax.data.sources import walker
from ctfake_jax.data.sources.dicom.source import DicomSource
from ctfake_jax.data.sources.image_folder import FolderSource
from ctfake_jax.inference import classifier as inference
from ctfake_jax.types import ImageSet, Record, Slice, Source, UnreadableImageError, UserError
from ctfake_jax.workdir import files as workdir_lib


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
  """Writes predictions.csv (path, label, one column a class) and results.json."""
  workdir_lib.check_same_command(workdir, config)
  trained = inference.load(Path(config.checkpoint))
  source = open_input(Path(config.input), config.data.max_pixels)
  images = gather(source, trained.view, labelled=False, unit=trained.unit)
  probabilities = trained.predict(images.images)
  workdir_lib.record_command(workdir, config)
  write_csv(workdir / 'predictions.csv', images, probabilities, trained.class_names)
  results = {
    'images': len(images),
    'unit': images.unit,
    'class_names': list(trained.class_names),
    'per_class': dict(
      zip(
        trained.class_names,
        np.bincount(probabilities.argmax(1), minlength=len(trained.class_names)).tolist(),
      )
    ),
    'unreadable': [{'path': e.path, 'reason': e.reason} for e in images.unreadable],
    'skipped': dict(images.skipped),
  }
  workdir_lib.write_results(workdir, results)
  return results


class Together:
  """Pictures and DICOM below one folder as one `types.Source` without labels.

  Attributes:
    records: of the pictures, then of the DICOM frames.
    unreadable: what neither could take.
    skipped: how many files neither claims, by kind.
  """

  class_names: tuple[str, ...] = ()

  def __init__(self, pictures: FolderSource, dicom: DicomSource):
    """`pictures` lists DICOM as unreadable, `sources.dicom` counts pictures as skipped."""
    self._sources = (pictures, dicom)
    self.records: Sequence[Record] = [*pictures.records, *dicom.records]
    read = {walker.shown(record.path) for record in dicom.records}
    refused = {error.path: error for error in (*pictures.unreadable, *dicom.unreadable)}
    self.unreadable: Sequence[UnreadableImageError] = [
      error for path, error in refused.items() if path not in read
    ]
    self.skipped: Mapping[str, int] = pictures.skipped

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Slice:
    """Decodes image `index`; raises `UnreadableImageError`."""
    pictures, dicom = self._sources
    first = len(pictures)
    return pictures[index] if index < first else dicom[index - first]


def open_input(path: Path, max_pixels: int) -> Source:
  """All pictures and CT below `path`; UserError where there is neither."""
  if not path.exists():
    raise UserError(f'config.input = {path}: no such file or folder')
  if path.is_file():
    return (_dicom if walker.is_dicom(path) else _pictures)(path, max_pixels)
  pictures = dicom = None
  reasons = []
  try:
    pictures = _pictures(path, max_pixels)
  except UserError as error:
    reasons.append(f'no picture ({error})')
  try:
    dicom = _dicom(path, max_pixels)
  except UserError as error:
    reasons.append(f'no CT ({error})')
  if pictures and dicom:
    return Together(pictures, dicom)
  if found := pictures or dicom:
    return found
  raise UserError(f'config.input = {path}: {" and ".join(reasons)}')


def _pictures(path: Path, max_pixels: int) -> FolderSource:
  return FolderSource(path, max_pixels=max_pixels, unlabelled_ok=True)


def _dicom(path: Path, max_pixels: int) -> DicomSource:
  return DicomSource(
    path, labels_csv=None, max_pixels=max_pixels, unlabelled_ok=True, synthetic_ok=True
  )


def write_csv(
  path: Path, images: ImageSet, probabilities: np.ndarray, class_names: tuple[str, ...]
) -> None:
  """One row an image, with remarks; unreadable ones at the end, without probabilities."""
  safe = workdir_lib.csv_safe
  with open(path, 'w', newline='', encoding='utf-8') as handle:
    writer = csv.writer(handle)
    writer.writerow(
      ['path', 'prediction', *(safe(f'p_{name}') for name in class_names), 'error', 'remarks']
    )
    for record, row in zip(images.records, probabilities):
      chosen = class_names[int(row.argmax())]
      values = [f'{p:.6f}' for p in row]
      remarks = safe('; '.join(record.remarks))
      writer.writerow([safe(record.provenance), safe(chosen), *values, '', remarks])
    for error in images.unreadable:
      blank = [''] * len(class_names)
      writer.writerow([safe(error.path), '', *blank, safe(error.reason), ''])
