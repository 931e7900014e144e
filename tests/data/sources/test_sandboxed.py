"""Decoding untrusted files: junk is named, killers and sleepers cost one row, order is kept."""

import collections
import os
import signal
import time
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from made_dicom import chest_hu, ct, save
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset

from ctfake_jax.data import dataset
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.data.sources import sandboxed
from ctfake_jax.data.sources.image_folder import FolderSource
from ctfake_jax.data.sources.sandboxed import Decoded, Limits, decode_all
from ctfake_jax.types import Record, Slice, UserError

VIEW = Preprocess(16, -600.0, 1500.0, 'crop')
LIMITS = Limits(max_pixels=10_000, seconds=5.0, memory_mib=2048, workers=2)


def picture(path, side=20, value=100):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((side, side), value, np.uint8)).save(path)


@pytest.fixture
def junk(tmp_path):
  picture(tmp_path / 'a.png', value=0)
  (tmp_path / 'b.png').write_bytes((tmp_path / 'a.png').read_bytes()[:40])
  picture(tmp_path / 'bomb.png', side=200)
  (tmp_path / 'c.txt').write_text('not an image')
  (tmp_path / 'empty.dcm').write_bytes(b'')
  (tmp_path / '.hidden.png').write_bytes(b'x')
  (tmp_path / 'link.png').symlink_to('/etc/hostname')
  os.mkfifo(tmp_path / 'pipe.png')
  (tmp_path / 'round.png').symlink_to('round.png')
  (tmp_path / 'same').symlink_to('sub')
  picture(tmp_path / 'sub' / 'z.png', value=255)
  ct = Path(pydicom.data.get_testdata_file('CT_small.dcm'))
  (tmp_path / 'sub' / 'ct.dcm').write_bytes(ct.read_bytes())
  return tmp_path


def test_a_folder_of_junk_gives_a_row_for_every_file(junk):
  limits = Limits(max_pixels=20_000, seconds=20.0, memory_mib=2048, workers=2)
  found = list(decode_all(junk, VIEW, limits))
  by_path = {d.path: d for d in found}
  assert [d.path for d in found] == [
    'a.png', 'b.png', 'bomb.png', 'c.txt', 'empty.dcm', 'link.png', 'pipe.png',
    'round.png', 'same', 'sub/ct.dcm', 'sub/z.png',
  ]  # fmt: skip
  readable = {path for path, d in by_path.items() if d.pixels is not None}
  assert readable == {'a.png', 'sub/ct.dcm', 'sub/z.png'}
  assert by_path['sub/ct.dcm'].unit == 'HU'
  assert by_path['sub/ct.dcm'].native_size == (128, 128)
  assert by_path['sub/ct.dcm'].patient_id
  assert by_path['a.png'].pixels.max() == 0
  assert (by_path['a.png'].native_size, by_path['a.png'].patient_id) == ((20, 20), None)
  assert by_path['sub/z.png'].pixels.min() == 255
  assert 'pixels' in by_path['bomb.png'].reason
  assert 'link' in by_path['link.png'].reason
  assert 'link to a folder' in by_path['same'].reason
  assert 'regular' in by_path['pipe.png'].reason
  assert all(d.reason and str(junk) not in d.reason for d in found if d.pixels is None)


@pytest.mark.parametrize('error', [PermissionError(13, 'Permission denied'), RuntimeError()])
def test_whatever_a_decoder_raises_is_one_row(tmp_path, monkeypatch, error):
  picture(tmp_path / 'a.png')

  def broken(path, max_pixels):
    raise error

  monkeypatch.setattr(sandboxed, '_open', broken)
  (found,) = sandboxed.decode_files(str(tmp_path), ['a.png'], VIEW, 10_000)
  assert found.reason == getattr(error, 'strerror', 'RuntimeError')


def test_a_folder_that_cannot_be_read_is_one_row(tmp_path, monkeypatch):
  picture(tmp_path / 'a.png')
  (tmp_path / 'closed').mkdir()
  scandir = os.scandir

  def closed(path):
    if str(path).endswith('closed'):
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', closed)
  found = list(decode_all(tmp_path, VIEW, LIMITS))
  assert [d.path for d in found] == ['a.png', 'closed']
  assert 'folder that cannot be listed' in found[1].reason


def test_hidden_files_are_counted_and_names_are_shown_in_one_line(tmp_path):
  hidden = collections.Counter()
  picture(tmp_path / '.git' / 'a.png')
  picture(tmp_path / 'a#1.png')
  picture(tmp_path / 'b\nc.png')
  picture(tmp_path / os.fsdecode(b'\xff') / 'd.png')
  (tmp_path / 'desktop.ini').touch()
  found = list(decode_all(tmp_path, VIEW, LIMITS, skipped=hidden))
  assert [d.path for d in found] == ['a#1.png', 'b\\x0ac.png', '\\xff/d.png']
  assert all(d.pixels is not None for d in found)
  assert hidden == {'hidden': 2}


def with_killers(base, paths, view, max_pixels, alone):
  """Stands for a decoder that crashes on one file and hangs on another."""
  del base, view, max_pixels, alone
  for path in paths:
    if 'kill' in path:
      os.kill(os.getpid(), signal.SIGSEGV)
    if 'sleep' in path:
      time.sleep(600)
    if 'greedy' in path:
      np.ones(2**33, np.uint8)
  return [Decoded(path, np.zeros((2, 2), np.float32), 'grey') for path in paths]


