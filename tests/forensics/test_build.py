"""A tiny detector from the phantom: made, loaded, asked; what it leaves and what it refuses."""

import collections
import csv
import json
import shutil

import made_dicom
import numpy as np
import pytest

import ctfake_jax as ct
from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.data import series as series_lib
from ctfake_jax.data.sources import native
from ctfake_jax.data.sources.phantom import volume
from ctfake_jax.data.sources.sandboxed import Limits
from ctfake_jax.detector import verdict
from ctfake_jax.detector.verdict import Verdict
from ctfake_jax.forensics import build, bundle, judge
from ctfake_jax.forensics.examine import Examined
from ctfake_jax.tasks import detect, explain, recalibrate
from ctfake_jax.types import UserError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('forensics')]
SLICES = 4
LIMITS = Limits.from_config(config_lib.Config())


def forensics_config():
  config = config_lib.defaults()
  config.task, config.data.source = 'forensics', 'dicom'
  config.phantom.patients, config.phantom.slices_per_patient = 5, SLICES
  config.phantom.size = 192
  config.forensics.phantoms_to_learn = 2
  config.forensics.width, config.forensics.pairs = 4, 8
  config.forensics.updates = config.forensics.eval_every = 2
  config.forensics.kinds = ('lesion', 'whole')
  return config


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('forensics')
  config = resolve(forensics_config())
  config_lib.validate(config)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, 'TRIED', 1)
    return workdir, build.run(config, workdir)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A phantom's series, of which slices are in no order of name; a picture, junk, a far slice."""
  folder = tmp_path_factory.mktemp('input')
  scanned = volume.series(
    seed=9, patient=1, slices=SLICES, size=192, thickness_mm=5.0, scanners=('A',)
  )
  series_lib.write_simulated(series_lib.of_simulated(scanned, 'phantom'), folder / 'series')
  names = sorted((folder / 'series').iterdir())
  for path, name in zip(names, ('c', 'a', 'd', 'b')):
    path.rename(folder / 'series' / f'{name}.dcm')
  (folder / 'picture.png').write_bytes(b'\x89PNG\r\n\x1a\n')
  (folder / 'junk.dcm').write_bytes(b'\0' * 128 + b'DICM' + b'\xff' * 99)
  made_dicom.save(made_dicom.ct(), folder / '=small.dcm')
  return folder


def rows(path):
  with open(path, newline='') as handle:
    return list(csv.DictReader(handle))


def judged(made, written, workdir, **changes):
  config = config_lib.defaults()
  config.task, config.detector, config.input = 'detect', str(made[0]), str(written)
  config.detection.maps = changes.get('maps', False)
  config.detection.false_alarm_rate = changes.get('rate', 0.0)
  config_lib.validate(resolve(config))
  workdir.mkdir()
  return detect.run(resolve(config), workdir)


