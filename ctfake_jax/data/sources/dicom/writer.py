"""CT images that no scanner made as DICOM that says what it is.

Enters float32[h, w] in HU, where they lie, and what is said of them; leaves a CT Image Storage file
(PS3.3 A.3), Explicit VR Little Endian, with a true rescale. Nobody may take it for a scan:
Synthetic Data (0008,001C) is YES, Image Type DERIVED, and the Contributing Equipment Sequence
(0018,A001) names what made it as (109100, DCM, "Synthesizing Equipment"), as a note to Synthetic
Data in the SOP Common module (C.12.1) suggests. What a scanner would know (dates, kVp, slice
thickness) is left empty, not made up.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ctfake_jax.types import Plane, UserError

INTERCEPT_HU = -1024  # stored value 0; with 16 bits signed HU may be -33,792 to 31,743
_LUNG_WINDOW_HU = -600, 1500  # centre and width for a viewer's first display
_LO_CHARACTERS = 64  # PS3.5 6.2: the longest value of representation LO
MANUFACTURER = 'ctfake_jax'


@dataclasses.dataclass(frozen=True)
class StoredPixels:
  """Pixels as a file holds them, and their way to HU."""

  values: Int[np.ndarray, 'h w']
  slope: float
  intercept: float
  bits_stored: int
  signed: bool


@dataclasses.dataclass(frozen=True)
class Statement:
  """What a file says beside its pixels and where they lie.

  Attributes:
    made_by: name of the generating or editing program and model, at most 64 characters.
    version: its version, at most 64 characters.
    series, study, frame_of_reference: UIDs.
    patient_name, patient_id: of nobody; pseudonyms.
    description: of series and study, at most 64 characters.
    derivation: how the image came to be.
    contribution: what of it the equipment made.
    comment: any text.
    further: attributes by keyword that hold for images of this kind only.
  """

  made_by: str
  version: str
  series: UID
  study: UID
  frame_of_reference: UID
  patient_name: str
  patient_id: str
  description: str
  derivation: str
  contribution: str
  comment: str
  further: Mapping[str, Any]

  def __post_init__(self):
    for name in ('made_by', 'version', 'description'):
      text = getattr(self, name)
      if not text or len(text) > _LO_CHARACTERS or '\\' in text or not text.isprintable():
        raise UserError(
          f'{name} {text!r}: need 1 to {_LO_CHARACTERS} printable characters without backslash'
        )


def write_ct(
  path: pathlib.Path,
  hu: Float[np.ndarray, '...'] | StoredPixels,
  *,
  plane: Plane,
  statement: Statement,
  instance_number: int,
) -> None:
  """Writes one image.

  Args:
    path: file to write; its folder exists.
    hu: float[h, w], finite; rounded to whole HU. Or values that are stored as they are.
    plane: where its pixels lie, all of it known.
    statement: what is said of it.
    instance_number: from 1, unique within the series.

  Raises:
    UserError: values that are not finite, do not fit 16 bits or are not h x w; a bad spacing.
  """
  try:
    pixels = hu if isinstance(hu, StoredPixels) else _stored(hu)
  except UserError as error:
    raise UserError(f'{path.name}: {error}') from error
  if not all(np.isfinite(mm) and mm > 0 for mm in plane.spacing_mm):
    raise UserError(f'{path.name}: pixel spacing {plane.spacing_mm} mm, need positive numbers')
  meta = FileMetaDataset()
  meta.TransferSyntaxUID = ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID = CTImageStorage
  # The pixels are part of the UID: two images must never share one.
  meta.MediaStorageSOPInstanceUID = generate_uid(
    entropy_srcs=[statement.series, str(instance_number), _words(pixels).tobytes().hex()]
  )
  ds = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
  ds.SpecificCharacterSet = 'ISO_IR 192'
  _identify(ds, statement, instance_number)
  _describe_origin(ds, statement)
  _place(ds, plane)
  _put_pixels(ds, pixels)
  for keyword, value in statement.further.items():
    setattr(ds, keyword, value)
  ds.save_as(path, enforce_file_format=True)


def _stored(hu: np.ndarray) -> StoredPixels:
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
  return StoredPixels(stored.astype(np.int32), 1, INTERCEPT_HU, 16, True)


def _identify(ds: Dataset, statement: Statement, instance_number: int) -> None:
  """Patient, study and series (C.7.1.1, C.7.2.1, C.7.3.1); what is unknown stays empty."""
  ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID
  ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID
  ds.StudyInstanceUID, ds.SeriesInstanceUID = statement.study, statement.series
  ds.FrameOfReferenceUID = statement.frame_of_reference
  ds.PatientName, ds.PatientID = statement.patient_name, statement.patient_id
  ds.Modality = 'CT'
  ds.StudyDescription = ds.SeriesDescription = statement.description
  ds.SeriesNumber = 1
  ds.InstanceNumber = instance_number
  for keyword in (
    'PatientBirthDate',
    'PatientSex',
    'PatientPosition',
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


def _describe_origin(ds: Dataset, statement: Statement) -> None:
  ds.SyntheticData = 'YES'
  ds.ImageType = ['DERIVED', 'SECONDARY', 'AXIAL']  # C.8.2.1.1.1
  ds.DerivationDescription = statement.derivation
  ds.ImageComments = statement.comment
  equipment = Dataset()
  equipment.PurposeOfReferenceCodeSequence = [coded(codes.cid7005.SynthesizingEquipment)]
  equipment.ContributionDescription = statement.contribution
  for item in (ds, equipment):
    item.Manufacturer, item.ManufacturerModelName = MANUFACTURER, statement.made_by
    item.SoftwareVersions = statement.version
  ds.ContributingEquipmentSequence = [equipment]


def coded(code: Code) -> Dataset:
  """An item of a code sequence (8.8)."""
  item = Dataset()
  item.CodeValue = code.value
  item.CodingSchemeDesignator = code.scheme_designator
  item.CodeMeaning = code.meaning
  return item


def _place(ds: Dataset, plane: Plane) -> None:
  """Image plane (C.7.6.2)."""
  if plane.axes is None or plane.corner_mm is None:
    raise ValueError('a CT image needs position and orientation')
  ds.PixelSpacing = [_decimal(mm) for mm in plane.spacing_mm]
  ds.ImageOrientationPatient = [_decimal(cosine) for axis in plane.axes for cosine in axis]
  ds.ImagePositionPatient = [_decimal(mm) for mm in plane.corner_mm]


def _decimal(value: float) -> str:
  """Decimal string of at most 16 characters (PS3.5 6.2, DS)."""
  return f'{value:.9g}'


def _words(pixels: StoredPixels) -> np.ndarray:
  """16-bit cells."""
  return pixels.values.astype('<i2' if pixels.signed else '<u2')


def _put_pixels(ds: Dataset, pixels: StoredPixels) -> None:
  """Image pixel module (C.7.6.3) and the way back to HU (C.8.2.1, C.11.2)."""
  ds.Rows, ds.Columns = pixels.values.shape
  ds.SamplesPerPixel = 1
  ds.PhotometricInterpretation = 'MONOCHROME2'
  ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, pixels.bits_stored, pixels.bits_stored - 1
  ds.PixelRepresentation = int(pixels.signed)
  ds.RescaleSlope, ds.RescaleIntercept = _decimal(pixels.slope), _decimal(pixels.intercept)
  ds.RescaleType = 'HU'
  ds.WindowCenter, ds.WindowWidth = _LUNG_WINDOW_HU
  ds.PixelData = _words(pixels).tobytes()
