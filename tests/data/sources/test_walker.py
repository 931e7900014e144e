"""One walk for pictures and DICOM: kinds, names, links, parts, and DICOM without a preamble."""

import inspect
import os
import pathlib
import sys
import unicodedata

import numpy as np
import pydicom
import pytest
from conftest import make_images
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.data import file_facts
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.data.sources import layout, walker
from ctfake_jax.data.sources.dicom import header as dicom_header
from ctfake_jax.data.sources.dicom.source import DicomSource
from ctfake_jax.data.sources.image_folder import FolderSource
from ctfake_jax.detector import dataset as detector_dataset
from ctfake_jax.types import UserError

LIMIT = 2**20
CT_SMALL = pathlib.Path(get_testdata_file('CT_small.dcm'))


def picture(path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(path, format='PNG')


def ct(path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  ds = pydicom.dcmread(CT_SMALL)
  ds.PatientID = path.name.encode('ascii', 'replace').decode()
  ds.SeriesInstanceUID = uid.generate_uid()
  ds.save_as(path)


def bare(path: pathlib.Path, syntax=None, implicit: bool = True, big: bool = False) -> None:
  """CT_small as it was written before PS3.10: no preamble, and file meta only with `syntax`."""
  ds = pydicom.dcmread(CT_SMALL)
  plain = pydicom.Dataset()
  plain.update({element.tag: element for element in ds})
  plain.file_meta = pydicom.dataset.FileMetaDataset()
  if syntax:
    plain.file_meta.TransferSyntaxUID = syntax
  if big:
    plain.PixelData = np.frombuffer(ds.PixelData, '<i2').astype('>i2').tobytes()
  pydicom.dcmwrite(path, plain, implicit_vr=implicit, little_endian=not big)


def dicom(root, **options) -> DicomSource:
  return DicomSource(root, labels_csv=None, max_pixels=LIMIT, **options)


@pytest.fixture(params=['pictures', 'dicom'])
def source_of(request):
  """Writes images of one kind at relative paths below a root and opens them."""

  def make(root, *names, **options):
    for name in names:
      (picture if request.param == 'pictures' else ct)(root / name)
    if request.param == 'pictures':
      return FolderSource(root, max_pixels=LIMIT, **options)
    return dicom(root, **options)

  make.suffix = '.png' if request.param == 'pictures' else '.dcm'
  return make


# Entries.


def test_every_entry_has_its_kind_in_order_of_name(tmp_path):
  picture(tmp_path / 'b/x.PNG')
  ct(tmp_path / 'b/1.2.840.10008')
  for name in ('.git', '__MACOSX', '$RECYCLE.BIN', 'a'):
    (tmp_path / name).mkdir()
  for name in ('Thumbs.db', 'desktop.ini', '~$notes.docx', 'a.webp', 'b/1.2.3', 'b/x.nii.gz'):
    (tmp_path / name).write_text('x')
  os.mkfifo(tmp_path / 'pipe.png')
  found = [(e.path, e.kind) for e in walker.walk(tmp_path)]
  assert found == [
    ('$RECYCLE.BIN', 'hidden'), ('.git', 'hidden'), ('Thumbs.db', 'hidden'),
    ('__MACOSX', 'hidden'), ('a', 'folder'), ('a.webp', 'other'), ('b', 'folder'),
    ('b/1.2.3', 'other'), ('b/1.2.840.10008', 'dicom'), ('b/x.PNG', 'picture'),
    ('b/x.nii.gz', 'other'), ('desktop.ini', 'hidden'), ('pipe.png', 'refused'),
    ('~$notes.docx', 'hidden'),
  ]  # fmt: skip
  others = walker.count(e for e in walker.walk(tmp_path) if e.kind in ('other', 'hidden'))
  assert others == {'hidden': 7 - 1, '.webp': 1, '.gz': 1, 'without suffix': 1}
  assert walker.in_words({'.gz': 3, 'hidden': 4, '.webp': 12, 'without suffix': 2}) == (
    'not read: 12 .webp, 3 .gz, 2 without suffix; hidden: 4'
  )
  assert (walker.in_words({}), walker.in_words({'hidden': 1})) == ('', 'hidden: 1')


def test_links(tmp_path):
  root = tmp_path / 'root'
  picture(root / 'a/x.png')
  picture(tmp_path / 'outside.png')
  for name, target in {
    'nowhere': 'nothing',
    'loop': 'loop',
    'one': 'two',
    'two': 'one',
    'round': '.',
    'out.png': '../outside.png',
    'taken.png': 'a/x.png',
  }.items():
    (root / name).symlink_to(target)
  found = {e.path: e for e in walker.walk(root)}
  assert found['taken.png'].kind == 'picture'
  reasons = {path: e.reason for path, e in found.items() if e.kind == 'refused'}
  assert set(reasons) == {'nowhere', 'loop', 'one', 'two', 'round', 'out.png'}
  assert 'leads nowhere' in reasons['nowhere']
  assert 'Too many levels of symbolic links' in reasons['loop']
  assert 'link to a folder' in reasons['round']
  assert 'out of the folder' in reasons['out.png']


def test_a_tree_deeper_than_pythons_stack(tmp_path):
  (tmp_path / '/'.join('d' * 150)).mkdir(parents=True)
  limit = sys.getrecursionlimit()
  sys.setrecursionlimit(len(inspect.stack(0)) + 60)
  try:
    depth = sum(e.kind == 'folder' for e in walker.walk(tmp_path))
  finally:
    sys.setrecursionlimit(limit)
  assert depth == 150


def test_what_may_not_be_read_is_refused(tmp_path, monkeypatch):
  (tmp_path / 'IM1').touch()

  def refuse(path):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(walker, 'starts_as_dicom', refuse)
  (entry,) = walker.walk(tmp_path)
  assert (entry.kind, entry.reason) == ('refused', 'cannot be read (Permission denied)')


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    (b'a.png', 'a.png'),
    ('ü é.png'.encode(), 'ü é.png'),
    (b'\xff.png', '\\xff.png'),
    (b'a\nb\r\x1b[31m.png', 'a\\x0ab\\x0d\\x1b[31m.png'),
    ('\u2028\u202egnp.png'.encode(), '\\u2028\\u202egnp.png'),
  ],
)
def test_names_are_shown_in_one_line_that_any_encoder_takes(tmp_path, name, text):
  picture(tmp_path / os.fsdecode(name))
  (entry,) = walker.walk(tmp_path)
  assert walker.shown(entry.path) == text
  walker.shown(entry.path).encode()
  (record,) = FolderSource(tmp_path, max_pixels=LIMIT, unlabelled_ok=True).records
  assert (record.provenance, record.path) == (text, os.fsdecode(name))
  assert len(file_facts.of_files(tmp_path, [record.path])) == 1


