"""12-bit CT in 16-bit pictures: the range is found, said, recorded and never swapped in silence."""

import dataclasses
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.data import dataset, grey_range
from ctfake_jax.data.preprocess import (
  ONE_VALUE,
  TWO_VALUES,
  USES_LITTLE,
  GreyRange,
  Preprocess,
  from_uint8,
)
from ctfake_jax.data.sources import array_record
from ctfake_jax.data.sources.image_folder import FolderSource
from ctfake_jax.data.sources.sandboxed import Limits, decode_all
from ctfake_jax.evaluation import baselines
from ctfake_jax.types import Slice, UserError


def chest(rng) -> np.ndarray:
  """HU int[16, 16]: air, a body of muscle with lungs, some bone."""
  hu = np.full((16, 16), -1000)
  hu[2:14, 1:15] = 40
  hu[4:12, 3:13] = -800
  hu[7:9, 7:9] = 1200
  return hu + rng.integers(-20, 20, hu.shape)


def with_chunk(path, name: bytes, content: bytes) -> None:
  """Puts a chunk right behind a PNG's header of 33 bytes."""
  data = path.read_bytes()
  check = struct.pack('>I', zlib.crc32(name + content))
  path.write_bytes(data[:33] + struct.pack('>I', len(content)) + name + content + check + data[33:])


@pytest.fixture
def pictures(tmp_path):
  """Writes eight 16-bit slices of each of two classes, at an offset; returns a config of them."""

  def write(offset: int, bits: int | None = None, fill: bool = False):
    rng = np.random.default_rng(0)
    for name in ('a', 'b'):
      (tmp_path / 'set' / name).mkdir(parents=True, exist_ok=True)
      for i in range(8):
        stored = chest(rng) + offset
        if fill:
          stored[:2] = 0
        path = tmp_path / 'set' / name / f'{i}.png'
        Image.fromarray(stored.astype(np.uint16)).save(path)
        if bits:
          with_chunk(path, b'sBIT', bytes([bits]))
    config = config_lib.defaults()
    config.data.source, config.data.path = 'folders', str(tmp_path / 'set')
    config.data.image_size = 16
    return config

  return write


@pytest.mark.parametrize('offset', [1024, 32768])
@pytest.mark.parametrize('fill', [False, True])
def test_a_set_that_uses_little_of_its_range_is_refused_or_scaled(pictures, offset, fill, capsys):
  config = pictures(offset, fill=fill)
  with pytest.raises(UserError, match=r'grey_range=auto'):
    dataset.load(resolve(config))
  config.data.grey_range = 'auto'
  images, settled = dataset.load(resolve(config))
  low, high, white = config_lib.parse_grey_range(settled.data.grey_range)
  assert white == 65535
  assert abs(low - (offset - 1000)) <= 25
  assert abs(high - (offset + 1200)) <= 25
  assert f'grey values use {settled.data.grey_range}' in capsys.readouterr().out
  assert baselines.describe(images)['grey_values_used'] == settled.data.grey_range
  assert images.images.std() > 0.4
  # Lung, -800 HU, lies 200 of 2200 HU above black.
  assert abs(np.median(images.images[:, 5:7, 4:7]) - (2 * 200 / 2200 - 1)) < 0.05


def test_what_png_says_of_its_bits_is_the_range(pictures):
  config = pictures(1024, bits=12)
  config.data.grey_range = 'auto'
  _, settled = dataset.load(resolve(config))
  assert settled.data.grey_range == '0-4095/65535'


def test_bits_that_values_exceed_are_not_believed(pictures):
  config = pictures(32768, bits=12)
  config.data.grey_range = 'auto'
  _, settled = dataset.load(resolve(config))
  assert settled.data.grey_range != '0-4095/65535'


def test_the_record_scales_single_pictures_and_names_other_depths(pictures, tmp_path):
  config = pictures(1024)
  config.data.grey_range = 'auto'
  images, settled = dataset.load(resolve(config))
  view = Preprocess.from_config(config_lib.from_dict(config_lib.as_dict(settled)).data)
  stored = np.asarray(Image.open(tmp_path / 'set/a/0.png'))
  alone = tmp_path / 'alone'
  alone.mkdir()
  Image.fromarray(stored).save(alone / 'a.png')
  Image.fromarray((stored / 16).astype(np.uint8)).save(alone / 'b.png')
  source = FolderSource(alone, max_pixels=10**4, unlabelled_ok=True)
  found = dataset.gather(source, view, labelled=False)
  np.testing.assert_array_equal(found.images[0], images.images[0])
  assert [error.path for error in found.unreadable] == ['b.png']
  limits = Limits(max_pixels=10**4, seconds=20.0, memory_mib=2048, workers=1)
  seen, refused = decode_all(alone, view, limits)
  assert np.abs(from_uint8(seen.pixels) - images.images[0, ..., 0]).max() < 0.005
  for reason in (refused.reason, found.unreadable[0].reason):
    assert 'is stored in values up to 255' in reason
  assert (
    Preprocess(16, -600.0, 1500.0, 'crop').obstacle(Slice(stored / 65535, 'grey', None, 255)) == ''
  )


