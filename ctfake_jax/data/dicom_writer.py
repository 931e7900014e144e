"""Generated CT images as DICOM that says what it is.

Enters float32[h, w] in HU; leaves a CT Image Storage file (PS3.3 A.3), Explicit VR Little Endian,
with a true rescale. Nobody may take it for a scan: Synthetic Data (0008,001C) is YES, Image Type
DERIVED, patient and series are called synthetic, and the Contributing Equipment Sequence
(0018,A001) names the generator as (109100, DCM, "Synthesizing Equipment"), as a note to Synthetic
Data in the SOP Common module (C.12.1) suggests. What a scanner would know (dates, kVp, slice
thickness) is left empty, not made up.
"""

import dataclasses
import pathlib

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ctfake_jax.types import UserError

INTERCEPT_HU = -1024  # stored value 0; with 16 bits signed HU may be -33,792 to 31,743
_LUNG_WINDOW_HU = -600, 1500  # centre and width for a viewer's first display
_LO_CHARACTERS = 64  # PS3.5 6.2: the longest value of representation LO


@dataclasses.dataclass(frozen=True)
class SyntheticSeries:
  """What the images of one generated series share.

  Images that are independent draws of a generator belong to a series, and so to a synthetic
  patient, each: slices of one series are taken for one object in space.

  Attributes:
    label: what the generator was asked for, e.g. a class name; any text.
    generator: name of the generating program and model, at most 64 characters.
    version: its version, at most 64 characters.
    seed: None draws fresh UIDs; a text fixes them, so that the same images make the same files.
    description: the series description, at most 64 characters.
    uid: Series Instance UID, from which all others follow.
  """

  label: str
  generator: str
  version: str
  seed: str | None = None
  description: str = 'SYNTHETIC: made by a generator, not a patient'
  uid: UID = dataclasses.field(init=False)

  def __post_init__(self):
    for name in ('generator', 'version', 'description'):
      text = getattr(self, name)
      if not text or len(text) > _LO_CHARACTERS or '\\' in text or not text.isprintable():
        raise UserError(
          f'{name} {text!r}: need 1 to {_LO_CHARACTERS} printable characters without backslash'
        )
    entropy = None if self.seed is None else ['series', self.generator, self.version, self.seed]
    object.__setattr__(self, 'uid', generate_uid(entropy_srcs=entropy))

  def related_uid(self, *purpose: str) -> UID:
    """A UID that follows from the series' own, e.g. of its study."""
    return generate_uid(entropy_srcs=[self.uid, *purpose])


def write_synthetic_ct(
  path: pathlib.Path,
  hu: np.ndarray,
  *,
  spacing_mm: float,
  series: SyntheticSeries,
  instance_number: int,
) -> None:
  """Writes one image.

  Args:
    path: file to write; its folder exists.
    hu: float[h, w], finite; rounded to whole HU.
    spacing_mm: side of a pixel.
    series: what it belongs to.
    instance_number: from 1, unique within the series.

  Raises:
    UserError: values that are not finite, do not fit 16 bits or are not h x w; a bad spacing.
  """
  try:
    stored = _stored(hu)
  except UserError as error:
    raise UserError(f'{path.name}: {error}') from error
  if not (np.isfinite(spacing_mm) and spacing_mm > 0):
    raise UserError(f'{path.name}: pixel spacing {spacing_mm} mm, need a positive number')
  meta = FileMetaDataset()
  meta.TransferSyntaxUID = ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID = CTImageStorage
  # The pixels are part of the UID: two images must never share one.
  meta.MediaStorageSOPInstanceUID = series.related_uid(str(instance_number), stored.tobytes().hex())
  ds = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
  ds.SpecificCharacterSet = 'ISO_IR 192'
  _identify(ds, series, instance_number)
  _describe_origin(ds, series)
  _place(ds, stored.shape, spacing_mm, series)
  _put_pixels(ds, stored)
  ds.save_as(path, enforce_file_format=True)