@pytest.fixture(scope='module')
def verdicts(made, written, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('verdicts') / 'out'
  return workdir, judged(made, written, workdir, maps=True)


def test_no_patient_is_in_two_parts(made):
  facts = bundle.load(made[0]).facts
  learnt, calibrated = ({s['name'] for s in facts[part]} for part in ('learnt', 'calibrated'))
  assert len(learnt) == 2
  assert len(calibrated) == 3
  assert not learnt & calibrated


def test_the_level_that_holds_is_answered(made):
  level = made[1]['slices']
  assert level['asked'] == 0.01
  assert level['holds'] == pytest.approx(1 / 4)  # three phantoms


def test_the_card_states_levels_kinds_and_sources(made):
  text = (made[0] / 'MODEL_CARD.md').read_text()
  assert '25.0 %' in text
  assert '3 phantoms' in text
  assert 'lesion' in text
  assert '{{' not in text


def test_every_slice_has_a_row_and_every_file_one_object(made, verdicts):
  workdir, results = verdicts
  found = {row['path']: row for row in rows(workdir / 'verdicts.csv')}
  assert list(rows(workdir / 'verdicts.csv')[0]) == list(verdict.COLUMNS)
  assert set(found) == {*(f'series/{n}.dcm' for n in 'abcd'), 'picture.png', 'junk.dcm',
                        "'=small.dcm"}  # fmt: skip
  objects = rows(workdir / 'objects.csv')
  assert sorted(row['path'] for row in objects) == sorted(found)
  by_path = {row['path']: row for row in objects}
  assert by_path['series/a.dcm']['judged'] == 'YES'
  kinds = {row['path']: row['kind'] for row in objects}
  assert (kinds['series/a.dcm'], kinds['picture.png']) == ('dicom', 'picture')
  assert by_path['picture.png']['judged'] == 'NO'
  assert 'detector_folders' in by_path['picture.png']['reason']
  assert by_path['junk.dcm']['reason']
  assert '128 x 128' in by_path["'=small.dcm"]['reason']
  assert results['verdicts']['not_judged'] == 3
  assert results['images'] == 7
  for name in 'abcd':
    row = found[f'series/{name}.dcm']
    assert row['verdict'] in ('fake', 'unsure')  # it says itself that it is synthetic
    assert row['says_synthetic'] == 'YES'
    assert 0 <= int(row['peak_row']) < 192
    assert 0 <= int(row['peak_column']) < 192
    assert float(row['area_mm2']) >= 0
    assert row['series'] == found['series/a.dcm']['series'] != ''
    assert row['detector'] == f'{ct.__version__}/{bundle.load(made[0]).name}'


def test_series_have_one_row_each(verdicts):
  workdir, results = verdicts
  (row,) = rows(workdir / 'series.csv')
  assert list(row) == list(judge.SERIES_COLUMNS)
  assert row['slices'] == str(SLICES)
  assert row['verdict'] in ('fake', 'unsure')
  assert 0 < float(row['p']) <= 1
  assert row['peak_path'].startswith('series/')
  assert sum(results['series'].values()) == 1


def test_maps_are_of_stored_rows_and_columns(verdicts):
  workdir, results = verdicts
  table = {row['path']: row for row in rows(workdir / 'verdicts.csv')}
  for name in 'abcd':
    found = np.load(workdir / 'maps' / 'series' / f'{name}.dcm.npy', allow_pickle=False)
    assert found.dtype == np.float16
    assert found.shape == (192 // results['stride'],) * 2
    row = table[f'series/{name}.dcm']
    peak = (int(row[f'peak_{axis}']) // results['stride'] for axis in ('row', 'column'))
    assert float(found[tuple(peak)]) == pytest.approx(float(row['score']), rel=1e-2, abs=1e-2)
    assert (workdir / 'maps' / 'series' / f'{name}.dcm.png').stat().st_size > 1000


def test_python_gives_what_the_command_writes(made, written, verdicts):
  table = {row['path']: row for row in rows(verdicts[0] / 'verdicts.csv')}
  found = list(ct.detect(written, made[0]))
  assert len(found) == 7
  for each in found:
    row = table[each.path if each.path[0] != '=' else f"'{each.path}"]
    assert each.verdict == row['verdict']
    if each.verdict != 'not_judged':
      assert each.score == pytest.approx(float(row['score']), abs=1e-4)


def test_another_rate_is_another_threshold(made, written, tmp_path):
  results = judged(made, written, tmp_path / 'half', rate=0.5)
  assert results['slices_level']['holds'] == 0.5
  assert results['slices_level']['value'] < made[1]['slices']['value']


def test_one_slice_alone_is_judged(made, written):
  (found,) = ct.detect(written / 'series' / 'a.dcm', made[0])
  assert found.path == 'a.dcm'
  assert np.isfinite(found.score)


def test_slices_are_ordered_by_position_whatever_files_are_called(made, written):
  headers = native.in_order(native.headers(written, LIMITS, collections.Counter()))
  placed = [h for h in headers if h.path.startswith('series/')]
  assert [h.path[-5] for h in placed] == ['c', 'a', 'd', 'b']
  assert np.all(np.diff([h.height_mm for h in placed]) > 0)


def test_a_map_never_leaves_its_folder(tmp_path):
  """Whatever a file is called."""
  squares = np.zeros((4, 4), np.float32)
  each = Examined(
    native.Header('x'),
    np.zeros((16, 16), np.float32),
    squares,
    squares == 0,
    0.0,
    (2, 2),
    np.ones(5),
  )
  judge._save_map(tmp_path / 'maps', each, Verdict('../../x', 'real'), 0.0)
  assert not list(tmp_path.rglob('*'))
  judge._save_map(tmp_path / 'maps', each, Verdict('a/x', 'real'), 0.0)
  assert (tmp_path / 'maps' / 'a' / 'x.npy').exists()


@pytest.mark.parametrize('name', [bundle.NETWORK, bundle.FACTS])
def test_altered_files_are_refused(made, tmp_path, name):
  copy = tmp_path / 'copy'
  shutil.copytree(made[0], copy)
  bundle.load(copy)
  content = bytearray((copy / name).read_bytes())
  content[-200] ^= 1
  (copy / name).write_bytes(content)
  if name == bundle.NETWORK:
    with pytest.raises(UserError, match='altered'):
      bundle.load(copy)
  else:
    content = json.loads((made[0] / name).read_text())
    content['domain'] = None
    (copy / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match='no whole detector'):
      bundle.load(copy)


def test_a_folder_without_a_detector_is_named(tmp_path):
  with pytest.raises(UserError, match='no finished forensic detector'):
    bundle.load(tmp_path)


def test_an_empty_folder_is_refused(made, tmp_path):
  (tmp_path / 'in').mkdir()
  with pytest.raises(UserError, match='no image to judge'):
    judged(made, tmp_path / 'in', tmp_path / 'out')
  assert not list((tmp_path / 'out').glob('*.csv'))


def test_too_few_phantoms_are_refused(tmp_path):
  config = forensics_config()
  config.phantom.patients = 2
  with pytest.raises(UserError, match='more patients'):
    build.run(resolve(config), tmp_path)


def test_a_sites_series_recalibrate(made, written, tmp_path):
  config = config_lib.defaults()
  config.task, config.detector, config.input = 'recalibrate', str(made[0]), str(written)
  with pytest.raises(UserError, match='synthetic'):
    recalibrate.run(resolve(config), tmp_path)
  config.data.synthetic_ok = True
  config_lib.validate(resolve(config))
  workdir = tmp_path / 'site'
  workdir.mkdir()
  results = recalibrate.run(resolve(config), workdir)
  assert results['site']['patients'] == 1
  assert results['slices']['holds'] == 0.5
  old, new = bundle.load(made[0]), bundle.load(workdir)
  assert new.name != old.name
  assert len(new.slices.patients) == 1
  assert not len(new.slices.phantoms)
  found = [each for each in ct.detect(written, workdir) if each.verdict != 'not_judged']
  assert len(found) == SLICES
  assert 'Fitted to a site' in (workdir / 'MODEL_CARD.md').read_text()
  assert (workdir / bundle.NETWORK).read_bytes() == (made[0] / bundle.NETWORK).read_bytes()
  again = tmp_path / 'again'
  again.mkdir()
  config.detector = str(workdir)
  recalibrate.run(resolve(config), again)


def test_other_tasks_name_what_it_is(made, written, tmp_path):
  config = config_lib.defaults()
  config.task, config.detector, config.input = 'explain', str(made[0]), str(written)
  with pytest.raises(UserError, match='detector of edits in CT'):
    explain.run(resolve(config), tmp_path)
