import hashlib
import math
import os
import pathlib
import shutil
import struct
import zlib

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from PIL import Image

from ctfake_jax.data.sources import image_folder
from ctfake_jax.types import UNKNOWN_LABEL, Source, UnreadableImageError, UserError

LIMIT = 10_000
GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def put(path: pathlib.Path, image: Image.Image | np.ndarray = GREY, **options) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  image.save(path, **options)
  return path


def decode(path: pathlib.Path, max_pixels: int = LIMIT) -> np.ndarray:
  (only,) = image_folder.FolderSource(path, max_pixels=max_pixels, unlabelled_ok=True)
  assert (only.unit, only.spacing_mm, only.pixels.dtype) == ('grey', None, np.float32)
  return only.pixels


def refused(path: pathlib.Path, max_pixels: int = LIMIT) -> str:
  source = image_folder.FolderSource(path, max_pixels=max_pixels, unlabelled_ok=True)
  with pytest.raises(UnreadableImageError) as caught:
    source[0]
  assert caught.value.path == path.name
  assert str(path.parent) not in str(caught.value)
  return caught.value.reason


def close(monkeypatch, *names: str):
  """Takes the right to list folders away, which root would keep."""
  scandir = os.scandir

  def closed(path):
    if os.fspath(path).endswith(tuple(f'/{name}' for name in names)):
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', closed)


@pytest.fixture
def two_classes(tmp_path):
  for name in ('b/2.png', 'b/10.png', 'a/sub/deep/1.PNG', 'a/0.bmp'):
    put(tmp_path / name)
  return tmp_path


# What a file becomes.


@pytest.mark.parametrize('suffix', ['png', 'tif', 'bmp'])
def test_8_bit_grey(tmp_path, suffix):
  np.testing.assert_array_equal(decode(put(tmp_path / f'x.{suffix}')), GREY / np.float32(255))


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_16_bit_grey(tmp_path, suffix):
  values = np.array([[0, 1, 255, 256], [32767, 32768, 65534, 65535]], np.uint16)
  pixels = decode(put(tmp_path / f'x.{suffix}', values))
  np.testing.assert_array_equal(pixels, values / np.float32(65535))


def test_16_bit_grey_big_endian_tiff(tmp_path):
  values = np.array([[1, 256], [515, 65535]], np.uint16)
  image = Image.frombytes('I;16B', (2, 2), values.astype('>u2').tobytes())
  np.testing.assert_array_equal(decode(put(tmp_path / 'x.tif', image)), values / np.float32(65535))


def tiff(path: pathlib.Path, strip: bytes, bits: int, photometric: int, sample: int = 1):
  """A TIFF of two grey pixels in one row, written by TIFF 6.0, sections 2 and 4."""
  tags = [
    (256, 2),  # ImageWidth
    (257, 1),  # ImageLength
    (258, bits),  # BitsPerSample
    (259, 1),  # Compression: none
    (262, photometric),  # 0 WhiteIsZero, 1 BlackIsZero
    (273, 8),  # StripOffsets
    (277, 1),  # SamplesPerPixel
    (278, 1),  # RowsPerStrip
    (279, len(strip)),  # StripByteCounts
    (339, sample),  # SampleFormat: 1 unsigned, 2 signed, 3 float
  ]
  directory = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags)
  head = b'II*\0' + struct.pack('<I', 8 + len(strip))
  path.write_bytes(head + strip + struct.pack('<H', len(tags)) + directory + b'\0' * 4)
  return path


