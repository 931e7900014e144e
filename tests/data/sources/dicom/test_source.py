import logging
import os
import pathlib
import threading
import warnings

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dicom import chest_hu as _chest_hu
from made_dicom import ct as _ct
from made_dicom import save as _save
from openjpeg.utils import encode_array
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.data import dataset
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.data.sources.dicom import header as dicom_header
from ctfake_jax.data.sources.dicom.source import BURNED_IN, DicomSource
from ctfake_jax.types import UNKNOWN_LABEL, Source, UnreadableImageError, UserError

CT_SMALL = pathlib.Path(get_testdata_file('CT_small.dcm'))
DATA = os.environ.get('CTFAKE_DATA')
real_data = pytest.mark.skipif(not DATA, reason='CTFAKE_DATA is not set')


def _source(root, labels_csv=None, max_pixels=2**20) -> DicomSource:
  return DicomSource(root, labels_csv=labels_csv, max_pixels=max_pixels)


def _pixels(tmp_path, ds: Dataset) -> np.ndarray:
  """The first 2 x 2."""
  return _source(_save(ds, tmp_path / 'one.dcm'))[0].pixels[:2, :2]


def _group(**macros) -> Dataset:
  group = Dataset()
  for sequence, attributes in macros.items():
    item = Dataset()
    for keyword, value in attributes.items():
      setattr(item, keyword, value)
    setattr(group, sequence, [item])
  return group


def _enhanced() -> Dataset:
  """Two frames, the upper first, each with a rescale of its own."""
  ds = _ct(
    [[[10, 20], [30, 40]], [[1, 2], [3, 4]]],
    SOPClassUID=uid.EnhancedCTImageStorage,
    RescaleSlope=None,
    RescaleIntercept=None,
    PixelSpacing=None,
  )
  ds.SharedFunctionalGroupsSequence = [
    _group(
      PixelMeasuresSequence={'PixelSpacing': [0.5, 0.5]},
      PlaneOrientationSequence={'ImageOrientationPatient': [1, 0, 0, 0, 1, 0]},
    )
  ]
  ds.PerFrameFunctionalGroupsSequence = [
    _group(
      PlanePositionSequence={'ImagePositionPatient': [0, 0, z]},
      PixelValueTransformationSequence={
        'RescaleSlope': slope,
        'RescaleIntercept': -1000,
        'RescaleType': 'HU',
      },
    )
    for z, slope in ((5, 2), (0, 10))
  ]
  return ds


def test_ct_small_in_hu():
  source = _source(CT_SMALL)
  image = source[0]
  assert isinstance(source, Source)
  assert (image.unit, image.spacing_mm) == ('HU', 0.661468)
  assert image.pixels.dtype == np.float32
  # Words of (7FE0,0010) read from a hex dump of the file, by hand through slope 1 and intercept
  # -1024: row 0 begins 00AF 00B4 00A6 008F, row 64 has 088D 088F 084A from column 60 (the
  # brightest pixel among them), the last row ends 0397 038F 0388 038D.
  np.testing.assert_array_equal(image.pixels[0, :4], [-849, -844, -858, -881])
  np.testing.assert_array_equal(image.pixels[64, 60:63], [1165, 1167, 1098])
  np.testing.assert_array_equal(image.pixels[-1, -4:], [-105, -113, -120, -115])
  assert image.pixels.max() == 1167
  assert source.class_names == ()
  assert source.records[0].label == UNKNOWN_LABEL


@real_data
@pytest.mark.parametrize('name', ['CT1', 'CT2'])
def test_every_transfer_syntax(name):
  source = _source(pathlib.Path(DATA, 'dicom', 'transfer_syntaxes'))
  assert len(source) == 12
  assert not source.unreadable
  images = {
    record.provenance: source[i].pixels
    for i, record in enumerate(source.records)
    if record.provenance.startswith(name)
  }
  lossless = images[f'{name}_RLE']
  for suffix in ('J2KR', 'JLSL', 'JPLL'):
    np.testing.assert_array_equal(images[f'{name}_{suffix}'], lossless)
  # CT1 pads with -2000; CT2 declares no padding and has -2048 HU around the patient.
  assert lossless.min() == -1024
  assert lossless.max() == {'CT1': 2278 - 1024, 'CT2': 1433}[name]
  inside = lossless > -1000
  # Near-lossless JPEG-LS bounds each error (ISO/IEC 14495-1), here by 4 as measured; the lossy
  # JPEG 2000 is a strong compression (mean error 28 and 19 HU).
  assert np.abs(images[f'{name}_JLSN'] - lossless)[inside].max() == 4
  assert np.abs(images[f'{name}_J2KI'] - lossless)[inside].mean() < 30


@real_data
def test_whole_series_is_sorted_by_position():
  root = pathlib.Path(DATA, 'dicom', 'chest_series_49')
  source = _source(root)
  assert len(source) == 49
  assert len({record.patient_id for record in source.records}) == 1
  heights = [
    float(pydicom.dcmread(root / record.provenance).ImagePositionPatient[2])
    for record in source.records
  ]
  np.testing.assert_allclose(np.diff(heights), 4, atol=1e-3)  # 5 mm thick, overlapping
  assert source[0].spacing_mm == 1.3671875
  for i in range(49):
    hu = source[i].pixels
    assert hu.shape == (512, 512)
    assert hu.min() == -1024
    assert 0 < np.median(hu[hu > -200]) < 80  # what is neither air nor lung is mostly muscle


def test_rescale_comes_first(tmp_path):
  pixels = _pixels(tmp_path, _ct([[0, 100], [-200, 4]], RescaleSlope=2.5, RescaleIntercept=-1000))
  np.testing.assert_array_equal(pixels, [[-1000, -750], [-1024, -990]])


@settings(max_examples=15, deadline=None)
@given(
  slope=st.sampled_from([-1, 0.5, 1, 4]),
  intercept=st.integers(-2000, 2000),
  low=st.integers(-2000, 0),
)
def test_rescale_is_linear(tmp_path_factory, slope, intercept, low):
  stored = np.array([[low, low + 7], [11, 1200]])
  ds = _ct(stored, RescaleSlope=slope, RescaleIntercept=intercept)
  pixels = _pixels(tmp_path_factory.mktemp('linear'), ds)
  np.testing.assert_allclose(pixels, np.maximum(stored * slope + intercept, -1024))


