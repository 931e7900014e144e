import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys
import textwrap

import grain
import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ctfake_jax.data.sources import array_record, image_folder
from ctfake_jax.types import UNKNOWN_LABEL, Record, Slice, Source, UnreadableImageError, UserError


class Given:
  """A source of the slices it is given; an exception in a slice's place is raised."""

  class_names = ('normal', 'mass')

  def __init__(self, *slices, records=None, unreadable=()):
    self._slices, self.unreadable = slices, unreadable
    self.records = records or [Record(i % 2, None, f'{i}.png') for i in range(len(slices))]

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    if isinstance(self._slices[index], BaseException):
      raise self._slices[index]
    return self._slices[index]


def hu(*values, spacing_mm=0.75):
  return Slice(np.array([values], np.float32), 'HU', spacing_mm)


def there_and_back(path, *slices):
  return list(array_record.TfdsSource(array_record.write_records(Given(*slices), path)))


def test_values_and_facts_return(tmp_path):
  records = [
    Record(1, 'p7', 'a/0.dcm'),
    Record(0, None, 'b/ü.png'),
    Record(UNKNOWN_LABEL, None, 'c.png'),
  ]
  slices = [hu(-1024, 3071), Slice(np.eye(3, 5, dtype=np.float32), 'grey', None), hu(0.0)]
  listed = UnreadableImageError('d.png', 'broken')
  source = Given(*slices, records=records, unreadable=[listed])
  back = array_record.TfdsSource(array_record.write_records(source, tmp_path))
  assert isinstance(back, Source)
  assert back.class_names == ('normal', 'mass')
  assert back.records[1:] == records[1:]
  assert dataclasses.replace(back.records[0], patient_id='p7') == records[0]
  assert [(e.path, e.reason) for e in back.unreadable] == [('d.png', 'broken')]
  for was, now in zip(slices, back, strict=True):
    assert (now.unit, now.spacing_mm, now.pixels.dtype) == (was.unit, was.spacing_mm, np.float32)
    np.testing.assert_array_equal(now.pixels, was.pixels)
  np.testing.assert_array_equal(back[-2].pixels, slices[1].pixels)
  with pytest.raises(IndexError):
    back[3]


@pytest.mark.parametrize('full', [255, 65535])
def test_every_stored_grey_level_returns_bit_by_bit(tmp_path, full):
  levels = np.arange(full + 1).reshape(2, -1) / np.float32(full)
  (back,) = there_and_back(tmp_path, Slice(levels.astype(np.float32), 'grey', None))
  np.testing.assert_array_equal(back.pixels, levels.astype(np.float32))


def test_every_16_bit_hu_returns_bit_by_bit(tmp_path):
  for name, low in (('signed', -32768), ('shifted', -1024), ('half', 0.5)):
    values = (np.arange(65536).reshape(2, -1) + low).astype(np.float32)
    (back,) = there_and_back(tmp_path / name, Slice(values, 'HU', 1.0))
    np.testing.assert_array_equal(back.pixels, values)


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(
  values=hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=hypothesis.strategies.floats(-2000, 40000, width=32),
  )
)
def test_broken_hu_return_within_half_a_step(values):
  example = array_record._encode(Slice(values, 'HU', None), Record(0, None, 'x'))
  back = array_record._decode(example | {'unit': b'HU'}).pixels
  half_step = np.ptp(values.astype(np.float64)) / 65535 / 2
  assert np.abs(back - values).max() <= half_step * 1.001 + np.spacing(np.abs(values).max())
  assert back.min() == values.min()


def test_broken_grey_returns_within_half_a_step(tmp_path):
  values = np.random.default_rng(0).random((9, 7), np.float32)
  (back,) = there_and_back(tmp_path, Slice(values, 'grey', None))
  assert 0 < np.abs(back.pixels - values).max() <= 0.5 / 65535 + 1e-7


def test_what_cannot_be_read_is_left_out_and_listed(tmp_path):
  slices = [
    hu(1),
    UnreadableImageError('1.png', 'cut short'),
    hu(np.nan, 2),
    Slice(np.full((1, 1), 1.5, np.float32), 'grey', None),
    hu(5),
  ]
  back = array_record.TfdsSource(array_record.write_records(Given(*slices), tmp_path))
  assert [r.provenance for r in back.records] == ['0.png', '4.png']
  assert [e.path for e in back.unreadable] == ['1.png', '2.png', '3.png']
  assert [image.pixels.item() for image in back] == [1, 5]