@pytest.mark.parametrize(
  ('strip', 'bits', 'photometric', 'sample', 'expected'),
  [
    (b'\x00\x33', 8, 1, 1, (0, 0.2)),
    (b'\x00\x33', 8, 0, 1, (1, 0.8)),
    (b'\x00\x0f\xff', 12, 1, 1, (0, 1)),
    (struct.pack('<HH', 0, 13107), 16, 1, 1, (0, 0.2)),
    (struct.pack('<HH', 0, 13107), 16, 0, 1, (1, 0.8)),
    (struct.pack('<ff', 0, 0.2), 32, 1, 3, (0, 0.2)),
    (struct.pack('<ff', 0, 0.2), 32, 0, 3, (1, 0.8)),
  ],
)
def test_tiff_types(tmp_path, strip, bits, photometric, sample, expected):
  path = tiff(tmp_path / 'x.tif', strip, bits, photometric, sample)
  np.testing.assert_allclose(decode(path), [expected], 1e-6)


@pytest.mark.parametrize('suffix', ['png', 'tif', 'bmp'])
def test_1_bit(tmp_path, suffix):
  bits = np.array([[True, False, True], [False, False, True]])
  np.testing.assert_array_equal(decode(put(tmp_path / f'x.{suffix}', bits)), bits)


@pytest.mark.parametrize('mode', ['RGB', 'RGBA'])
@pytest.mark.parametrize(
  ('colour', 'luma'),
  [((255, 0, 0), 0.299), ((0, 255, 0), 0.587), ((0, 0, 255), 0.114), ((10, 20, 30), 18.15 / 255)],
)
def test_colour_is_bt_601_luma_whatever_the_alpha(tmp_path, mode, colour, luma):
  image = Image.new(mode, (2, 3), (*colour, 7)[: len(mode)])
  np.testing.assert_allclose(decode(put(tmp_path / 'x.png', image)), np.full((3, 2), luma), 1e-6)


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'LA', 'P', 'PA'])
def test_grey_stored_in_another_type_gives_the_same_numbers(tmp_path, mode):
  values = np.arange(256, dtype=np.uint8).reshape(16, 16)
  image = Image.fromarray(values).convert('P' if mode == 'PA' else mode)
  path = put(tmp_path / 'x.tif', image.convert('PA') if mode == 'PA' else image)
  np.testing.assert_array_equal(decode(path), values / np.float32(255))


def png_16_bit(path, colour_type, channels):
  """A PNG of 4 x 4 samples of 16 bits, which Pillow does not write in colour."""
  rows = b''.join(b'\0' + np.full(4 * channels, 0x1234, '>u2').tobytes() for _ in range(4))
  chunks = [
    (b'IHDR', struct.pack('>IIBBBBB', 4, 4, 16, colour_type, 0, 0, 0)),
    (b'IDAT', zlib.compress(rows)),
    (b'IEND', b''),
  ]
  path.write_bytes(
    b'\x89PNG\r\n\x1a\n'
    + b''.join(
      struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
      for kind, data in chunks
    )
  )


@pytest.mark.parametrize(('colour_type', 'channels'), [(0, 1), (2, 3)])
def test_sixteen_bits_of_colour_are_remarked_and_of_grey_are_read(tmp_path, colour_type, channels):
  png_16_bit(tmp_path / 'a.png', colour_type, channels)
  image = image_folder.FolderSource(tmp_path / 'a.png', max_pixels=100, unlabelled_ok=True)[0]
  if channels == 1:
    assert image.remarks == ()
    np.testing.assert_allclose(image.pixels, 0x1234 / 65535, atol=1e-6)
  else:
    assert image.remarks == (image_folder.HALF_READ,)
    np.testing.assert_allclose(image.pixels, 0x12 / 255, atol=1 / 255)


@pytest.mark.parametrize(('alpha', 'remarks'), [(255, ()), (7, (image_folder.SEE_THROUGH,))])
def test_transparency_that_is_left_out_is_remarked(tmp_path, alpha, remarks):
  put(tmp_path / 'x.png', Image.new('RGBA', (2, 3), (1, 2, 3, alpha)))
  source = image_folder.FolderSource(tmp_path, max_pixels=LIMIT, unlabelled_ok=True)
  assert source[0].remarks == remarks