@pytest.mark.parametrize('signed', [False, True])
def test_padding_becomes_air(tmp_path, signed):
  # A value beside the padding: bone, not air.
  stored = np.array([[-2000, 1024], [1034, 2000]])
  ds = _ct(stored, PixelRepresentation=int(signed))
  # The element's VR contradicts the pixels on purpose: both readings are the same 16 bits.
  ds.add_new('PixelPaddingValue', *(('US', 63536) if signed else ('SS', -2000)))
  pixels = _pixels(tmp_path, ds)
  np.testing.assert_array_equal(pixels, [[-1024, 0], [10, 976]])


def test_padding_range_and_implicit_vr(tmp_path):
  ds = _ct([[1500, 2000], [2001, 0]], PixelPaddingValue=2000, PixelPaddingRangeLimit=1500)
  ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
  np.testing.assert_array_equal(_pixels(tmp_path, ds), [[-1024, -1024], [977, -1024]])


def test_monochrome1_leaves_hu_and_inverts_grey(tmp_path):
  ds = _ct([[1024, 2024], [24, 0]], PhotometricInterpretation='MONOCHROME1')
  np.testing.assert_array_equal(_pixels(tmp_path, ds), [[0, 1000], [-1000, -1024]])
  shape = {'BitsStored': 8, 'HighBit': 7, 'PixelRepresentation': 0}
  ds = _ct([[0, 255], [51, 102]], RescaleType='US', **shape)
  assert _source(_save(ds, tmp_path / 'one.dcm'))[0].unit == 'grey'
  np.testing.assert_allclose(_pixels(tmp_path, ds), [[0, 1], [0.2, 0.4]], rtol=1e-6)
  ds.PhotometricInterpretation = 'MONOCHROME1'
  np.testing.assert_allclose(_pixels(tmp_path, ds), [[1, 0], [0.8, 0.6]], rtol=1e-6)


def test_modality_lut(tmp_path):
  ds = _ct([[5, 6], [7, 9]], RescaleSlope=None, RescaleIntercept=None)
  lut = Dataset()
  lut.add_new('LUTDescriptor', 'SS', [3, 5, 16])
  lut.add_new('LUTData', 'US', [100, 200, 300])
  lut.ModalityLUTType = 'HU'
  ds.ModalityLUTSequence = [lut]
  np.testing.assert_array_equal(_pixels(tmp_path, ds), [[100, 200], [300, 300]])


def test_enhanced_multi_frame(tmp_path):
  source = _source(_save(_enhanced(), tmp_path / 'multi.dcm'))
  assert [record.provenance for record in source.records] == ['multi.dcm#2', 'multi.dcm#1']
  np.testing.assert_array_equal(source[0].pixels[:2, :2], [[-990, -980], [-970, -960]])
  np.testing.assert_array_equal(source[1].pixels[:2, :2], [[-980, -960], [-940, -920]])
  assert source[1].spacing_mm == 0.5


def test_compressed_multi_frame_is_decoded_frame_by_frame(tmp_path):
  ds = _enhanced()
  ds.compress(uid.RLELossless)
  source = _source(_save(ds, tmp_path / 'multi.dcm'))
  np.testing.assert_array_equal(source[0].pixels[:2, :2], [[-990, -980], [-970, -960]])


def test_one_bad_frame_leaves_the_others(tmp_path):
  ds = _enhanced()
  item = ds.PerFrameFunctionalGroupsSequence[1].PixelValueTransformationSequence[0]
  item.RescaleSlope = 0
  source = _source(_save(ds, tmp_path / 'multi.dcm'))
  assert [record.provenance for record in source.records] == ['multi.dcm#1']
  assert source.unreadable[0].path == 'multi.dcm#2'


def test_order_is_by_position_not_by_name(tmp_path):
  # A tilted gantry: the normal of these axes leans to -y, so that the order is by falling y.
  tilt = np.radians(20)
  axes = {'ImageOrientationPatient': [1, 0, 0, 0, *np.round([np.cos(tilt), np.sin(tilt)], 6)]}
  for name, y in (('a', 3.5), ('b', -20), ('c', 40)):
    _save(_ct(ImagePositionPatient=[7, y, 7], **axes), tmp_path / name)
  assert [record.provenance for record in _source(tmp_path).records] == ['c', 'a', 'b']


def test_order_by_instance_number_without_position(tmp_path):
  for name, number in (('a', 3), ('b', 1), ('c', 2)):
    _save(_ct(InstanceNumber=number), tmp_path / name)
  assert [record.provenance for record in _source(tmp_path).records] == ['b', 'c', 'a']


def test_series_are_kept_together(tmp_path):
  for name, series in (('a', '1.1'), ('b', '1.2'), ('c', '1.1')):
    _save(_ct(SeriesInstanceUID=series), tmp_path / name)
  assert [record.provenance for record in _source(tmp_path).records] == ['a', 'c', 'b']


def test_anisotropic_spacing_becomes_square(tmp_path):
  ramp = np.repeat(np.arange(16)[:, None] * 50, 40, axis=1)
  image = _source(_save(_ct(ramp, PixelSpacing=[1.5, 0.5]), tmp_path / 'one.dcm'))[0]
  assert image.pixels.shape == (48, 40)
  assert image.spacing_mm == 0.5
  # Away from the border, pixel i of the fine grid has its centre at (i + 0.5) / 3 - 0.5 rows.
  rows = (np.arange(2, 46) + 0.5) / 3 - 0.5
  np.testing.assert_allclose(image.pixels[2:46, 3], rows * 50 - 1024, atol=0.01)


