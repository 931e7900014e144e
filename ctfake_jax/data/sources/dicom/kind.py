"""What kind of image a DICOM CT frame is: axial and of a patient, or something else.

CT Image Storage also holds localizers, reformats, projections, renderings, protocols and dose
reports as pictures; only some of them say so where the standard asks for it. Geometry decides where
there is some, then what the header says in codes and in the words that vendors put into Image Type,
then the shape. And a file may say that it is synthetic (0008,001C).
"""

import re
from collections.abc import Iterator
from typing import Any

import pydicom
from pydicom.sr.codedict import codes

from ctfake_jax.data.sources.dicom.header import RefusalError, functional_groups, plane, value
from ctfake_jax.types import Plane, tilt_degrees

MAX_TILT_DEGREES = 30.5  # gantries tilt up to 30, headers round
_LEAST_SIDE = 16  # pixels
# Longer than any axial field of view, a tight crop of a slender patient included; localizers
# and reports are often longer.
_MOST_ASPECT = 1.7

# Words in Image Type (0008,0008) and Frame Type (0008,9007), letters only, upper case, by what they
# mean: those of the standard (C.8.2.1.1.1, C.8.15.3.1.1) and of vendors.
_KINDS = {
  'a localizer': 'LOCALIZER LOCALISER SCOUT SCOUTVIEW TOPOGRAM TOPO TOP SURVIEW SCANOGRAM PILOT '
  'LOC',
  'a reformat': 'MPR MPVR CPR MULTIPLANAR REFORMATTED REFORMAT REFORMATTING RESAMPLED CORONAL '
  'SAGITTAL OBLIQUE CURVED COR SAG',
  'a projection of a slab': 'MIP MAXIP MINIP AIP MAXIMUM MINIMUM PROJECTION SLAB',
  'a rendering': 'VRT VR SSD SURFACE RENDERED RENDERING RENDER VOLUMERENDER 3D ENDOSCOPY VOLREN',
  'a report or a screen': 'PROT PROTOCOL DOSE REPORT SCREEN SCREENSAVE SCREENSHOT SNAPSHOT CAPTURE '
  'DISPLAY GRAPH CHART SUMMARY',
  'computed from several images': 'SUBTRACTION DIVISION MULTIPLICATION ADDITION PERFUSION PERF CBF '
  'CBV MTT TTP MEAN AVERAGE AVG QUANTITY MASKED STDDEVIATION',
  'a map of a material': 'IODINE EFFZ ZEFF MATERIAL',
}
_KIND_OF = {word: kind for kind, words in _KINDS.items() for word in words.split()}
_POST_PROCESSED = 'CSA'  # Siemens' workstation: 'CSA MPR', 'CSAPARALLEL', 'CSA 3D'
_RUN_TOGETHER = {'MPR': 'a reformat', 'REPORT': 'a report or a screen'}  # CORMPR, MPRTHICK
# Volumetric Properties (0008,9206), C.8.15.2.1.2: no pixel of these is a piece of the volume.
_NO_VOLUME = ('SAMPLED', 'DISTORTED')
# CID 7203, Derivation Code Sequence (0008,9215).
_DERIVED_KINDS = {
  code.value: code.meaning
  for code in (
    codes.cid7203.MultiplanarReformatting,
    codes.cid7203.CurvedMultiplanarReformatting,
    codes.cid7203.SurfaceRendering,
    codes.cid7203.VolumeRendering,
    codes.cid7203.MaximumIntensityProjection,
    codes.cid7203.MinimumIntensityProjection,
    codes.cid7203.PixelByPixelSubtraction,
    codes.cid7203.PerfusionImageAnalysis,
  )
}


def check_axial(ds: pydicom.Dataset, frame: int) -> Plane:
  """The frame's plane; raises `RefusalError` for what is no axial slice, with the reason."""
  found = plane(ds, frame)
  if found.axes is None and 'PerFrameFunctionalGroupsSequence' in ds:
    raise RefusalError('Image Orientation (Patient) is missing; need that of an axial slice')
  if found.axes and (tilt := tilt_degrees(found.axes)) > MAX_TILT_DEGREES:
    raise RefusalError(
      f'Image Orientation (Patient) is {tilt:.0f} degrees off axial, need an axial slice'
    )
  _check_words(ds, frame)
  if found.axes is None:  # nothing but words: a protocol often has no others
    _refuse_words('Series Description', _words(ds.get('SeriesDescription')))
  _check_shape(found)
  return found