def _stored(hu: np.ndarray) -> np.ndarray:
  if hu.ndim != 2 or not hu.size or max(hu.shape) > 65535:
    raise UserError(f'a DICOM CT image needs h x w pixels, got shape {hu.shape}')
  if not np.isfinite(hu).all():
    raise UserError('NaN or infinite HU cannot be written to DICOM: the generator has diverged')
  stored = np.rint(hu.astype(np.float64)) - INTERCEPT_HU
  limits = np.iinfo(np.int16)
  if stored.min() < limits.min or stored.max() > limits.max:
    raise UserError(
      f'values from {hu.min():g} to {hu.max():g} HU do not fit 16 bits: are these HU at all?'
    )
  return stored.astype('<i2')


def _identify(ds: Dataset, series: SyntheticSeries, instance_number: int) -> None:
  """Patient, study and series (C.7.1.1, C.7.2.1, C.7.3.1); what is unknown stays empty."""
  ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID
  ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID
  ds.StudyInstanceUID = series.related_uid('study')
  ds.SeriesInstanceUID = series.uid
  ds.FrameOfReferenceUID = series.related_uid('frame of reference')
  ds.PatientName = 'SYNTHETIC^NOT A PATIENT'
  ds.PatientID = f'SYNTHETIC-{series.uid[-12:]}'
  ds.Modality, ds.BodyPartExamined = 'CT', 'CHEST'
  ds.StudyDescription = ds.SeriesDescription = series.description
  ds.SeriesNumber = 1
  ds.InstanceNumber = instance_number
  for keyword in (
    'PatientBirthDate',
    'PatientSex',
    'StudyDate',
    'StudyTime',
    'StudyID',
    'AccessionNumber',
    'ReferringPhysicianName',
    'PositionReferenceIndicator',
    'AcquisitionNumber',
    'KVP',
    'SliceThickness',
  ):
    setattr(ds, keyword, None)


def _describe_origin(ds: Dataset, series: SyntheticSeries) -> None:
  ds.SyntheticData = 'YES'
  ds.ImageType = ['DERIVED', 'SECONDARY', 'AXIAL']  # C.8.2.1.1.1
  ds.DerivationDescription = (
    f'Generated by {series.generator} {series.version}; no patient was scanned'
  )
  ds.ImageComments = f'Synthetic image; class asked of the generator: {series.label}'
  ds.BurnedInAnnotation = 'NO'
  ds.LossyImageCompression = '00'
  ds.Manufacturer = 'ctfake_jax'
  ds.ManufacturerModelName = series.generator
  ds.SoftwareVersions = series.version
  ds.ContributingEquipmentSequence = [_equipment(series)]


def _equipment(series: SyntheticSeries) -> Dataset:
  code, purpose = codes.cid7005.SynthesizingEquipment, Dataset()
  purpose.CodeValue = code.value
  purpose.CodingSchemeDesignator = code.scheme_designator
  purpose.CodeMeaning = code.meaning
  item = Dataset()
  item.PurposeOfReferenceCodeSequence = [purpose]
  item.Manufacturer = 'ctfake_jax'
  item.ManufacturerModelName = series.generator
  item.SoftwareVersions = series.version
  item.ContributionDescription = 'All pixels were generated by a neural network'
  return item


def _place(ds: Dataset, shape: tuple[int, ...], spacing_mm: float, series: SyntheticSeries) -> None:
  """Image plane (C.7.6.2): axial, centred, all at height 0, since no slice lies above another."""
  height, width = shape
  ds.PatientPosition = 'HFS'
  ds.PixelSpacing = [_decimal(spacing_mm)] * 2
  ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
  corner = [-spacing_mm * (width - 1) / 2, -spacing_mm * (height - 1) / 2, 0]
  ds.ImagePositionPatient = [_decimal(value) for value in corner]


def _decimal(value: float) -> str:
  """Decimal string of at most 16 characters (PS3.5 6.2, DS)."""
  return f'{value:.9g}'


def _put_pixels(ds: Dataset, stored: np.ndarray) -> None:
  """Image pixel module (C.7.6.3) and the way back to HU (C.8.2.1, C.11.2)."""
  ds.Rows, ds.Columns = stored.shape
  ds.SamplesPerPixel = 1
  ds.PhotometricInterpretation = 'MONOCHROME2'
  ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
  ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, INTERCEPT_HU, 'HU'
  ds.WindowCenter, ds.WindowWidth = _LUNG_WINDOW_HU
  ds.PixelData = stored.tobytes()