# Parts and classes.


@pytest.mark.parametrize(
  ('names', 'part'),
  [
    (
      'train Train TRAIN training train_data Training_set training-images trainset 01_train',
      'train',
    ),
    ('trainset 01_train train2017 TrainData dataset_train Training.set', 'train'),
    ('val valid validation dev Val_images validset dev-set VALIDATION', 'val'),
    ('test Test01 testing test_set TestData test-images CT_test', 'test'),
    ('latest contest strain pretrained covid eval tests_done value device protest', None),
  ],
)
def test_spellings_of_parts(names, part):
  assert {name: layout.part_of(name) for name in names.split()} == dict.fromkeys(
    names.split(), part
  )
  assert layout.part_of('Training set') == 'train'


def test_parts_are_read_from_either_kind(tmp_path, source_of):
  names = [f'{p}/{c}/{i}' for p in ('Training set', 'test_set') for c in 'ab' for i in range(2)]
  source = source_of(tmp_path, *(name + source_of.suffix for name in names))
  assert source.class_names == ('a', 'b')
  assert {r.provenance.split('/')[0]: r.split for r in source.records} == {
    'Training set': 'train',
    'test_set': 'test',
  }
  assert {r.provenance.split('/')[1]: r.label for r in source.records} == {'a': 0, 'b': 1}


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    (['train/x', 'test/x'], 'hold no class folders'),
    (['train/a/x', 'covid/x'], 'lie beside others'),
    (['train_fold1/a/x', 'test_fold1/a/x'], 'look like parts'),
    (['images/x', 'annotations/x'], r'looks like masks.*data\.classes'),
    (['a/images/x', 'a/masks/x', 'b/x'], 'looks like masks'),
    (['a/x', 'a/lung_seg/x', 'b/x'], 'looks like masks.*move the masks out'),
    (['a/x', 'a/x_mask', 'b/x'], r"'a/x_mask\S*' looks like a mask of 'a/x"),
    (['a/1', 'b/2', 'b/2-Segmentation'], 'looks like a mask of'),
    (['fold1/a/x', 'fold2/a/x'], 'look like folds.*split.folds'),
    (['Fold A/x', 'Fold B/x'], 'look like folds.*split.folds'),
    (['imagesTr/x', 'imagesTs/x'], 'look like parts'),
    (['tr/a/x', 'te/a/x'], 'look like parts'),
    (['trains/a/x', 'tests/a/x'], 'look like parts'),
    (['Trainingsdaten/a/x', 'Testdaten/a/x'], 'look like parts'),
    (['a/trn/x', 'a/tst/x', 'b/trn/x', 'b/tst/x'], 'look like parts'),
    (['a/train/x', 'a/holdout/x', 'b/train/x'], 'look like parts'),
    (['a/train_final/x', 'a/test_final/x', 'b/train_final/x'], 'look like parts'),
    (['a/val/x', 'a/test/x', 'b/val/x', 'b/test/x'], 'look like parts'),
    (['a/fold1/x', 'a/fold2/x', 'b/fold1/x'], 'look like parts'),
    (['images/x', 'msk/x'], 'looks like masks'),
    (['images/x', 'infection/x'], 'looks like masks'),
    (['original/x', 'labels/x'], 'looks like masks'),
    (['JPEGImages/x', 'labels/x'], 'looks like masks'),
    (['frames/x', 'labels/x'], 'looks like masks'),
    (['a/x', 'a/lungmask/x', 'b/x'], 'looks like masks'),
    (['a/1_image', 'a/1_mask', 'b/2'], 'looks like a mask of'),
    (['a/img_1', 'a/mask_1', 'b/2'], 'looks like a mask of'),
    (['a/1', 'a/mask_1', 'b/2'], 'looks like a mask of'),
    (['a/1', 'a/1_gt_mask', 'b/2'], 'looks like a mask of'),
  ],
)
def test_what_looks_like_parts_or_masks_and_cannot_be_is_refused(
  tmp_path, source_of, names, message
):
  with pytest.raises(UserError, match=message):
    source_of(tmp_path, *(name + source_of.suffix for name in names))
  everything = source_of(tmp_path, unlabelled_ok=True)
  assert (len(everything), everything.class_names) == (len(names), ())