@pytest.mark.parametrize(
  ('changes', 'reason'),
  [
    ({'PixelSpacing': None}, 'Pixel Spacing is missing'),
    ({'PixelSpacing': ''}, 'Pixel Spacing is missing'),
    ({'PixelSpacing': [0, 0]}, 'Pixel Spacing 0 x 0 mm'),
    ({'PixelSpacing': [0.7, -0.7]}, 'Pixel Spacing 0.7 x -0.7 mm'),
    ({'PixelSpacing': [700, 700]}, 'Pixel Spacing 700 x 700 mm'),
    ({'PixelSpacing': [0.7]}, 'need two values'),
    ({'PixelSpacing': [20, 0.01], 'Rows': 512, 'Columns': 512}, 'truncated'),
    ({'Modality': 'MR'}, 'Modality MR, need CT'),
    ({'Modality': None}, 'Modality missing, need CT'),
    ({'SOPClassUID': uid.SecondaryCaptureImageStorage}, 'Secondary Capture'),
    ({'ImageType': ['ORIGINAL', 'PRIMARY', 'LOCALIZER']}, 'localizer'),
    ({'PhotometricInterpretation': 'RGB', 'SamplesPerPixel': 3}, 'RGB, need grey'),
    ({'RescaleSlope': 0}, 'Rescale Slope'),
    ({'RescaleSlope': [1, 1]}, 'Rescale Slope'),
    ({'HighBit': 16}, 'no such bits'),
    ({'BitsStored': 0}, 'no such bits'),
    ({'BitsStored': 17, 'HighBit': 16}, 'no such bits'),
    ({'RescaleType': 'Z_EFF'}, 'Rescale Type Z_EFF'),
    ({'Rows': 4096, 'Columns': 4096}, 'above data.max_pixels'),
    ({'NumberOfFrames': 10**6}, 'truncated'),
  ],
)
def test_refused_by_header(tmp_path, changes, reason):
  _save(_ct(), tmp_path / 'good')
  _save(_ct(**changes), tmp_path / 'bad')
  source = _source(tmp_path)
  assert [record.provenance for record in source.records] == ['good']
  (error,) = source.unreadable
  assert error.path == 'bad'
  assert reason in error.reason
  with pytest.raises(UserError, match='no usable CT image'):
    _source(tmp_path / 'bad')


def test_resampling_is_bounded(tmp_path):
  ds = _ct(np.zeros((64, 64)), PixelSpacing=[1, 0.7])
  with pytest.raises(UserError, match='with square pixels 91 x 64 is above'):
    _source(_save(ds, tmp_path / 'long.dcm'), max_pixels=64 * 64)


def test_float_pixels_with_nan(tmp_path):
  ds = _ct(PixelData=None, BitsAllocated=32, PixelRepresentation=None)
  ds.FloatPixelData = np.full((16, 16), np.nan, np.float32).tobytes()
  source = _source(_save(ds, tmp_path / 'one.dcm'))
  with pytest.raises(UnreadableImageError, match=r'one\.dcm: holds NaN'):
    source[0]


def test_overflowing_rescale(tmp_path):
  source = _source(_save(_ct(RescaleSlope='1e300'), tmp_path / 'one.dcm'))
  with pytest.raises(UnreadableImageError, match='infinite'):
    source[0]


@pytest.mark.parametrize('keep', [0.5, 0.95])
def test_truncated_native(tmp_path, keep):
  path = _save(_ct(np.zeros((64, 64))), tmp_path / 'sub' / 'one.dcm')
  path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
  _save(_ct(), tmp_path / 'sub' / 'two.dcm')
  source = _source(tmp_path)
  errors = list(source.unreadable)
  for i in range(len(source)):
    try:
      source[i]
    except UnreadableImageError as error:
      errors.append(error)
  assert [error.path for error in errors] == ['sub/one.dcm']
  assert str(tmp_path) not in str(errors[0])


@real_data
@pytest.mark.parametrize('name', ['CT1_J2KR', 'CT1_JLSL', 'CT1_JPLL', 'CT1_RLE'])
def test_truncated_compressed(tmp_path, name):
  data = pathlib.Path(DATA, 'dicom', 'transfer_syntaxes', name).read_bytes()
  path = tmp_path / name
  path.write_bytes(data[: int(0.9 * len(data))])
  with pytest.raises(UnreadableImageError, match=f'{name}: '):
    _source(path)[0]


@real_data
@pytest.mark.parametrize('name', ['CT1_J2KR', 'CT1_JLSL', 'CT1_JPLL'])
def test_compressed_image_larger_than_its_header(tmp_path, name):
  ds = pydicom.dcmread(pathlib.Path(DATA, 'dicom', 'transfer_syntaxes', name))
  ds.Rows = 400
  with pytest.raises(UnreadableImageError, match='512 x 512 pixels, header says 400 x 512'):
    _source(_save(ds, tmp_path / name))[0]


def test_deflated_bomb(tmp_path):
  ds = _ct(np.zeros((512, 512)))
  ds.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
  path = _save(ds, tmp_path / 'one.dcm')
  assert _source(path)[0].pixels.shape == (512, 512)
  ds.EncapsulatedDocument = bytes(2**22)
  _save(ds, path)
  with pytest.raises(UserError, match='inflates to more than'):
    _source(path, max_pixels=2**18)


def test_what_is_no_dicom(tmp_path):
  _save(_ct(), tmp_path / 'image')
  (tmp_path / 'README.md').write_text('x' * 500)
  (tmp_path / 'empty').write_bytes(b'')
  (tmp_path / 'junk.dcm').write_bytes(b'x' * 500)
  (tmp_path / 'broken').write_bytes(bytes(128) + b'DICM' + bytes(range(256)))
  source = _source(tmp_path)
  assert len(source) == 1
  assert sorted(error.path for error in source.unreadable) == ['broken', 'empty', 'junk.dcm']
  assert source.skipped == {'.md': 1}


def test_no_root_and_no_ct(tmp_path):
  with pytest.raises(UserError, match='no such file or folder'):
    _source(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='no usable CT image'):
    _source(tmp_path)


def test_patient_id_is_a_stable_pseudonym(tmp_path):
  _save(_ct(PatientID='Doe '), tmp_path / 'a')
  _save(_ct(PatientID='Doe'), tmp_path / 'b')
  _save(_ct(PatientID='Roe'), tmp_path / 'c')
  _save(_ct(PatientID=''), tmp_path / 'd')
  _save(_ct(PatientID='', StudyInstanceUID=''), tmp_path / 'e')
  records = {record.provenance: record.patient_id for record in _source(tmp_path).records}
  assert records['a'] == records['b']
  assert len(set(records.values())) == 4
  assert records['e'] is None
  assert 'Doe' not in records['a']