class Killer:
  """A source whose second image crashes what decodes it."""

  class_names = ('a',)
  records = tuple(Record(0, None, f'{i}.png') for i in range(4))
  unreadable = ()

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    if index == 1:
      os.kill(os.getpid(), signal.SIGSEGV)
    return Slice(np.full((20, 20), index / 4, np.float32), 'grey', 2.0)


@pytest.mark.slow
def test_an_image_of_a_source_that_kills_its_decoder_is_listed_and_the_rest_are_there():
  limits = Limits(max_pixels=10_000, seconds=6.0, memory_mib=2048, workers=1)
  found = dataset.gather(Killer(), VIEW, labelled=False, limits=limits)
  assert [record.provenance for record in found.records] == ['0.png', '2.png', '3.png']
  assert [(e.path, e.reason) for e in found.unreadable] == [('1.png', 'its decoder crashed')]


def test_a_source_is_seen_alike_in_other_processes_and_here(tmp_path):
  for name, value in (('a/1.png', 50), ('a/2.png', 120), ('b/3.png', 200)):
    picture(tmp_path / name, value=value)
  (tmp_path / 'b' / '4.png').write_bytes(b'none')
  source = FolderSource(tmp_path, max_pixels=10_000)
  here, there = (dataset.gather(source, VIEW, limits=limits) for limits in (None, LIMITS))
  np.testing.assert_array_equal(here.images, there.images)
  assert (here.records, here.unreadable[0].path) == (there.records, there.unreadable[0].path)


@pytest.mark.slow
def test_a_file_that_kills_or_stops_its_decoder_costs_one_row(tmp_path):
  names = ['a', 'b_kill', 'c', 'd_sleep', 'e_greedy', *(f'f{i:02d}' for i in range(20))]
  for name in names:
    (tmp_path / f'{name}.png').touch()
  limits = Limits(max_pixels=100, seconds=6.0, memory_mib=2048, workers=2)
  found = list(decode_all(tmp_path, VIEW, limits, decode=with_killers))
  assert [d.path for d in found] == [f'{name}.png' for name in names]
  reasons = {d.path: d.reason for d in found if d.pixels is None}
  assert reasons == {
    'b_kill.png': 'its decoder crashed',
    'd_sleep.png': 'took too long to decode',
    'e_greedy.png': 'took too much memory to decode',
  }


def test_a_missing_input_is_named(tmp_path):
  with pytest.raises(UserError, match='nowhere'):
    next(decode_all(tmp_path / 'nowhere', VIEW, LIMITS))


def test_workers_need_no_jax():
  source = Path(sandboxed.__file__).read_text()
  assert 'import jax' not in source


def frames_axial_and_coronal(path):
  """A multi-frame object whose second frame is no axial slice."""
  groups = []
  for axes in ([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1]):
    plane, group = Dataset(), Dataset()
    plane.ImageOrientationPatient = axes
    group.PlaneOrientationSequence = [plane]
    groups.append(group)
  ds = ct(np.stack([chest_hu() + 1024] * 2), SOPClassUID=uid.EnhancedCTImageStorage)
  del ds.ImageOrientationPatient
  ds.PerFrameFunctionalGroupsSequence = groups
  save(ds, path)


def test_files_of_a_chunk_have_the_rows_that_each_has_alone(tmp_path):
  frames_axial_and_coronal(tmp_path / 'a.dcm')
  save(ct(chest_hu() + 1024), tmp_path / 'b.dcm')
  save(ct(chest_hu() + 1024, Modality='MR'), tmp_path / 'c.dcm')

  def rows(names):
    found = sandboxed.decode_files(str(tmp_path), names, VIEW, 10_000)
    return [(d.path, d.reason, d.image is None) for d in found]

  together = rows(['a.dcm', 'b.dcm', 'c.dcm'])
  assert together == [row for name in ('a.dcm', 'b.dcm', 'c.dcm') for row in rows([name])]
  assert [path for path, *_ in together] == ['a.dcm#1', 'a.dcm#2', 'b.dcm', 'c.dcm']
  assert 'off axial' in together[1][1]


def test_what_a_series_needs_hangs_on_no_chunk(tmp_path):
  lost = {'RescaleSlope': None, 'RescaleIntercept': None, 'SeriesInstanceUID': '1.2.3'}
  apex = np.where(chest_hu() < -500, 30, chest_hu())  # no air: alone it is not plainly HU
  slices = [chest_hu() + 1024] * 17 + [apex + 1024, chest_hu() + 1024]
  for i, stored in enumerate(slices):
    save(ct(stored, **lost, ImagePositionPatient=[0, 0, i]), tmp_path / f'{i:02d}.dcm')
  names = sorted(path.name for path in tmp_path.iterdir())

  def rows(*chunks):
    found = [d for c in chunks for d in sandboxed.decode_files(str(tmp_path), c, VIEW, 10_000)]
    return [(d.path, d.reason, d.unit, d.remarks) for d in found]

  together = rows(names)
  assert not any(reason for _, reason, *_ in together)
  assert together == rows(names[:16], names[16:17], names[17:18], names[18:])
  (alone,) = sandboxed.decode_files(str(tmp_path), ['17.dcm'], VIEW, 10_000, alone=True)
  assert alone.reason


def test_values_above_12_bits_are_remarked(tmp_path):
  stored = chest_hu() + 1024
  save(ct(stored), tmp_path / 'a.dcm')
  stored[0, 0] = 9000
  save(ct(stored), tmp_path / 'b.dcm')
  usual, metal = sandboxed.decode_files(str(tmp_path), ['a.dcm', 'b.dcm'], VIEW, 10_000)
  assert not any('rescale slope' in remark for remark in usual.remarks)
  assert any('metal, or a wrong rescale slope' in remark for remark in metal.remarks)