def test_splits_and_shards_keep_their_order(tmp_path, monkeypatch):
  monkeypatch.setattr(array_record, '_IMAGES_PER_SHARD', 3)
  splits = ['val', 'train', None, 'train', 'test'] * 3
  records = [Record(0, None, f'{i}', split) for i, split in enumerate(splits)]
  slices = [hu(i) for i in range(15)]
  slices[1] = slices[3] = slices[6] = UnreadableImageError('x', 'leaves the first shard empty')
  folder = array_record.write_records(Given(*slices, records=records), tmp_path)
  assert len(list(folder.glob('*.array_record*'))) == 5
  order = {'test': [4, 9, 14], 'train': [8, 11, 13], 'unsplit': [2, 7, 12], 'val': [0, 5, 10]}
  order['all'] = [value for values in order.values() for value in values]
  for split, values in order.items():
    source = array_record.TfdsSource(tmp_path, split)
    assert [image.pixels.item() for image in source] == values
    assert [r.provenance for r in source.records] == [str(v) for v in values]
    assert all(r.split == splits[int(r.provenance)] for r in source.records)
  with pytest.raises(UserError, match="no split 'dev'; have: all, "):
    array_record.TfdsSource(tmp_path, 'dev')


def test_grain_reads_it(tmp_path):
  source = array_record.TfdsSource(
    array_record.write_records(Given(*(hu(i) for i in range(10))), tmp_path)
  )
  batches = (
    grain.MapDataset.source(source)
    .shuffle(seed=0)
    .map(lambda s: s.pixels)
    .batch(4)
    .to_iter_dataset()
  )
  assert sorted(np.concatenate(list(batches)).ravel()) == list(range(10))
  loader = grain.DataLoader(
    data_source=source,
    sampler=grain.samplers.SequentialSampler(num_records=len(source)),
    worker_count=0,
  )
  assert [image.pixels.item() for image in loader] == list(range(10))


def test_tfds_opens_it_as_any_other_set(tmp_path):
  folder = array_record.write_records(Given(hu(-1000, 400), hu(7)), tmp_path)
  for builder in (
    tfds.builder_from_directory(folder),
    tfds.builder('ct_slices', data_dir=tmp_path),
  ):
    example = builder.as_data_source(split='unsplit')[0]
    assert (example['label'], example['unit'], example['provenance']) == (0, b'HU', b'0.png')
    value = example['pixels'] / example['steps_per_unit'] + example['offset']
    np.testing.assert_array_equal(value, [[-1000, 400]])
    assert builder.info.metadata['class_names'] == ['normal', 'mass']
    assert builder.info.splits['unsplit'].num_examples == 2


def test_folders_there_and_back(tmp_path):
  values = np.arange(256, dtype=np.uint16).reshape(16, 16)
  for name in ('a', 'b'):
    (tmp_path / 'in' / name).mkdir(parents=True)
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / 'in' / name / '8.png')
    Image.fromarray(values * 200).save(tmp_path / 'in' / name / '16.png')
  (tmp_path / 'in/b/broken.png').write_bytes(b'')
  source = image_folder.FolderSource(tmp_path / 'in', max_pixels=1000)
  back = array_record.TfdsSource(array_record.write_records(source, tmp_path / 'out'))
  assert back.records == source.records[:4]
  assert [e.path for e in back.unreadable] == ['b/broken.png']
  for i, image in enumerate(back):
    np.testing.assert_array_equal(image.pixels, source[i].pixels)