def test_links_out_of_the_root(tmp_path):
  root = tmp_path / 'root'
  outside = _save(_ct(), tmp_path / 'outside' / 'image.dcm')
  inside = _save(_ct(), root / 'image.dcm')
  (root / 'file').symlink_to(outside)
  (root / 'folder').symlink_to(outside.parent)
  (root / 'loop').symlink_to(root)
  (root / 'again').symlink_to(inside)
  source = _source(root)
  assert sorted(record.provenance for record in source.records) == ['again', 'image.dcm']
  assert sorted(error.path for error in source.unreadable) == ['file', 'folder', 'loop']


def test_labels_from_folders(tmp_path):
  for name in ('normal/p1/1', 'covid/p2/1', 'covid/p3/1'):
    _save(_ct(SeriesInstanceUID=uid.generate_uid()), tmp_path / name)
  source = _source(tmp_path)
  assert source.class_names == ('covid', 'normal')
  assert [record.label for record in source.records] == [0, 0, 1]
  _save(_ct(), tmp_path / 'loose')
  source = _source(tmp_path)
  assert (source.class_names, len(source)) == (('covid', 'normal'), 3)
  assert [str(error) for error in source.unreadable] == [
    'loose: lies outside any class folder; move it into one'
  ]
  assert len(DicomSource(tmp_path, labels_csv=None, max_pixels=2**20, unlabelled_ok=True)) == 4


@pytest.fixture
def two_series(tmp_path):
  root = tmp_path / 'root'
  for name, series in (('x/1', '1.1'), ('x/2', '1.1'), ('y', '1.2')):
    _save(_ct(SeriesInstanceUID=series), root / name)
  return root


def _csv(tmp_path, text: str) -> pathlib.Path:
  path = tmp_path / 'labels.csv'
  path.write_text(text)
  return path


@pytest.mark.parametrize(
  'text',
  [
    'SeriesInstanceUID,label\n1.1,sick\n1.2,fit\n',
    '\ufeffpath,label\nx,sick\ny,fit\n',
    'label,path,note\nsick,./x/1,\nsick,x\\2,hm\n\nfit,y,\n',
  ],
)
def test_labels_from_csv(tmp_path, two_series, text):
  source = _source(two_series, _csv(tmp_path, text))
  assert source.class_names == ('fit', 'sick')
  assert [source.class_names[record.label] for record in source.records] == ['sick', 'sick', 'fit']


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'need .label.'),
    ('file,label\nx,a\n', 'need .label.'),
    ('path,label\nx,a\n', '1 images have no row .*: y'),
    ('path,label\nx,a\ny,b\nz,a\n', '1 rows .* match no file .*: z'),
    ('path,label\nx,a\ny,b\nx/1,b\n', '1 images have several labels .*: x/1'),
    ('path,label\nx,a\nx,b\n', 'row 3: x has two labels'),
    ('path,label\nx,\ny,b\n', 'row 2'),
    ('path,label\nx,"a\n', 'cannot be read'),
  ],
)
def test_wrong_csv(tmp_path, two_series, text, message):
  with pytest.raises(UserError, match=message):
    _source(two_series, _csv(tmp_path, text))


def test_csv_may_name_what_turned_out_unreadable(tmp_path, two_series):
  _save(_ct(Modality='MR'), two_series / 'z')
  (two_series / 'junk.dcm').write_bytes(b'junk')
  table = _csv(tmp_path, 'path,label\nx,a\ny,b\nz,a\njunk.dcm,b\n')
  assert len(_source(two_series, table)) == 3


@settings(max_examples=25, deadline=None)
@given(at=st.integers(132, 900), value=st.integers(0, 255))
def test_a_flipped_byte_never_escapes_as_another_error(tmp_path_factory, at, value):
  path = _save(_ct(np.zeros((4, 4))), tmp_path_factory.mktemp('flip') / 'one.dcm')
  data = bytearray(path.read_bytes())
  data[at % len(data)] = value
  path.write_bytes(data)
  try:
    assert _source(path)[0].pixels.dtype == np.float32
  except UserError as error:
    assert '\n' not in str(error)  # noqa: PT017
    assert len(str(error)) < 600 + len(str(path))  # noqa: PT017


def test_quiet_about_pydicom_only(tmp_path, recwarn):
  with dicom_header.quiet_pydicom():
    ds = Dataset()
    ds.PatientBirthDate = 'no date'
  assert not recwarn.list
  with dicom_header.quiet_pydicom(), pytest.warns(RuntimeWarning):
    np.float32(1) / np.float32(0)


def test_what_scanners_put_around_the_patient_is_the_same_air(tmp_path):
  hu = _chest_hu()
  outside = np.hypot(*(np.mgrid[:48, :48] - 23.5)) > 24
  seen = []
  for intercept, padding, tag in ((-1024, -2000, None), (0, -2048, None), (-1024, -2000, 63536)):
    ds = _ct(np.where(outside, padding, hu - intercept), RescaleIntercept=intercept)
    if tag:
      ds.add_new('PixelPaddingValue', 'US', tag)
    seen.append(_source(_save(ds, tmp_path / 'a.dcm'))[0].pixels)
  for pixels in seen:
    np.testing.assert_array_equal(pixels, np.where(outside, -1024, hu))


@pytest.mark.parametrize(
  ('tag', 'cell'),
  # The tag in a whole cell; cells masked by their writer; a value that fits the bits.
  [(63536, 63536), (63536, 63536 & 0xFFF), (4095, 4095)],
)
def test_padding_is_read_as_the_pixels_are(tmp_path, tag, cell):
  stored = np.array([[cell, 24], [1064, 1764]])
  ds = _ct(
    stored.astype(np.uint16).view(np.int16), PixelRepresentation=0, BitsStored=12, HighBit=11
  )
  ds.add_new('PixelPaddingValue', 'US', tag)
  np.testing.assert_array_equal(_pixels(tmp_path, ds), [[-1024, -1000], [40, 740]])


def test_bone_is_no_padding_that_the_cells_have_elsewhere(tmp_path):
  # 63536 & 0xfff = 2096, which is bone of 1072 HU.
  stored = np.array([[63536, 2096], [1064, 24]], np.uint16).view(np.int16)
  ds = _ct(stored, PixelRepresentation=0, BitsStored=12, HighBit=11)
  ds.add_new('PixelPaddingValue', 'US', 63536)
  np.testing.assert_array_equal(_pixels(tmp_path, ds), [[-1024, 1072], [40, -1000]])