def test_named_classes_are_taken_in_their_order(tmp_path, source_of):
  names = [name + source_of.suffix for name in ('train/x', 'masks/x', 'c/x')]
  source = source_of(tmp_path, *names, classes=('masks', 'train'))
  assert source.class_names == ('masks', 'train')
  assert sorted((r.label, r.split) for r in source.records) == [(0, None), (1, None)]
  with pytest.raises(UserError, match="no class folder named 'd'"):
    source_of(tmp_path, classes=('d', 'c'))


def test_masks_are_not_taken_for_somebodys_fakes(tmp_path):
  for name in ('images/a/0.png', 'masks/a/0.png'):  # as `generate` leaves edits
    picture(tmp_path / name)
  config = config_lib.defaults()
  config.detection.fakes_folder = str(tmp_path)
  source = FolderSource(tmp_path / 'images', max_pixels=LIMIT, unlabelled_ok=True)
  view = Preprocess.from_config(resolve(config).data)
  reals = detector_dataset.SplitImages(make_images(4), np.arange(4), {}, None, source, view)
  with pytest.raises(UserError, match="'masks' looks like masks"):
    detector_dataset.external_fakes(resolve(config), reals)


def test_an_empty_class_folder_is_named(tmp_path, source_of):
  (tmp_path / 'c').mkdir()
  (tmp_path / 'c/notes.txt').touch()
  with pytest.raises(UserError, match=r'^c: this class folder holds no image'):
    source_of(tmp_path, 'a/x' + source_of.suffix, 'b/x' + source_of.suffix)