def test_without_tensorflow(tmp_path):
  code = """
    import importlib.util, pathlib, sys

    class Blocker:  # 'installed', but whoever imports it fails
      def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'tensorflow':
          return importlib.util.spec_from_loader(name, self)
      def create_module(self, spec):
        raise ImportError('tensorflow must not be imported')
      def exec_module(self, module):
        pass

    sys.meta_path.insert(0, Blocker())
    import numpy as np
    from ctfake_jax import types
    from ctfake_jax.data.sources import array_record

    class One:
      class_names, records, unreadable = ('a',), [types.Record(0, None, 'x')], ()
      def __len__(self):
        return 1
      def __getitem__(self, index):
        return types.Slice(np.ones((2, 3), np.float32), 'HU', 1.0)

    folder = array_record.write_records(One(), pathlib.Path(sys.argv[1]))
    assert (array_record.TfdsSource(folder)[0].pixels == 1).all()
    assert 'tensorflow' not in sys.modules
  """
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', textwrap.dedent(code), tmp_path],
    cwd=pathlib.Path(array_record.__file__).parents[3],
    env=os.environ | {'http_proxy': 'http://127.0.0.1:9', 'https_proxy': 'http://127.0.0.1:9'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert not done.stdout


# What a user gets wrong.


def test_interrupted_write_does_not_look_whole(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    array_record.write_records(Given(hu(1), KeyboardInterrupt()), tmp_path)
  with pytest.raises(UserError, match='holds no whole set'):
    array_record.TfdsSource(tmp_path)
  array_record.write_records(Given(hu(1), hu(2)), tmp_path)
  assert len(array_record.TfdsSource(tmp_path)) == 2


def test_killed_write_does_not_look_whole(tmp_path):
  code = """
    import os, pathlib, sys
    import numpy as np
    from ctfake_jax import types
    from ctfake_jax.data.sources import array_record

    class Fatal:
      class_names, records, unreadable = ('a',), [types.Record(0, None, 'x')] * 3, ()
      def __len__(self):
        return 3
      def __getitem__(self, index):
        if index == 2:
          os._exit(9)
        return types.Slice(np.ones((2, 3), np.float32), 'HU', 1.0)

    array_record.write_records(Fatal(), pathlib.Path(sys.argv[1]))
  """
  home = pathlib.Path(array_record.__file__).parents[3]
  command = [sys.executable, '-c', textwrap.dedent(code), tmp_path]
  assert subprocess.run(command, cwd=home, capture_output=True, check=False).returncode == 9
  (left,) = (tmp_path / 'ct_slices').iterdir()
  for directory in (tmp_path, left):
    with pytest.raises(UserError, match='holds no whole set'):
      array_record.TfdsSource(directory)


def test_writing_where_a_set_is(tmp_path):
  array_record.write_records(Given(hu(1)), tmp_path)
  with pytest.raises(UserError, match='holds a ct_slices set already'):
    array_record.write_records(Given(hu(2)), tmp_path)
  assert array_record.TfdsSource(tmp_path)[0].pixels == 1


def test_writing_into_a_file(tmp_path):
  (tmp_path / 'x').touch()
  with pytest.raises(UserError, match='is a file'):
    array_record.write_records(Given(hu(1)), tmp_path / 'x')


def test_writing_nothing(tmp_path):
  with pytest.raises(UserError, match='the source has no image'):
    array_record.write_records(Given(), tmp_path)
  with pytest.raises(UserError, match=r'no image can be read.*cut short'):
    array_record.write_records(Given(UnreadableImageError('0.png', 'cut short')), tmp_path)
  with pytest.raises(UserError, match='holds no whole set'):
    array_record.TfdsSource(tmp_path)


@pytest.mark.parametrize(
  'name',
  [
    'dataset_info.json',
    'metadata.json',
    'features.json',
    'ct_slices-unsplit.array_record-00000-of-00001',
  ],
)
@pytest.mark.parametrize('kept', [None, 0, 0.5])
def test_damaged_set(tmp_path, name, kept):
  file = array_record.write_records(Given(hu(1), hu(2)), tmp_path) / name
  whole = file.read_bytes()
  file.unlink()
  if kept is not None:
    file.write_bytes(whole[: int(kept * len(whole))])
  if name == 'features.json':  # what TFDS reads, not we: our builder knows its features
    assert len(array_record.TfdsSource(tmp_path)) == 2
  else:
    with pytest.raises(UserError, match=r'damaged|missing'):
      array_record.TfdsSource(tmp_path)


@pytest.mark.parametrize(
  'text',
  ['[]', 'null', '{"records": {"unsplit": [1]}}', '{"records": {"unsplit": [[0, null, "x"]]}}'],
)
def test_damaged_metadata(tmp_path, text):
  (array_record.write_records(Given(hu(1)), tmp_path) / 'metadata.json').write_text(text)
  with pytest.raises(UserError, match='damaged'):
    array_record.TfdsSource(tmp_path)


def test_damaged_record(tmp_path):
  noise = np.random.default_rng(0).random((2, 64, 64), np.float32)
  slices = [Slice(image, 'grey', None) for image in noise]
  folder = array_record.write_records(Given(*slices), tmp_path)
  (file,) = folder.glob('*.array_record*')
  stored = bytearray(file.read_bytes())
  filled = np.flatnonzero(np.frombuffer(stored, np.uint8))
  stored[filled[len(filled) // 2]] ^= 1
  file.write_bytes(stored)
  source = array_record.TfdsSource(tmp_path)
  with pytest.raises(UnreadableImageError, match='its record is damaged'):
    list(source)


def test_patients_stay_apart_under_names_that_nobody_can_check(tmp_path):
  records = [Record(0, name, f'{i}.dcm') for i, name in enumerate(('p7', 'p7', 'p8', None))]
  source = Given(*(hu(i) for i in range(4)), records=records)
  folders = [array_record.write_records(source, tmp_path / name) for name in 'ab']
  sets = [[r.patient_id for r in array_record.TfdsSource(folder).records] for folder in folders]
  for first, again, other, unknown in sets:
    assert first == again != other
    assert unknown is None
    assert first not in ('p7', hashlib.sha256(b'p7').hexdigest()[:12])
  assert sets[0][0] != sets[1][0]
  for file in tmp_path.rglob('*'):
    assert file.is_dir() or b'p7' not in file.read_bytes()


def test_builder_without_a_source(tmp_path):
  with pytest.raises(UserError, match='nothing to write'):
    array_record.CtSlices(data_dir=tmp_path).download_and_prepare()


def test_real_set(tmp_path):
  if not os.environ.get('CTFAKE_DATA'):
    pytest.skip('CTFAKE_DATA is not set')
  root = pathlib.Path(os.environ['CTFAKE_DATA'], 'chest_ctscan')
  source = image_folder.FolderSource(
    root, classes=('normal', 'large.cell.carcinoma'), max_pixels=10**6
  )
  back = array_record.TfdsSource(array_record.write_records(source, tmp_path))
  assert [r.label for r in back.records].count(0) == 66
  assert [r.label for r in back.records].count(1) == 186
  for index in range(0, len(back), 50):
    np.testing.assert_array_equal(back[index].pixels, source[index].pixels)