@pytest.mark.parametrize('high_bit', [11, 13, 15])
@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('rle', [False, True])
def test_values_lie_below_high_bit_whatever_is_around_them(tmp_path, high_bit, signed, rle):
  # Each 12-bit value is shifted up to High Bit; the bits around are filled with rubbish.
  values, shift = np.array([[-1000, 40], [700, 2000]]), high_bit - 11
  stored = values if signed else values + 1024
  rubbish = np.array([[0xF5A5, 0x0FFF], [0xA0A0, 0xFFFF]]) & ~(0xFFF << shift)
  cells = ((stored & 0xFFF) << shift | rubbish) & 0xFFFF
  ds = _ct(
    cells.astype(np.uint16).view(np.int16),
    PixelRepresentation=int(signed),
    RescaleIntercept=0 if signed else -1024,
    **{'BitsStored': 12, 'HighBit': high_bit},
  )
  if rle:
    ds.compress(uid.RLELossless)
  np.testing.assert_array_equal(_pixels(tmp_path, ds), values)


def _coded(hu, stream, signed_header) -> Dataset:
  """16-bit HU in a signed or unsigned codestream, under a header that says `signed_header`."""
  ds = _ct(np.tile(hu, (16, 16)), RescaleIntercept=0, PixelRepresentation=int(signed_header))
  cells = np.frombuffer(ds.PixelData, np.int16 if stream == 'J2K signed' else np.uint16)
  coded = encode_array(cells.reshape(ds.Rows, ds.Columns), bits_stored=16, codec_format=0)
  ds.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
  ds.PixelData = encapsulate([coded])
  ds['PixelData'].VR = 'OB'
  return ds


@pytest.mark.parametrize('stream', ['J2K signed', 'J2K unsigned'])
@pytest.mark.parametrize('signed_header', [False, True])
@pytest.mark.parametrize('negative', [False, True])
def test_sign_of_a_codestream_against_the_header(tmp_path, stream, signed_header, negative):
  hu = np.array([[40, 60], [-1000 if negative else 24, 700]])
  path = _save(_coded(hu, stream, signed_header), tmp_path / 'one.dcm')
  agree = signed_header == (stream == 'J2K signed')
  if negative and not (agree and signed_header):
    with pytest.raises(UnreadableImageError, match=r'which values are negative|values up to'):
      _source(path)[0]
  else:
    np.testing.assert_array_equal(_source(path)[0].pixels[:2, :2], hu)


def test_jpeg_ls_carries_signed_values_without_a_sign(tmp_path):
  hu = np.array([[40, 60], [-1000, 700]])
  for bits in (12, 16):
    ds = _ct(hu, RescaleIntercept=0, BitsStored=bits, HighBit=bits - 1)
    ds.compress(uid.JPEGLSLossless)
    np.testing.assert_array_equal(_pixels(tmp_path, ds), hu)


_UNSIGNED = {'PixelRepresentation': 0, 'BitsStored': 12, 'HighBit': 11}


@pytest.mark.parametrize(
  ('raised', 'changes', 'remark'),
  [
    (0, {}, 'no Rescale Slope and Intercept; values taken as HU'),
    (1024, {}, 'no Rescale Slope and Intercept; values taken as HU + 1024'),
    (1024, _UNSIGNED, 'no Rescale Slope and Intercept; values taken as HU + 1024'),
    (1024, {'RescaleIntercept': -1024}, 'no Rescale Slope; values taken as HU + 1024'),
    (0, {'RescaleSlope': 1}, 'no Rescale Intercept; values taken as HU'),
  ],
)
@pytest.mark.parametrize('empty', [False, True])
def test_missing_rescale_where_values_can_only_be_hu(tmp_path, raised, changes, remark, empty):
  lost = {'RescaleSlope': '' if empty else None, 'RescaleIntercept': '' if empty else None}
  path = _save(_ct(_chest_hu() + raised, **lost | changes), tmp_path / 'one.dcm')
  image = _source(path)[0]
  np.testing.assert_array_equal(image.pixels, np.maximum(_chest_hu(), -1024))
  assert (image.unit, image.remarks) == ('HU', (remark,))


@pytest.mark.parametrize(
  ('stored', 'changes'),
  [
    (np.arange(48 * 48).reshape(48, 48) % 256, {}),
    (np.arange(48 * 48).reshape(48, 48) * 16 % 4096, _UNSIGNED),
    (_chest_hu() + 3000, {}),
    (_chest_hu(), {'RescaleIntercept': -1024}),
    (np.zeros((48, 48)), {}),
  ],
)
def test_missing_rescale_is_refused_by_name_otherwise(tmp_path, stored, changes):
  lost = {'RescaleSlope': None, 'RescaleIntercept': None}
  path = _save(_ct(stored, **lost | changes), tmp_path / 'one.dcm')
  with pytest.raises(UnreadableImageError, match=r'one\.dcm: no Rescale Slope.*not plainly HU'):
    _source(path)[0]


def _series_without_rescale(folder, stored):
  for i, values in enumerate(stored):
    place = {'SeriesInstanceUID': '1.2.3', 'ImagePositionPatient': [0, 0, i], 'InstanceNumber': i}
    ds = _ct(values, RescaleSlope=None, RescaleIntercept=None, **place)
    _save(ds, folder / f'{i}.dcm')
  return _source(folder)


@pytest.mark.parametrize('raised', [0, 1024])
def test_missing_intercept_is_decided_once_per_series(tmp_path, raised):
  apex = np.where(_chest_hu() < -500, 30, _chest_hu())  # no air: alone it is not plainly HU
  hu = [apex, *(_chest_hu() + i for i in range(3)), _chest_hu() + 1024 - 2 * raised]
  source = _series_without_rescale(tmp_path, [values + raised for values in hu])
  ways = ('HU + 1024', 'HU') if raised else ('HU', 'HU + 1024')
  lost = 'no Rescale Slope and Intercept; values taken as'
  for i in range(4):
    np.testing.assert_array_equal(source[i].pixels, np.maximum(hu[i], -1024))
    assert source[i].remarks[0] == f'{lost} {ways[0]}'
  # What plainly goes another way is right, and named.
  np.testing.assert_array_equal(source[4].pixels, np.maximum(_chest_hu(), -1024))
  assert source[4].remarks == (f'{lost} {ways[1]} in a series of {ways[0]}',)