def test_a_stray_image_is_named(tmp_path, source_of):
  names = [name + source_of.suffix for name in ('a/x', 'b/x', 'stray')]
  source = source_of(tmp_path, *names)
  assert len(source) == 2
  assert [str(e) for e in source.unreadable] == [f'{names[2]}: {layout.STRAY}']


def test_parts_of_dicom_with_a_table_of_labels(tmp_path):
  for name in ('train/1', 'train/2', 'test/3', 'test/4'):
    ct(tmp_path / 'data' / name)
  table = tmp_path / 'labels.csv'
  table.write_text('path,label\ntrain/1,a\ntrain/2,b\ntest/3,a\ntest/4,b\n')
  source = DicomSource(tmp_path / 'data', labels_csv=table, max_pixels=LIMIT)
  assert [(r.label, r.split) for r in source.records] == [
    (0, 'test'), (1, 'test'), (0, 'train'), (1, 'train'),
  ]  # fmt: skip
  ct(tmp_path / 'data/p1/5')
  table.write_text('path,label\ntrain,a\ntest,b\np1,a\n')
  with pytest.raises(UserError, match='lie beside 1 others'):
    DicomSource(tmp_path / 'data', labels_csv=table, max_pixels=LIMIT)


@pytest.mark.parametrize(
  'folders', [('train', 'test_set_v2'), ('trainval', 'test'), ('train_final', 'test_final')]
)
def test_folders_that_seem_to_be_parts_of_dicom_with_a_table_are_refused(tmp_path, folders):
  table = tmp_path / 'labels.csv'
  table.write_text('path,label\n' + ''.join(f'{f}/1,a\n{f}/2,b\n' for f in folders))
  for folder in folders:
    for name in '12':
      ct(tmp_path / 'data' / folder / name)
  with pytest.raises(UserError, match=r'look like parts|lie beside'):
    DicomSource(tmp_path / 'data', labels_csv=table, max_pixels=LIMIT)


# DICOM of all sorts.


@pytest.mark.parametrize('name', ['IM0001', 'IM0001.dcm', 'a.b.c'])
@pytest.mark.parametrize(
  'options',
  [
    {},
    {'implicit': False},
    {'implicit': False, 'syntax': uid.ExplicitVRLittleEndian},
    {'implicit': False, 'big': True},
  ],
)
def test_dicom_without_preamble(tmp_path, name, options):
  bare(tmp_path / name, **options)
  assert not pydicom.misc.is_dicom(tmp_path / name)
  (image,) = dicom(tmp_path)
  np.testing.assert_array_equal(image.pixels, dicom(CT_SMALL)[0].pixels)
  facts = file_facts.of_files(tmp_path, [name])
  assert facts[0, :2].tolist() == [128, 128]


def test_what_cannot_be_forced_is_listed(tmp_path):
  ct(tmp_path / 'good')
  bare(tmp_path / 'cut')
  (tmp_path / 'cut').write_bytes((tmp_path / 'cut').read_bytes()[:300])
  (tmp_path / 'empty').touch()
  (tmp_path / 'zeros').write_bytes(bytes(100))
  (tmp_path / 'junk.dcm').write_bytes(b'\x08\0\x05\0CS' + bytes(range(256)))
  ds = pydicom.dcmread(get_testdata_file('CT_small.dcm'))
  ds.compress(uid.RLELossless)
  plain = pydicom.Dataset()
  plain.update({element.tag: element for element in ds})
  pydicom.dcmwrite(tmp_path / 'rle', plain, implicit_vr=False, little_endian=True)
  (tmp_path / 'IM1.dcm.gz').write_bytes(b'\x1f\x8b')
  (tmp_path / 'LICENSE').write_text('text')
  source = dicom(tmp_path)
  reasons = {error.path: error.reason for error in source.unreadable}
  for i in range(len(source)):
    try:
      source[i]
    except UserError as error:
      reasons[error.path] = error.reason
  assert set(reasons) == {'cut', 'empty', 'zeros', 'junk.dcm', 'rle'}
  assert 'neither DICM prefix nor Transfer Syntax' in reasons['rle']
  assert source.skipped == {'.gz': 1, 'without suffix': 1}