@pytest.mark.parametrize('other', ['another offset', 'shifted by 4 bits', 'all 16 bits'])
def test_pictures_that_are_stored_otherwise_than_the_recorded_range_are_not_judged(
  pictures, tmp_path, other
):
  config = pictures(1024)
  config.data.grey_range = 'auto'
  _, settled = dataset.load(resolve(config))
  view = Preprocess.from_config(settled.data)
  own = np.asarray(Image.open(tmp_path / 'set/a/0.png')).astype(int)
  stored = {
    'another offset': own - 1024 + 32768,
    'shifted by 4 bits': own << 4,
    'all 16 bits': np.linspace(0, 65535, own.size).reshape(own.shape),
  }[other]
  Image.fromarray(stored.astype(np.uint16)).save(tmp_path / 'other.png')
  limits = Limits(max_pixels=10**4, seconds=20.0, memory_mib=2048, workers=1)
  (refused,) = decode_all(tmp_path / 'other.png', view, limits)
  assert refused.image is None
  assert 'brighter than the range' in refused.reason
  (seen,) = decode_all(tmp_path / 'set/a/0.png', view, limits)
  assert seen.remarks == ()


def test_pictures_that_use_little_of_the_recorded_range_are_remarked(pictures, tmp_path):
  config = pictures(1024)
  for path in sorted((tmp_path / 'set/b').glob('*.png')):  # one class at 16 times the values
    stored = np.asarray(Image.open(path)).astype(int)
    Image.fromarray((16 * stored).astype(np.uint16)).save(path)
  config.data.grey_range = 'auto'
  images, _ = dataset.load(resolve(config))
  few = [USES_LITTLE in record.remarks for record in images.records]
  assert few == (images.labels == 0).tolist()


def test_other_depths_in_the_training_set_are_listed(pictures, tmp_path):
  config = pictures(1024)
  Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / 'set/a/8.png')
  config.data.grey_range = 'auto'
  assert [error.path for error in dataset.load(resolve(config))[0].unreadable] == ['a/8.png']


def test_a_set_of_records_keeps_the_depth(pictures, tmp_path):
  config = pictures(1024)
  source = FolderSource(tmp_path / 'set', max_pixels=10**4)
  stored = array_record.TfdsSource(array_record.write_records(source, tmp_path / 'records'))
  assert (stored[0].white, source[0].white) == (65535, 65535)
  assert grey_range.find(stored) == grey_range.find(source)
  config.data.source, config.data.path = 'tfds', str(tmp_path / 'records')
  with pytest.raises(UserError, match='grey_range=auto'):
    dataset.load(resolve(config))


def test_8_bit_pictures_are_taken_as_they_are(tmp_path):
  config = config_lib.defaults()
  config.data.source, config.data.path, config.data.image_size = 'folders', str(tmp_path), 16
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / name / 'x.png')
  images, settled = dataset.load(resolve(config))
  assert (settled.data.grey_range, images.grey_range) == ('type', '1-254/255')
  np.testing.assert_allclose(images.images[0, 0, :3, 0], np.array([0, 1, 2]) / 127.5 - 1, atol=1e-6)


def test_values_in_hu_need_no_range():
  config = config_lib.defaults()
  config.phantom.patients, config.phantom.slices_per_patient = 8, 1
  config.data.grey_range = 'auto'
  images, settled = dataset.load(resolve(config))
  assert (images.grey_range, settled.data.grey_range) == ('', 'type')


@pytest.mark.parametrize('text', ['0-4095/65535', '24-2300/65535', '0.00010-0.06244/1'])
def test_a_range_is_written_as_it_is_read(text):
  assert str(GreyRange.parse(text)) == text
  config = config_lib.defaults()
  config.data.grey_range = text
  config_lib.validate(resolve(config))


@pytest.mark.parametrize('text', ['', 'none', '5-5/255', '9-5/255', '0-300/255', '-1-5/255', '0-9'])
def test_what_is_no_range_is_named(text):
  config = config_lib.defaults()
  config.data.grey_range = text
  with pytest.raises(UserError, match=r'data\.grey_range'):
    config_lib.validate(resolve(config))


def test_a_range_maps_its_ends_and_clips():
  seen = GreyRange(100, 300, 1000)(np.float32([0, 0.1, 0.2, 0.3, 1]))
  np.testing.assert_allclose(seen, [0, 0, 0.5, 1, 1], atol=1e-6)


def test_odd_pictures_are_remarked_one_by_one():
  view = Preprocess(32, -600.0, 1500.0, 'crop')
  ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)

  def remarks(pixels, view=view):
    return view.remarks(Slice(np.asarray(pixels, np.float32), 'grey', None, remarks=('own',)))

  assert remarks(ramp) == ('own',)
  assert remarks(0 * ramp)[1:] == (ONE_VALUE,)
  assert remarks(ramp > 0.5)[1:] == (TWO_VALUES,)
  assert remarks(ramp[:15, :40])[1:] == (view.too_few,)
  (narrow,) = remarks(ramp / 16)[1:]
  assert 'data.grey_range' in narrow
  of_12_bits = dataclasses.replace(view, grey=GreyRange(0, 4095, 65535))
  assert remarks(ramp / 16, of_12_bits) == ('own',)


def test_pictures_that_use_little_of_their_range_are_not_evaluated():
  narrow = [GreyRange(0, 200, 255), GreyRange(0, 4095, 65535)]
  with pytest.raises(UserError, match=r'6\.2% .*; do this'):
    grey_range.refuse_narrow(narrow, 'do this')
  grey_range.refuse_narrow(narrow[:1], 'do this')