def test_a_series_without_a_majority_is_judged_slice_by_slice(tmp_path):
  source = _series_without_rescale(tmp_path, [_chest_hu(), _chest_hu() + 1024])
  np.testing.assert_array_equal(source[0].pixels, source[1].pixels)


@pytest.mark.parametrize(('intercept', 'word'), [(0, 'air'), (-2500, 'tissue')])
def test_a_chest_has_air_and_tissue(tmp_path, intercept, word):
  path = _save(_ct(_chest_hu() + 1024, RescaleIntercept=intercept), tmp_path / 'one.dcm')
  (remark,) = _source(path)[0].remarks
  assert word in remark
  assert _source(_save(_ct(_chest_hu() + 1024), tmp_path / 'one.dcm'))[0].remarks == ()


@pytest.mark.parametrize(
  ('keyword', 'text'),
  [
    ('RescaleIntercept', '-1024,0'),
    ('RescaleSlope', '1_0'),
    ('RescaleSlope', 'nan'),
    ('RescaleIntercept', '1e999'),
    ('PixelSpacing', '0,7\\0,7'),
    ('ImageOrientationPatient', '1\\0\\0\\0\\1\\x'),
    ('NumberOfFrames', 'one'),
    ('InstanceNumber', '1.x'),
  ],
)
def test_text_that_is_no_number_is_refused_in_words(tmp_path, keyword, text):
  ds = _ct()
  tag = pydicom.tag.Tag(keyword)
  raw = (text + ' ' * (len(text) % 2)).encode()
  vr = pydicom.datadict.dictionary_VR(tag)
  ds[tag] = RawDataElement(tag, vr, len(raw), raw, 0, False, True, True)
  _save(_ct(), tmp_path / 'good')
  with dicom_header.quiet_pydicom():
    _save(ds, tmp_path / 'bad')
  (error,) = _source(tmp_path).unreadable
  name = pydicom.datadict.dictionary_description(tag)
  assert error.reason.startswith(name)
  assert 'Error' not in error.reason


def test_one_unit_a_series(tmp_path):
  for name, kind in (('a', 'HU'), ('b', 'US'), ('c', 'HU')):
    _save(_ct(RescaleType=kind), tmp_path / name)
  source = _source(tmp_path)
  assert [record.provenance for record in source.records] == ['a', 'c']
  (error,) = source.unreadable
  assert (error.path, error.reason) == ('b', 'grey values in a series of HU values')


def test_an_odd_file_does_not_stop_the_others(tmp_path, capsys):
  view = Preprocess.from_config(resolve(config_lib.defaults()).data)
  lost = {'RescaleSlope': None, 'RescaleIntercept': None}
  for name, changes in (('a', {}), ('b', {'RescaleType': 'US'}), ('c', lost), ('d', lost)):
    ds = _ct(_chest_hu(), RescaleIntercept=0, SeriesInstanceUID=uid.generate_uid())
    for keyword, value in changes.items():
      setattr(ds, keyword, value)
    _save(ds, tmp_path / name / 'one')
  images = dataset.gather(_source(tmp_path), view, labelled=False)
  assert [record.provenance for record in images.records] == ['a/one', 'c/one', 'd/one']
  assert [error.path for error in images.unreadable] == ['b/one']
  remark = 'no Rescale Slope and Intercept; values taken as HU'
  assert [record.remarks for record in images.records] == [(), (remark,), (remark,)]
  assert f'2 images: {remark}\n' in capsys.readouterr().out
  with pytest.raises(UserError, match=r'1 images have grey values.*: b/one; keep them'):
    dataset.gather(_source(tmp_path), view)


_TURNS = {
  # Directions of rows and columns, and stored pixels of which `shown` is the display.
  'supine': ([1, 0, 0, 0, 1, 0], lambda shown: shown),
  'prone': ([-1, 0, 0, 0, -1, 0], lambda shown: shown[::-1, ::-1]),
  'from the head': ([-1, 0, 0, 0, 1, 0], lambda shown: shown[:, ::-1]),
  'upside down': ([1, 0, 0, 0, -1, 0], lambda shown: shown[::-1]),
  'rows to posterior': ([0, 1, 0, 1, 0, 0], lambda shown: shown.T),
  'a quarter turn': ([0, 1, 0, -1, 0, 0], lambda shown: np.rot90(shown)),
  'a quarter turn back': ([0, -1, 0, 1, 0, 0], lambda shown: np.rot90(shown, -1)),
  'rows to anterior': ([0, -1, 0, -1, 0, 0], lambda shown: shown[::-1, ::-1].T),
  'tilted, prone': ([-1, 0, 0, 0, -0.9397, 0.342], lambda shown: shown[::-1, ::-1]),
}


@pytest.mark.parametrize('name', _TURNS)
def test_rows_run_to_the_left_and_columns_to_posterior(tmp_path, name):
  axes, stored = _TURNS[name]
  shown = _chest_hu()[:, 4:]  # 48 x 44
  # A pixel of 1.5 x 1 mm as displayed, so that spacing is seen to turn with the pixels.
  spacing = [1.5, 1] if axes[0] else [1, 1.5]
  ds = _ct(stored(shown), RescaleIntercept=0, ImageOrientationPatient=axes, PixelSpacing=spacing)
  image = _source(_save(ds, tmp_path / 'one.dcm'))[0]
  straight = _ct(shown, RescaleIntercept=0, PixelSpacing=[1.5, 1])
  np.testing.assert_array_equal(
    image.pixels, _source(_save(straight, tmp_path / 'two.dcm'))[0].pixels
  )
  back = image.orientation.inverse(shown)
  np.testing.assert_array_equal(back, stored(shown))
  row, column = image.orientation.stored_pixel(10, 3, shown.shape)
  assert stored(shown)[row, column] == shown[10, 3]