def _check_words(ds: pydicom.Dataset, frame: int) -> None:
  _refuse_words('Image Type', _type_words(ds, frame))
  technique = str(value(ds, frame, 'VolumeBasedCalculationTechnique') or '').strip().upper()
  if technique not in ('', 'NONE'):  # (0008,9207), C.8.15.2.1.3
    raise RefusalError(f'Volume Based Calculation Technique {technique}, need an axial slice')
  properties = str(value(ds, frame, 'VolumetricProperties') or '').strip().upper()
  if properties in _NO_VOLUME:
    raise RefusalError(f'Volumetric Properties {properties}, need an axial slice')
  for code in value(ds, frame, 'DerivationCodeSequence') or ():
    if meaning := _DERIVED_KINDS.get(str(code.get('CodeValue'))):
      raise RefusalError(f'derived by {meaning}, need an axial slice')


def _refuse_words(name: str, words: Iterator[str]) -> None:
  for word in words:
    if kind := _kind(word):
      raise RefusalError(f'{kind} ({name} {word}), need an axial slice')


def _kind(word: str) -> str | None:
  """What a word of Image Type says that an image is, if it is no axial slice."""
  if word.startswith(_POST_PROCESSED):
    return 'post-processed'
  parts = (
    kind for part, kind in _RUN_TOGETHER.items() if word.startswith(part) or word.endswith(part)
  )
  return _KIND_OF.get(word) or next(parts, None)


def _type_words(ds: pydicom.Dataset, frame: int) -> Iterator[str]:
  """Those of Image Type and Frame Type; ORIGINAL, DERIVED, PRIMARY and SECONDARY are no kind."""
  yield from _words(ds.get('ImageType'))
  yield from _words(value(ds, frame, 'FrameType'))


def _words(texts: Any) -> Iterator[str]:
  """Words of one or several texts in upper case, and each text as one word."""
  for text in [texts] if isinstance(texts, str) else texts or ():
    upper = str(text).upper()
    yield from re.findall('[A-Z]+', upper)
    yield re.sub('[^A-Z0-9]', '', upper)


def _check_shape(found: Plane) -> None:
  if min(found.shape) < _LEAST_SIDE:
    rows, columns = found.shape
    raise RefusalError(f'{rows} x {columns} pixels are too few for a slice of a chest')
  height, width = (n * mm for n, mm in zip(found.shape, found.spacing_mm))
  if max(height, width) > _MOST_ASPECT * min(height, width):
    raise RefusalError(
      f'{height:.0f} x {width:.0f} mm: too long for an axial slice, as localizers and reports are'
    )


def synthetic(ds: pydicom.Dataset, frame: int) -> str:
  """Where the file says that the frame is synthetic, in words; '' where it does not.

  Synthetic Data (C.12.1), in whatever case; equipment that contributed as "Synthesizing Equipment"
  (CID 7005), of files from before that attribute; a word in Image Type. In an enhanced object also
  anywhere in the frame's functional groups.
  """
  says = 'the file says that it is synthetic'
  for place in (ds, *_items(functional_groups(ds, frame))):
    if {*_words(place.get('SyntheticData'))} & {'YES', 'Y', 'TRUE'}:
      return f'{says} (0008,001C)'
    for equipment in place.get('ContributingEquipmentSequence') or ():
      if any(map(_is_synthesizing, equipment.get('PurposeOfReferenceCodeSequence') or ())):
        return f'{says} (0018,A001)'
  if any(word.startswith('SYNTHE') for word in _type_words(ds, frame)):
    return f'{says} (0008,0008)'
  return ''


def burned_in(ds: pydicom.Dataset) -> bool:
  """Whether the file says that its pixels hold text that may name the patient (C.7.6.1)."""
  return str(ds.get('BurnedInAnnotation') or '').strip().upper() == 'YES'


def _items(groups: list[pydicom.Dataset]) -> Iterator[pydicom.Dataset]:
  """Groups and whatever is in their sequences, at any depth."""
  for group in groups:
    yield group
    for element in group:
      if element.VR == 'SQ':
        yield from _items(list(element.value))


def _is_synthesizing(purpose: pydicom.Dataset) -> bool:
  code = codes.cid7005.SynthesizingEquipment
  same_code = str(purpose.get('CodeValue') or '').strip() == code.value
  meaning = str(purpose.get('CodeMeaning') or '').strip().lower()
  return same_code or meaning == code.meaning.lower()