def test_deflated_without_preamble_is_not_inflated(tmp_path):
  ds = pydicom.dcmread(CT_SMALL)
  ds.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
  ds.save_as(tmp_path / 'whole', implicit_vr=False, little_endian=True)
  (tmp_path / 'bare').write_bytes((tmp_path / 'whole').read_bytes()[132:])
  (error,) = dicom(tmp_path).unreadable
  assert 'deflated and without a DICM prefix' in error.reason


def test_number_signs_and_frames_keep_path_and_display_apart(tmp_path):
  ct(tmp_path / 'a#2')
  ds = pydicom.dcmread(CT_SMALL)
  ds.NumberOfFrames, ds.PixelData = 2, ds.PixelData * 2
  ds.save_as(tmp_path / 'b')
  source = dicom(tmp_path)
  assert [(r.provenance, r.path) for r in source.records] == [
    ('a#2', 'a#2'), ('b#1', 'b'), ('b#2', 'b'),
  ]  # fmt: skip
  facts = file_facts.of_files(tmp_path, [r.path for r in source.records])
  assert facts.shape == (3, len(file_facts.NAMES))


def test_pictures_beside_dicom_are_counted(tmp_path):
  ct(tmp_path / 'a')
  (tmp_path / 'b.png').write_bytes((tmp_path / 'a').read_bytes())
  picture(tmp_path / 'c.png')
  source = dicom(tmp_path)
  assert [record.path for record in source.records] == ['a', 'b.png']
  assert source.skipped == {'.png': 1}


def test_a_bare_file_is_read_by_pydicoms_rules_alone(tmp_path):
  (tmp_path / 'x.dcm').write_bytes(bytes(600))
  with pytest.raises(pydicom.errors.InvalidDicomError):
    dicom_header.read(tmp_path / 'x.dcm', LIMIT)


# Tables of labels.


def test_accents_stored_in_two_ways_are_the_same_name(tmp_path, capsys):
  decomposed = unicodedata.normalize('NFD', 'é')
  ct(tmp_path / 'data' / decomposed)
  ct(tmp_path / 'data/b')
  table = tmp_path / 'labels.csv'
  table.write_text('path,label\né,x\nb,y\n', encoding='utf-8')
  source = DicomSource(tmp_path / 'data', labels_csv=table, max_pixels=LIMIT)
  assert {r.path: source.class_names[r.label] for r in source.records} == {
    decomposed: 'x',
    'b': 'y',
  }
  assert '1 rows of the CSV of labels store accents otherwise' in capsys.readouterr().out


def test_twins_in_unicode_are_told_apart(tmp_path, capsys):
  composed, decomposed = 'é', unicodedata.normalize('NFD', 'é')
  table = tmp_path / 'labels.csv'
  table.write_text(f'path,label\n{composed},x\n{decomposed},y\n', encoding='utf-8')
  for name in (composed, decomposed):
    ct(tmp_path / 'data' / name)
  source = DicomSource(tmp_path / 'data', labels_csv=table, max_pixels=LIMIT)
  labels = {r.path: source.class_names[r.label] for r in source.records}
  assert labels == {composed: 'x', decomposed: 'y'}
  assert not capsys.readouterr().out
  (tmp_path / 'data' / composed).unlink()
  with pytest.raises(UserError, match='rows of the CSV of labels match no file'):
    DicomSource(tmp_path / 'data', labels_csv=table, max_pixels=LIMIT)


def test_class_folders_are_found_however_accents_are_stored(tmp_path, source_of):
  decomposed = unicodedata.normalize('NFD', 'é')
  names = [f'{name}/x{source_of.suffix}' for name in (decomposed, 'b', 'c')]
  source = source_of(tmp_path, *names, classes=('é', 'b'))
  assert (source.class_names, len(source)) == (('é', 'b'), 2)