def test_letters_tell_the_orientation_where_nothing_else_does(tmp_path):
  lost = {'ImageOrientationPatient': None, 'RescaleIntercept': 0}
  ds = _ct(_chest_hu()[::-1, ::-1], PatientOrientation=['R', 'A'], **lost)
  image = _source(_save(ds, tmp_path / 'one.dcm'))[0]
  np.testing.assert_array_equal(image.pixels, _chest_hu())
  with pytest.raises(UserError, match='90 degrees off axial'):
    _source(_save(_ct(PatientOrientation=['L', 'F'], **lost), tmp_path / 'two.dcm'))
  (remark,) = _source(_save(_ct(_chest_hu(), **lost), tmp_path / 'two.dcm'))[0].remarks
  assert remark == 'no Image Orientation (Patient): rows and columns taken as they lie'


def _code(value, meaning) -> Dataset:
  code = Dataset()
  code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, 'DCM', meaning
  return code


_COS, _SIN = np.round([np.cos(np.radians(35)), np.sin(np.radians(35))], 6)


@pytest.mark.parametrize(
  ('changes', 'reason'),
  [
    ({'ImageOrientationPatient': [1, 0, 0, 0, 0, -1]}, '90 degrees off axial'),
    ({'ImageOrientationPatient': [0, 1, 0, 0, 0, -1]}, '90 degrees off axial'),
    ({'ImageOrientationPatient': [1, 0, 0, 0, _COS, _SIN]}, '35 degrees off axial'),
    ({'ImageOrientationPatient': [_COS, 0, _SIN, 0, 1, 0]}, '35 degrees off axial'),
    ({'ImageOrientationPatient': [0, 0, 0, 0, 0, 0]}, 'no pair of perpendicular'),
    ({'ImageOrientationPatient': [1, 0, 0, 1, 0, 0]}, 'no pair of perpendicular'),
    ({'ImageOrientationPatient': [1, 0, 0]}, 'no pair of perpendicular'),
    ({'ImageType': ['ORIGINAL', 'PRIMARY', 'SCOUT']}, 'a localizer'),
    ({'ImageType': ['ORIGINAL', 'PRIMARY', 'localizer']}, 'a localizer'),
    ({'ImageType': ['ORIGINAL', 'PRIMARY', 'AXIAL', 'CT_SOM5 TOP']}, 'a localizer'),
    ({'ImageType': ['DERIVED', 'SECONDARY', 'MPR']}, 'a reformat'),
    ({'ImageType': ['DERIVED', 'SECONDARY', 'REFORMATTED', 'AVERAGE']}, 'a reformat'),
    ({'ImageType': ['DERIVED', 'SECONDARY', 'AXIAL', 'MIN_IP']}, 'a projection'),
    ({'ImageType': ['DERIVED', 'SECONDARY', 'PROJECTION IMAGE']}, 'a projection'),
    ({'ImageType': ['DERIVED', 'SECONDARY', 'OTHER', 'CT_SOM5 PROT']}, 'a report'),
    ({'ImageType': ['DERIVED', 'SECONDARY', 'SCREEN SAVE']}, 'a report or a screen'),
    ({'ImageType': ['DERIVED', 'SECONDARY', 'OTHER', 'CSAPARALLEL']}, 'post-processed'),
    ({'ImageType': ['DERIVED', 'SECONDARY', 'AXIAL', 'VRT']}, 'a rendering'),
    ({'ImageType': ['DERIVED', 'SECONDARY', '3D']}, 'a rendering'),
    *[
      ({'ImageType': ['DERIVED', 'PRIMARY', *words.split()]}, kind)
      for kind, words in (
        ('computed from several', 'AXIAL MEAN'),
        ('computed from several', 'AXIAL STD_DEVIATION'),
        ('computed from several', 'AVERAGE'),
        ('computed from several', 'PERF'),
        ('a map of a material', 'GSI IODINE'),
        ('a map of a material', 'EFF_Z'),
        ('a reformat', 'COR'),
        ('a reformat', 'SAGMPR'),
        ('a reformat', 'MPRTHICK'),
        ('a report', 'DOSEREPORT'),
        ('a rendering', 'VOLREN'),
        ('a localizer', 'LOC'),
      )
    ],
    ({'VolumetricProperties': 'DISTORTED'}, 'Properties DISTORTED'),
    ({'VolumetricProperties': 'SAMPLED'}, 'Properties SAMPLED'),
    ({'VolumeBasedCalculationTechnique': 'MAX_IP'}, 'Technique MAX_IP'),
    (
      {'DerivationCodeSequence': [_code('113078', 'Maximum intensity projection')]},
      'derived by Maximum intensity projection',
    ),
    ({'Rows': 15, 'Columns': 15}, 'too few'),
    ({'Rows': 16, 'Columns': 28}, 'too long'),
    ({'PixelSpacing': [0.5, 1]}, 'too long'),
  ],
)
def test_only_axial_slices(tmp_path, changes, reason):
  _save(_ct(), tmp_path / 'good')
  ds = _ct(np.zeros((32, 32)))
  with dicom_header.quiet_pydicom():
    for keyword, value in changes.items():
      setattr(ds, keyword, value)
    _save(ds, tmp_path / 'bad')
  (error,) = _source(tmp_path).unreadable
  assert error.path == 'bad'
  assert reason in error.reason


@pytest.mark.parametrize(
  'kinds',
  [
    ['DERIVED', 'SECONDARY', 'AXIAL'],
    ['DERIVED', 'PRIMARY', 'AXIAL', 'CT_SOM5 SPI'],
    ['ORIGINAL', 'PRIMARY', 'AXIAL', 'HELIX', 'AIDR 3D'],
    ['DERIVED', 'SECONDARY'],
    None,
  ],
)
def test_derived_or_secondary_alone_refuses_nothing(tmp_path, kinds):
  assert len(_source(_save(_ct(ImageType=kinds), tmp_path / 'one.dcm'))) == 1


def test_a_description_tells_where_nothing_else_does(tmp_path):
  lost = {'ImageOrientationPatient': None, 'ImageType': ['DERIVED', 'SECONDARY', 'OTHER']}
  for name, text in (('a', 'Patient Protocol'), ('b', 'Topogram 0.6'), ('c', 'Thorax 3.0 B70f')):
    _save(_ct(SeriesDescription=text, **lost), tmp_path / name)
  _save(_ct(SeriesDescription='Thorax, after the topogram'), tmp_path / 'd')
  source = _source(tmp_path)
  assert sorted(record.provenance for record in source.records) == ['c', 'd']
  assert 'a report or a screen (Series Description PROTOCOL)' in source.unreadable[0].reason