@pytest.mark.parametrize(
  ('name', 'content', 'reason'),
  [
    ('x.png', b'\x1f\x8b\x08\x00', 'is packed by gzip: unpack it'),
    ('x.png', b'text', 'is not a readable PNG'),
    ('notes.txt', b'text', 'is neither DICOM nor a PNG'),
  ],
)
def test_what_is_no_picture_is_named_as_what_it_is(tmp_path, name, content, reason):
  (tmp_path / name).write_bytes(content)
  source = image_folder.FolderSource(tmp_path / name, max_pixels=LIMIT, unlabelled_ok=True)
  with pytest.raises(UnreadableImageError, match=reason):
    source[0]


def test_palette_with_transparency(tmp_path):
  image = Image.new('P', (2, 1))
  image.putpalette([255, 0, 0, 0, 0, 255])
  image.putpixel((1, 0), 1)
  path = put(tmp_path / 'x.png', image, transparency=bytes([0, 128]))
  np.testing.assert_allclose(decode(path), [[0.299, 0.114]], 1e-6)


def test_jpeg_is_near_and_cmyk_is_taken(tmp_path):
  flat = np.full((16, 16), 100, np.uint8)
  assert np.abs(decode(put(tmp_path / 'x.JPG', flat, format='JPEG')) - 100 / 255).max() < 0.01
  cmyk = Image.fromarray(flat).convert('RGB').convert('CMYK')
  assert np.abs(decode(put(tmp_path / 'y.jpeg', cmyk)) - 100 / 255).max() < 0.02


@pytest.mark.parametrize(
  ('orientation', 'turned'),
  [(2, GREY[:, ::-1]), (3, GREY[::-1, ::-1]), (6, np.rot90(GREY, -1)), (8, np.rot90(GREY))],
)
def test_exif_orientation(tmp_path, orientation, turned):
  exif = Image.Exif()
  exif[274] = orientation  # Exif 2.3, Orientation: 6 wants a quarter turn clockwise
  big = Image.fromarray(GREY.repeat(16, 0).repeat(16, 1))
  pixels = decode(put(tmp_path / 'x.jpg', big, exif=exif, quality=100))
  assert np.abs(pixels[8::16, 8::16] - turned / 255).max() < 0.02
  sixteen = put(tmp_path / 'y.tif', GREY.astype(np.uint16), tiffinfo={274: orientation})
  np.testing.assert_array_equal(decode(sixteen), turned / np.float32(65535))


def test_float_tiff_within_the_unit_interval(tmp_path):
  values = np.array([[0, 0.25], [1, 1e-3]], np.float32)
  np.testing.assert_array_equal(decode(put(tmp_path / 'x.tif', values)), values)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(
  values=hnp.arrays(
    hypothesis.strategies.sampled_from([np.uint8, np.uint16]),
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
  )
)
def test_png_round_trip(tmp_path_factory, values):
  pixels = decode(put(tmp_path_factory.mktemp('png') / 'x.png', values))
  full = np.iinfo(values.dtype).max
  np.testing.assert_array_equal(np.round(pixels * full).astype(values.dtype), values)


# What is refused.


@pytest.mark.parametrize('value', [math.nan, math.inf, -0.1, 1.1, -1000])
def test_float_tiff_out_of_range(tmp_path, value):
  path = put(tmp_path / 'x.tif', np.array([[0, value]], np.float32))
  assert 'outside [0, 1] or NaN' in refused(path)


def test_signed_integers(tmp_path):
  path = tiff(tmp_path / 'x.tif', struct.pack('<hh', -1000, 40), 16, 1, sample=2)
  assert 'pixel type I is not supported' in refused(path)


def test_several_pages(tmp_path):
  page = Image.fromarray(GREY)
  path = put(tmp_path / 'x.tif', page, save_all=True, append_images=[page, page])
  assert 'has 3 pages' in refused(path)


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'tif', 'bmp'])
@pytest.mark.parametrize('kept', [0, 1, 20, 0.5, 0.9])
def test_truncated(tmp_path, suffix, kept):
  noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
  path = put(tmp_path / f'x.{suffix}', noise)
  whole = path.read_bytes()
  path.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
  assert refused(path)


