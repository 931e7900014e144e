"""The task `predict`: class probabilities for an image or a folder, as CSV and JSON.

Takes PNG, JPEG, TIFF, BMP or DICOM, whichever the input holds; a checkpoint trained on HU sees
DICOM through the window that it was trained with. Unreadable files are rows of their own.
"""

import csv
from pathlib import Path

import ml_collections
import numpy as np
from pydicom.misc import is_dicom

from ctfake_jax import inference
from ctfake_jax import workdir as workdir_lib
from ctfake_jax.data.dicom import DicomSource
from ctfake_jax.data.folders import FolderSource
from ctfake_jax.data.pipeline import gather
from ctfake_jax.types import ImageSet, Source, UserError


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
  """Writes predictions.csv (path, label, one column a class) and results.json."""
  workdir_lib.refuse_others(workdir, config)
  trained = inference.load(Path(config.checkpoint))
  images = gather(
    open_input(Path(config.input), config.data.max_pixels), trained.view, labelled=False
  )
  probabilities = trained.predict(images.images)
  workdir_lib.sign(workdir, config)
  write_csv(workdir / 'predictions.csv', images, probabilities, trained.class_names)
  if images.unit != trained.unit:
    print(f'careful: trained on {trained.unit} values, the input has {images.unit} values')
  results = {
    'images': len(images),
    'unit': images.unit,
    'trained_on_unit': trained.unit,
    'class_names': list(trained.class_names),
    'per_class': dict(
      zip(
        trained.class_names,
        np.bincount(probabilities.argmax(1), minlength=len(trained.class_names)).tolist(),
      )
    ),
    'unreadable': [{'path': e.path, 'reason': e.reason} for e in images.unreadable],
  }
  workdir_lib.write_json(workdir / 'results.json', results)
  return results


def open_input(path: Path, max_pixels: int) -> Source:
  """Pictures if there are any, else DICOM; UserError where there is neither."""
  if not path.exists():
    raise UserError(f'config.input = {path}: no such file or folder')
  if path.is_file() and is_dicom(path):
    return DicomSource(path, labels_csv=None, max_pixels=max_pixels, synthetic_ok=True)
  try:
    return FolderSource(path, classes=(), max_pixels=max_pixels, unlabelled_ok=True)
  except UserError as no_pictures:
    try:
      return DicomSource(path, labels_csv=None, max_pixels=max_pixels, synthetic_ok=True)
    except UserError as no_dicom:
      raise UserError(
        f'config.input = {path}: no picture ({no_pictures}) and no CT ({no_dicom})'
      ) from None


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