def test_frames_that_are_not_axial_are_refused_one_by_one(tmp_path):
  ds = _enhanced()
  own = ds.PerFrameFunctionalGroupsSequence
  orientation = Dataset()
  orientation.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
  own[0].PlaneOrientationSequence = [orientation]
  source = _source(_save(ds, tmp_path / 'one.dcm'))
  assert [record.provenance for record in source.records] == ['one.dcm#2']
  assert 'off axial' in source.unreadable[0].reason
  kind = Dataset()
  kind.FrameType, kind.VolumeBasedCalculationTechnique = ['DERIVED', 'PRIMARY', 'MIP'], 'MIN_IP'
  own[0].CTImageFrameTypeSequence = [kind]
  del own[0].PlaneOrientationSequence
  assert 'MIP' in _source(_save(ds, tmp_path / 'one.dcm')).unreadable[0].reason
  kind.FrameType = ['DERIVED', 'PRIMARY', 'VOLUME', 'NONE']
  assert 'MIN_IP' in _source(_save(ds, tmp_path / 'one.dcm')).unreadable[0].reason
  del own[0].CTImageFrameTypeSequence
  del ds.ImageOrientationPatient
  del ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
  with pytest.raises(UserError, match='is missing; need that of an axial'):
    _source(_save(ds, tmp_path / 'one.dcm'))


def _says_synthetic(how: str) -> Dataset:
  ds = _enhanced() if how.startswith('frame') else _ct()
  equipment = Dataset()
  equipment.PurposeOfReferenceCodeSequence = [_code('109100', 'Synthesizing Equipment')]
  place = ds.PerFrameFunctionalGroupsSequence[0] if how.startswith('frame') else ds
  with dicom_header.quiet_pydicom():
    if how in ('YES', 'yes', ' Yes ', 'Y', 'TRUE'):
      ds.add_new('SyntheticData', 'CS', how)
    elif how == 'twice':
      ds.add_new('SyntheticData', 'CS', ['YES', 'YES'])
    elif how == 'frame, nested':
      place.PlanePositionSequence[0].SyntheticData = 'YES'
    elif how == 'frame':
      place.SyntheticData = 'YES'
    elif how == 'frame, equipment':
      place.ContributingEquipmentSequence = [equipment]
    elif how == 'equipment':
      ds.ContributingEquipmentSequence = [equipment]
    else:
      ds.ImageType = ['DERIVED', 'PRIMARY', 'AXIAL', how]
  return ds


@pytest.mark.parametrize(
  ('how', 'tag'),
  [
    *[(how, '(0008,001C)') for how in ('YES', 'yes', ' Yes ', 'Y', 'TRUE', 'twice')],
    *[(how, '(0008,001C)') for how in ('frame', 'frame, nested')],
    *[(how, '(0018,A001)') for how in ('equipment', 'frame, equipment')],
    *[(how, '(0008,0008)') for how in ('SYNTHETIC', 'Synthesized CT')],
  ],
)
def test_what_says_that_it_is_synthetic_is_no_original(tmp_path, how, tag):
  with dicom_header.quiet_pydicom():
    path = _save(_says_synthetic(how), tmp_path / 'said')
  _save(_ct(), tmp_path / 'good')
  says = f'the file says that it is synthetic {tag}'
  source = _source(tmp_path)
  (error,) = source.unreadable
  assert error.path == ('said#1' if how.startswith('frame') else 'said')
  assert error.reason == f'{says}: no original; data.synthetic_ok=True takes it'
  assert not any(source[i].synthetic for i in range(len(source)))
  taken = DicomSource(path, labels_csv=None, max_pixels=2**20, synthetic_ok=True)
  marked = [taken[i] for i in range(len(taken)) if taken[i].synthetic]
  assert [image.remarks[0] for image in marked] == [says]


def test_a_source_of_originals_takes_synthetic_ones_only_where_that_is_said(tmp_path):
  _save(_says_synthetic('YES'), tmp_path / 'a' / 'one')
  config = config_lib.defaults()
  config.data.source, config.data.path = 'dicom', str(tmp_path)
  with pytest.raises(UserError, match=r'no usable CT.*synthetic \(0008,001C\)'):
    dataset.open_source(resolve(config))
  config.data.synthetic_ok = True
  assert len(dataset.open_source(resolve(config))) == 1


def test_quiet_under_threads_leaves_filters_and_level_as_they_were():
  before, level = list(warnings.filters), logging.getLogger('pydicom').level
  inside, go = threading.Barrier(3), threading.Event()

  def quiet(leaves_first):
    with dicom_header.quiet_pydicom():
      inside.wait()
      if not leaves_first:
        go.wait()

  threads = [threading.Thread(target=quiet, args=(first,)) for first in (True, False)]
  for thread in threads:
    thread.start()
  inside.wait()
  threads[0].join()
  with warnings.catch_warnings(record=True) as heard:  # one still wants it quiet
    warnings.warn('of a patient', UserWarning, stacklevel=1)
  assert not heard
  go.set()
  threads[1].join()
  assert warnings.filters == before
  assert logging.getLogger('pydicom').level == level


@pytest.mark.parametrize(('says', 'remarks'), [('YES', (BURNED_IN,)), ('NO', ()), ('', ())])
def test_text_in_the_pixels_is_remarked(tmp_path, says, remarks):
  path = _save(_ct(_chest_hu() + 1024, BurnedInAnnotation=says), tmp_path / 'one.dcm')
  assert _source(path)[0].remarks == remarks


def test_images_without_a_patient_id_are_counted(tmp_path):
  for i in range(2):
    ds = _ct()
    ds.PatientID, ds.StudyInstanceUID = '', f'1.{i}'
    _save(ds, tmp_path / f'{i}.dcm')
  named = _ct()
  named.PatientID = 'somebody'
  _save(named, tmp_path / 'named.dcm')
  assert _source(tmp_path).without_patient_id == 2