def test_text_in_an_images_name(tmp_path):
  path = tmp_path / 'x.png'
  path.write_text('no picture')
  assert 'not a readable PNG, JPEG, TIFF, BMP file' in refused(path)


def test_another_format_in_an_images_name(tmp_path):
  assert 'not a readable' in refused(put(tmp_path / 'x.png', format='GIF'))


def test_file_that_vanished(tmp_path):
  path = put(tmp_path / 'x.png')
  source = image_folder.FolderSource(path, max_pixels=LIMIT, unlabelled_ok=True)
  path.unlink()
  with pytest.raises(UnreadableImageError, match=r'x\.png: cannot be read \(No such file'):
    source[0]


@pytest.mark.parametrize(('limit', 'fits'), [(12, True), (11, False)])
def test_pixel_limit(tmp_path, limit, fits):
  path = put(tmp_path / 'x.png')
  if fits:
    decode(path, limit)
  else:
    assert refused(path, limit) == '4 x 3 is above data.max_pixels = 11'


@pytest.mark.parametrize('side', [200, 10_000, 14_000, 100_000])
def test_bomb_is_refused_by_its_header(tmp_path, side):
  # A header that promises side x side pixels, and no pixels: decoding would fail otherwise.
  def chunk(name, data):
    check = zlib.crc32(name + data)
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', check)

  path = tmp_path / 'x.png'
  header = chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0))
  path.write_bytes(b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', b'') + chunk(b'IEND', b''))
  before = Image.MAX_IMAGE_PIXELS
  assert ('above data.max_pixels' if side == 200 else 'exceeds limit') in refused(path)
  assert before == Image.MAX_IMAGE_PIXELS


# Which files are taken, and in which order.


def test_class_folders(two_classes):
  (two_classes / 'a/notes.txt').write_text('')
  (two_classes / '.git').mkdir()
  put(two_classes / 'a/.hidden.png')
  put(two_classes / '__MACOSX/a/x.png')
  source = image_folder.FolderSource(two_classes, max_pixels=LIMIT)
  assert isinstance(source, Source)
  assert source.class_names == ('a', 'b')
  assert [r.provenance for r in source.records] == [
    'a/0.bmp',
    'a/sub/deep/1.PNG',
    'b/10.png',
    'b/2.png',
  ]
  assert [r.label for r in source.records] == [0, 0, 1, 1]
  assert {(r.patient_id, r.split) for r in source.records} == {(None, None)}
  assert len(source) == 4
  assert not source.unreadable
  np.testing.assert_array_equal(source[3].pixels, GREY / np.float32(255))


def test_order_of_named_classes_is_the_order_of_labels(two_classes):
  (two_classes / 'empty').mkdir()
  source = image_folder.FolderSource(two_classes, classes=('b', 'a'), max_pixels=LIMIT)
  assert source.class_names == ('b', 'a')
  assert {r.provenance[0]: r.label for r in source.records} == {'a': 1, 'b': 0}


def test_split_folders(tmp_path):
  tops = {'Train': 'train', 'test': 'test', 'validation': 'val'}
  for top in tops:
    put(tmp_path / top / 'a/x.png')
    put(tmp_path / top / 'b/y.png')
  source = image_folder.FolderSource(tmp_path, max_pixels=LIMIT)
  assert source.class_names == ('a', 'b')
  assert [(r.provenance, r.label, r.split) for r in source.records] == [
    (f'{top}/{name}', label, split)
    for top, split in tops.items()
    for label, name in enumerate(('a/x.png', 'b/y.png'))
  ]


def test_a_class_may_bear_a_splits_name_when_named(tmp_path):
  put(tmp_path / 'test/x.png')
  put(tmp_path / 'other/x.png')
  source = image_folder.FolderSource(tmp_path, classes=('test', 'other'), max_pixels=LIMIT)
  assert [(r.label, r.split) for r in source.records] == [(1, None), (0, None)]
  with pytest.raises(UserError, match=r"split folders \('test'\) lie beside others \('other'\)"):
    image_folder.FolderSource(tmp_path, max_pixels=LIMIT)


def test_patient_folders_are_pseudonyms(tmp_path):
  for path in ('a/one/1.png', 'a/two/1.png', 'b/two/below/3.png'):
    put(tmp_path / path)
  source = image_folder.FolderSource(tmp_path, max_pixels=LIMIT, patient_folders=True)
  one, two = (hashlib.sha256(name).hexdigest()[:12] for name in (b'one', b'two'))
  assert [r.patient_id for r in source.records] == [one, two, two]


def test_an_image_outside_the_folders_of_patients_is_refused(two_classes):
  with pytest.raises(UserError, match=r'data\.patient_folders: a/0\.bmp lies in no folder'):
    image_folder.FolderSource(two_classes, max_pixels=LIMIT, patient_folders=True)


@pytest.mark.parametrize(
  ('mode', 'share', 'said'),
  [('RGB', 1.0, True), ('RGB', 0.01, False), ('L', 1.0, False), ('P', 1.0, True)],
)
def test_colour_is_remarked(tmp_path, mode, share, said):
  rng = np.random.default_rng(0)
  grey = rng.integers(0, 256, (32, 32, 1), np.uint8)
  colours = rng.integers(0, 256, (32, 32, 3), np.uint8)
  pixels = np.where(rng.random((32, 32, 1)) < share, colours, grey)
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    Image.fromarray(pixels).convert(mode).save(tmp_path / name / '1.png')
  source = image_folder.FolderSource(tmp_path, max_pixels=LIMIT)
  assert (image_folder.IN_COLOUR in source[0].remarks) == said


@pytest.mark.parametrize('single', [True, False])
def test_unlabelled(tmp_path, single):
  put(tmp_path / 'x.png')
  put(tmp_path / 'below/y.png')
  root = tmp_path / 'x.png' if single else tmp_path
  source = image_folder.FolderSource(root, max_pixels=LIMIT, unlabelled_ok=True)
  assert source.class_names == ()
  assert [r.provenance for r in source.records] == ['x.png'] if single else ['below/y.png', 'x.png']
  assert {r.label for r in source.records} == {UNKNOWN_LABEL}
  with pytest.raises(UserError):
    image_folder.FolderSource(root, max_pixels=LIMIT)


def test_stray_images_are_listed(two_classes):
  put(two_classes / 'stray.png')
  source = image_folder.FolderSource(two_classes, max_pixels=LIMIT)
  assert [e.path for e in source.unreadable] == ['stray.png']
  assert len(source) == 4


def test_name_that_is_no_utf_8(two_classes):
  folder = os.fsencode(two_classes) + b'/a/'
  os.rename(two_classes / 'a/0.bmp', folder + b'\xff.png')
  shutil.copy(folder + b'\xff.png', folder + b'\xfe.png')
  source = image_folder.FolderSource(two_classes, max_pixels=LIMIT)
  shown = [r.provenance for r in source.records]
  assert [name for name in shown if '\\' in name] == ['a/\\xfe.png', 'a/\\xff.png']
  assert source[shown.index('a/\\xff.png')].pixels.shape == (3, 4)


def test_links_out_of_the_root_are_listed_and_links_within_are_taken(two_classes, tmp_path_factory):
  outside = put(tmp_path_factory.mktemp('outside') / 'x.png')
  (two_classes / 'a/out.png').symlink_to(outside)
  (two_classes / 'a/nowhere.png').symlink_to('nothing')
  (two_classes / 'b/within.png').symlink_to('2.png')
  source = image_folder.FolderSource(two_classes, max_pixels=LIMIT)
  assert sorted(e.path for e in source.unreadable) == ['a/nowhere.png', 'a/out.png']
  assert 'b/within.png' in [r.provenance for r in source.records]
  assert str(outside.parent) not in ''.join(map(str, source.unreadable))


def test_a_linked_folder_is_listed_and_stops_nothing(two_classes, tmp_path_factory):
  (two_classes / 'a/linked').symlink_to(tmp_path_factory.mktemp('outside'))
  (two_classes / 'c').symlink_to(two_classes / 'b')
  source = image_folder.FolderSource(two_classes, max_pixels=LIMIT)
  assert {e.path: e.reason.partition(';')[0] for e in source.unreadable} == {
    'a/linked': 'is a link that leads out of the folder',
    'c': 'is a link to a folder, which is not followed',
  }
  assert (source.class_names, len(source)) == (('a', 'b'), 4)


def test_a_folder_that_cannot_be_listed_stops_nothing(two_classes, monkeypatch):
  put(two_classes / 'b/closed/x.png')
  put(two_classes / 'c/x.png')
  close(monkeypatch, 'closed', 'c')
  source = image_folder.FolderSource(two_classes, max_pixels=LIMIT)
  assert [e.path for e in source.unreadable] == ['b/closed', 'c']
  assert all('cannot be listed (Permission denied)' in e.reason for e in source.unreadable)
  assert (source.class_names, len(source)) == (('a', 'b'), 4)


def test_what_is_not_read_is_counted_by_kind(two_classes):
  for name in ('a/1.webp', 'a/2.WEBP', 'b/3.gif', 'b/4.jp2', 'b/5.nii.gz', 'b/notes', 'Thumbs.db'):
    (two_classes / name).write_text('x')
  put(two_classes / '@eaDir/a/x.png')
  source = image_folder.FolderSource(two_classes, max_pixels=LIMIT)
  assert len(source) == 4
  assert source.skipped == {
    '.webp': 2, '.gif': 1, '.jp2': 1, '.gz': 1, 'without suffix': 1, 'hidden': 2,
  }  # fmt: skip
  shutil.rmtree(two_classes / 'a')
  (two_classes / 'b/10.png').unlink()
  (two_classes / 'b/2.png').unlink()
  with pytest.raises(UserError, match=r'no image found.*not read: .*1 \.gif'):
    image_folder.FolderSource(two_classes, max_pixels=LIMIT, unlabelled_ok=True)


@pytest.mark.parametrize('part', ['train_data', 'Training set', 'training-images', 'TRAIN'])
def test_parts_in_usual_spellings(tmp_path, part):
  for top in (part, 'Test_set', 'dev'):
    put(tmp_path / top / 'a/x.png')
    put(tmp_path / top / 'b/y.png')
  source = image_folder.FolderSource(tmp_path, max_pixels=LIMIT)
  assert source.class_names == ('a', 'b')
  split = {r.provenance.partition('/')[0]: r.split for r in source.records}
  assert split == {part: 'train', 'Test_set': 'test', 'dev': 'val'}


def test_parts_below_classes(tmp_path):
  for name in ('a', 'b'):
    put(tmp_path / name / 'train/p/x.png')
    put(tmp_path / name / 'test/p/y.png')
  source = image_folder.FolderSource(tmp_path, max_pixels=LIMIT, patient_folders=True)
  assert source.class_names == ('a', 'b')
  assert [(r.label, r.split) for r in source.records] == [
    (0, 'test'), (0, 'train'), (1, 'test'), (1, 'train'),
  ]  # fmt: skip
  assert len({r.patient_id for r in source.records}) == 1


def test_masks_beside_images_are_refused_unless_classes_are_named(two_classes):
  put(two_classes / 'masks/x.png')
  with pytest.raises(UserError, match=r"'masks' looks like masks.*data\.classes"):
    image_folder.FolderSource(two_classes, max_pixels=LIMIT)
  assert len(image_folder.FolderSource(two_classes, classes=('a', 'b'), max_pixels=LIMIT)) == 4


@pytest.mark.parametrize(
  ('files', 'options', 'message'),
  [
    ([], {}, 'no image found'),
    (['x.png'], {}, r'no image found.*x\.png: lies outside any class'),
    (['notes.txt'], {'unlabelled_ok': True}, 'no image found'),
    (['a/x.png'], {}, "only one class \\('a'\\)"),
    (['a/x.png', 'b/x.png'], {'classes': ('a',)}, "only one class \\('a'\\)"),
    (['a/x.png', 'b/x.txt'], {}, '^b: this class folder holds no image'),
    (['train/a/x.png', 'train/b/x.png', 'test/b/x.txt'], {}, '^test/b: this class folder'),
    (['train/x.png', 'test/x.png'], {}, "'test', 'train' hold no class folders"),
    (['train_fold1/x.png', 'test_fold1/x.png'], {}, 'look like parts'),
    (['a_train/x.png', 'a_test/x.png', 'b_train/x.png'], {}, 'look like parts'),
    (['trn/a/x.png', 'tst/a/x.png'], {}, 'look like parts'),
    (['a/train/x.png', 'a/test/x.png', 'b/p/x.png'], {}, 'part folders .* beside 1 others'),
    (['images/x.png', 'labels/x.png'], {}, "'labels' looks like masks"),
    (['a/images/x.png', 'a/lung_masks/x.png', 'b/x.png'], {}, "'a/lung_masks' looks like masks"),
    (['a/x.png', 'a/Segmentation/x.png', 'b/x.png'], {}, "'a/Segmentation' looks like masks"),
    (['a/x.png', 'b/x.png'], {'classes': ('a', 'c')}, "no class folder named 'c'; have: 'a', 'b'"),
  ],
)
def test_what_a_user_gets_wrong(tmp_path, files, options, message):
  for name in files:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch() if path.suffix == '.txt' else put(path)
  with pytest.raises(UserError, match=message):
    image_folder.FolderSource(tmp_path, max_pixels=LIMIT, **options)


def test_missing_folder(tmp_path):
  with pytest.raises(UserError, match='nothing_here: there is no such folder'):
    image_folder.FolderSource(tmp_path / 'nothing_here', max_pixels=LIMIT)


# Real sets.


@pytest.mark.parametrize(
  ('name', 'counts'),
  [
    ('sars_cov2_ct', {'covid': 1252, 'non_covid': 1229}),
    (
      'chest_ctscan',
      {
        'adenocarcinoma': 337,
        'large.cell.carcinoma': 186,
        'normal': 66,
        'squamous.cell.carcinoma': 257,
      },
    ),
  ],
)
def test_real_sets(name, counts):
  if not os.environ.get('CTFAKE_DATA'):
    pytest.skip('CTFAKE_DATA is not set')
  source = image_folder.FolderSource(
    pathlib.Path(os.environ['CTFAKE_DATA'], name), max_pixels=LIMIT * 10
  )
  labels = [r.label for r in source.records]
  assert {n: labels.count(i) for i, n in enumerate(source.class_names)} == counts
  assert not source.unreadable
  for index in range(0, len(source), 100):
    pixels = source[index].pixels
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert min(pixels.shape) <= 160


def test_dicom_among_pictures_is_named_whatever_it_is_called(two_classes):
  (two_classes / 'a' / 'slice.dcm').touch()
  (two_classes / 'a' / 'IM0001').write_bytes(bytes(128) + b'DICM')
  (two_classes / 'a' / 'LICENSE').write_text('DICM')
  source = image_folder.FolderSource(two_classes, max_pixels=LIMIT)
  assert [error.path for error in source.unreadable] == ['a/IM0001', 'a/slice.dcm']
  assert all('is DICOM among pictures' in error.reason for error in source.unreadable)
