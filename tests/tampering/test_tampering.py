"""Changes of whole series: where they are, what they leave alone, what their files say."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ctfake_jax import config as config_lib
from ctfake_jax.config import names, resolve
from ctfake_jax.data import lungs
from ctfake_jax.data import series as series_lib
from ctfake_jax.data.sources.phantom import volume
from ctfake_jax.tampering import methods, noise, run, sites
from ctfake_jax.tampering.methods import Place
from ctfake_jax.types import UserError

SPACING = (5.0, 3.0, 3.0)
WAYS = [(action, name) for action, ways in methods.METHODS.items() for name in ways]


@pytest.fixture(scope='module')
def scanned():
  return volume.series(seed=0, patient=2, slices=24, size=128, thickness_mm=5.0, scanners=('A',))


@pytest.fixture(scope='module')
def series(scanned):
  return series_lib.of_simulated(scanned, 'phantom')


@pytest.fixture(scope='module')
def lung(series):
  return lungs.lung_mask(series.hu, series.spacing_mm)


def first_site(series, lung, diameter=20.0, seed=0):
  rng = np.random.default_rng(seed)
  return next(sites.free(series.hu, lung, series.spacing_mm, (diameter, diameter), rng))


def test_the_lungs_are_those_of_the_phantom(scanned, lung):
  overlap = 2 * (scanned.lung[::-1] & lung).sum() / (scanned.lung.sum() + lung.sum())
  assert overlap > 0.9


def test_free_places_lie_deep_in_the_lung(series, lung):
  rng = np.random.default_rng(0)
  found = sites.free(series.hu, lung, series.spacing_mm, (10.0, 20.0), rng)
  for _ in range(5):
    site = next(found)
    assert 10 <= site.diameter_mm <= 20
    box, offsets = sites.around(site.centre, site.diameter_mm / 2, series.spacing_mm, lung.shape)
    assert lung[box][np.linalg.norm(offsets, axis=-1) <= site.diameter_mm / 2].all()
  nowhere = np.zeros_like(lung)
  assert not list(sites.free(series.hu, nowhere, series.spacing_mm, (10.0, 20.0), rng))


def test_ways_are_those_of_the_config():
  assert {action: tuple(ways) for action, ways in methods.METHODS.items()} == names.TAMPERING


@pytest.fixture(scope='module')
def with_nodule(series, lung):
  """One in the series, and a place far from it."""
  rng = np.random.default_rng(3)
  free = list(itertools.islice(sites.free(series.hu, lung, series.spacing_mm, (20, 20), rng), 40))
  first = free[0]
  away = max(free, key=lambda s: np.linalg.norm(np.subtract(s.centre, first.centre)))
  place = Place.of(series.hu, lung, series.spacing_mm, first)
  return series.changed(methods.apply(methods.sculpt, place, rng)), away


@pytest.mark.parametrize(('action', 'name'), WAYS)
def test_all_else_stays_bit_by_bit_and_the_seed_repeats(with_nodule, lung, action, name):
  series, site = with_nodule
  place = Place.of(series.hu, lung, series.spacing_mm, site)
  how = methods.METHODS[action][name]
  first, again, other = (
    series.changed(methods.apply(how, place, np.random.default_rng(seed))) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first.stored, again.stored)
  changed = first.stored != series.stored
  assert changed.any()
  # Where there is one nodule to be transplanted, and no noise was lost, chance has no say.
  assert name == 'transplant' or (first.stored != other.stored).any()
  z, y, x = np.nonzero(changed)
  offsets = (np.stack([z, y, x], 1) - np.array(site.centre)) * np.array(series.spacing_mm)
  assert np.linalg.norm(offsets, axis=1).max() <= 0.75 * site.diameter_mm


def test_what_is_put_in_is_seen_and_what_is_taken_out_is_not(series, lung):
  site = first_site(series, lung)
  centre = tuple(round(c) for c in site.centre)
  place = Place.of(series.hu, lung, series.spacing_mm, site)
  put_in = methods.apply(methods.sculpt, place, np.random.default_rng(0))
  assert put_in[centre] > -150
  facts = methods.contrast_to_noise(put_in, place)
  assert facts['contrast_to_noise'] > 3
  assert facts['lesion_hu'] > -150 > facts['lung_hu']
  sphere = np.pi / 6 * site.diameter_mm**3
  assert 0.3 * sphere < facts['volume_mm3'] < 2.5 * sphere
  found = sites.nodules(put_in, lung, series.spacing_mm, (10.0, 30.0))
  gaps = [np.abs((np.array(s.centre) - site.centre) * series.spacing_mm).max() for s in found]
  assert min(gaps) < 5
  taken_out = methods.apply(
    methods.fill,
    Place.of(put_in.astype(np.float32), lung, series.spacing_mm, site),
    np.random.default_rng(0),
  )
  assert taken_out[centre] < -600


def test_a_transplanted_nodule_is_one(with_nodule, lung):
  series, site = with_nodule
  place = Place.of(series.hu, lung, series.spacing_mm, site)
  made = methods.apply(methods.transplant, place, np.random.default_rng(0))
  assert methods.contrast_to_noise(made, place)['contrast_to_noise'] > 3
  bare = Place.of(series.hu, np.zeros_like(lung), series.spacing_mm, site)
  with pytest.raises(UserError, match='no nodule of 14 to 29 mm'):
    methods.transplant(bare, np.random.default_rng(0))


@given(seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_blending_keeps_the_border_and_the_sources_laplacian(seed):
  rng = np.random.default_rng(seed)
  target, source = rng.normal(0, 100, (2, 7, 8, 9))
  inside = np.zeros(target.shape, bool)
  inside[1:-1, 1:-1, 1:-1] = rng.random((5, 6, 7)) < 0.8
  blended = methods._blend(target, source, inside)
  np.testing.assert_array_equal(blended[~inside], target[~inside])
  difference = ndimage.laplace(blended - source)[1:-1, 1:-1, 1:-1]
  np.testing.assert_allclose(difference[inside[1:-1, 1:-1, 1:-1]], 0, atol=0.1)
  same = methods._blend(target, target + 50, inside)
  np.testing.assert_allclose(same, target, atol=0.01)


@given(level=st.floats(2, 60), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_noise_is_drawn_as_strong_as_it_was_measured(level, seed):
  rng = np.random.default_rng(seed)
  tissue = rng.normal(40, level, (6, 96, 96)).astype(np.float32)
  drawn = noise.draw(noise.spectrum(tissue), (6, 64, 64), rng)
  assert drawn.std() == pytest.approx(level, rel=0.15)


def test_a_table_has_voxels_or_millimetres(series, tmp_path):
  plane = series.planes[5]
  x, y, z = plane.place(60, 40)
  tables = (
    'z,y,x,diameter_mm\n5,60,40,12\n',
    f'x_mm,y_mm,z_mm,diameter_mm\n{x},{y},{z},12\n',
  )
  for text in tables:
    (tmp_path / 'sites.csv').write_text(text)
    (site,) = sites.of_table(sites.read(tmp_path / 'sites.csv'), series).values()
    np.testing.assert_allclose(site.centre, (5, 60, 40), atol=1e-6)
    assert site.diameter_mm == 12


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('a,b\n1,2\n', 'needs the columns'),
    ('z,y,x,diameter_mm\n5,60,400,12\n', 'line 2: lies outside'),
    ('z,y,x,diameter_mm\n5,60,4,12\nx,60,4,12\n', 'line 3: a value is no number'),
    ('x_mm,y_mm,z_mm,diameter_mm\n0,0,9999,12\n', 'line 2: lies outside'),
    ('z,y,x,diameter_mm\n5,60,4,-1\n', 'line 2: diameter_mm = -1: must be from 3 to 60'),
    ('z,y,x,diameter_mm\n5,60,nan,9\n', 'line 2: a value is no number'),
    ('z,y,x,diameter_mm\n', 'has no rows'),
  ],
)
def test_a_table_that_cannot_be_is_refused(series, tmp_path, text, message):
  (tmp_path / 'sites.csv').write_text(text)
  with pytest.raises(UserError, match=message):
    sites.refuse_outside(sites.of_table(sites.read(tmp_path / 'sites.csv'), series), series)


def test_a_table_names_series_by_whole_folders(series, tmp_path):
  (tmp_path / 'sites.csv').write_text(
    'series,z,y,x,diameter_mm\nphan,5,60,40,9\nphantom,5,60,40,9\n'
  )
  assert list(sites.of_table(sites.read(tmp_path / 'sites.csv'), series)) == [3]


def test_slices_are_counted_alike_in_the_phantom_and_in_its_files(series, folder):
  """By ascending position, whatever the order of files."""
  heights = [plane.height_mm for plane in series.planes]
  assert heights == sorted(heights)
  (again,) = series_lib.of_dicom(folder / 'originals', 2**20, True, [])
  originals = stored(folder / 'originals' / 'phantom-0-0000')
  np.testing.assert_array_equal(again.stored, originals)


def test_what_is_not_changed_is_listed_and_a_changed_table_is_refused(tmp_path):
  config, table = configured(), tmp_path / 'sites.csv'
  lines = ['series,z,y,x,diameter_mm', 'phantom-0-0000,12,48,30,12', 'nobody,1,1,1,9']
  table.write_text('\n'.join(lines))
  config.tamper.sites_csv, config.phantom.patients = str(table), 2
  manifest = run.run(resolve(config), tmp_path)
  assert [row['series'] for row in manifest['series']] == ['phantom-0-0000']
  assert manifest['unused_lines'] == [3]
  (left,) = manifest['left_out']
  assert left['path'].startswith('phantom-0-0001')
  assert left['reason'] == 'there is no place for this in it'
  table.write_text('\n'.join(lines[:2]))
  with pytest.raises(UserError, match='was made by another table'):
    run.run(resolve(config), tmp_path)


def configured(**keys):
  config = config_lib.defaults()
  config.task = 'tamper'
  config.phantom.patients, config.phantom.slices_per_patient = 1, 24
  config.phantom.size, config.phantom.thickness_mm = 96, 5.0
  config.update_from_flattened_dict({f'tamper.{key}': value for key, value in keys.items()})
  config_lib.validate(resolve(config))
  return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tampered')
  run.run(resolve(configured(count=2)), folder)
  return folder


def stored(folder):
  return np.stack([pydicom.dcmread(p).pixel_array for p in sorted(folder.glob('*.dcm'))])


def test_files_are_the_source_but_for_the_mask(folder):
  manifest = json.loads((folder / 'manifest.json').read_text())
  (listed,) = manifest['series']
  name = listed['series']
  mask = np.load(folder / 'masks' / f'{name}.npz')['mask']
  before, after = (stored(folder / kind / name) for kind in ('originals', 'series'))
  np.testing.assert_array_equal(before != after, mask)
  assert mask.sum() == listed['changed_voxels'] > 0
  assert all(site['counts'] for site in listed['sites'])
  assert len(listed['sites']) == 2


def test_files_say_what_they_are(folder):
  (path, *_) = sorted(folder.glob('series/*/*.dcm'))
  checker = Path(sys.executable).parent / 'dciodvfy'
  done = subprocess.run([str(checker), str(path)], capture_output=True, text=True)
  assert not [line for line in done.stderr.splitlines() if line.startswith('Error')]
  files = [pydicom.dcmread(p, stop_before_pixels=True) for p in folder.glob('series/*/*.dcm')]
  assert {ds.SyntheticData for ds in files} == {'YES'}
  assert {ds.ImageType[0] for ds in files} == {'DERIVED'}
  assert len({ds.SeriesInstanceUID for ds in files}) == 1
  assert 'A lesion was put into the series' in files[0].DerivationDescription
  originals = [pydicom.dcmread(p, stop_before_pixels=True) for p in folder.glob('originals/*/*')]
  assert not {ds.SOPInstanceUID for ds in files} & {ds.SOPInstanceUID for ds in originals}


@pytest.mark.slow
def test_the_same_command_makes_the_same_pixels_and_masks(folder, tmp_path):
  again = run.run(resolve(configured(count=2)), tmp_path)
  first = json.loads((folder / 'manifest.json').read_text())
  for key in ('pixels_sha256', 'mask_sha256', 'source_pixels_sha256'):
    assert again['series'][0][key] == first['series'][0][key]


@pytest.mark.parametrize('suffix', ['nii.gz', 'mha'])
def test_volumes_are_read_as_they_lie(series, tmp_path, suffix):
  """Written by SimpleITK: values, spacing and place of every slice are those of the phantom."""
  image = SimpleITK.GetImageFromArray(series.hu.astype(np.int16))
  step, row, column = series.spacing_mm
  image.SetSpacing((column, row, step))
  image.SetOrigin(series.planes[0].corner_mm)
  SimpleITK.WriteImage(image, str(tmp_path / f'a.{suffix}'))
  float_image = SimpleITK.Cast(image, SimpleITK.sitkFloat32) + 0.5
  SimpleITK.WriteImage(float_image, str(tmp_path / f'b.{suffix}'))
  (tmp_path / f'c.{suffix}').write_bytes(b'junk')
  left_out = []
  (found,) = series_lib.of_volumes(tmp_path, 2**20, left_out)
  np.testing.assert_array_equal(found.hu, series.hu)
  np.testing.assert_allclose(found.spacing_mm, series.spacing_mm, rtol=1e-5)
  for plane, own in zip(found.planes, series.planes, strict=True):
    np.testing.assert_allclose(plane.corner_mm, own.corner_mm, atol=1e-3)
  assert [error.path for error in left_out] == [f'b.{suffix}', f'c.{suffix}']
  assert 'no whole HU' in left_out[0].reason


def test_a_volume_becomes_dicom_with_its_change(series, tmp_path):
  image = SimpleITK.GetImageFromArray(series.hu.astype(np.int16))
  image.SetSpacing(series.spacing_mm[::-1])
  (tmp_path / 'in').mkdir()
  SimpleITK.WriteImage(image, str(tmp_path / 'in' / 'a.mha'))
  config = configured(smallest_mm=15.0)
  config.data.source, config.data.path = 'volumes', str(tmp_path / 'in')
  (tmp_path / 'out').mkdir()
  run.run(resolve(config), tmp_path / 'out')
  mask = np.load(tmp_path / 'out' / 'masks' / '0000.npz')['mask']
  after = stored(tmp_path / 'out' / 'series' / '0000')
  np.testing.assert_array_equal(after != series.hu, mask)
  config.task = 'classifier'
  with pytest.raises(UserError, match='is read by the task tamper alone'):
    config_lib.validate(resolve(config))


@pytest.mark.parametrize(
  ('keys', 'message'),
  [
    ({'action': 'inject', 'method': 'fill'}, r'tamper\.method = .fill.: the action inject has'),
    ({'smallest_mm': 30.0}, r'smallest_mm = 30: is above'),
  ],
)
def test_keys_that_do_not_fit_are_refused(keys, message):
  with pytest.raises(UserError, match=message):
    configured(**keys)


def test_more_places_than_there_are_come_to_an_end(series, lung):
  """Those of 30 mm and more that touch no other."""
  config = configured(count=100, smallest_mm=30.0, largest_mm=35.0)
  found = run._sites(resolve(config), series, series.hu, lung)
  assert 0 < len(found) < 100


def test_small_slopes_leave_the_rest_as_it_was(series):
  """Values in HU are float32, stored ones whole: what is not changed is not computed again."""
  fine = dataclasses.replace(series, slope=series.slope * 1e-4, intercept=series.intercept - 3e4)
  hu = fine.hu
  hu[3, 4, 5] += 1
  changed = fine.changed(hu).stored != fine.stored
  assert changed[3, 4, 5]
  assert changed.sum() == 1


def test_a_header_that_names_pixels_elsewhere_is_refused(series, tmp_path):
  image = SimpleITK.GetImageFromArray(series.hu.astype(np.int16))
  SimpleITK.WriteImage(image, str(tmp_path / 'a.mhd'))
  (tmp_path / 'in').mkdir()
  header = (tmp_path / 'a.mhd').read_text().replace('= a.raw', '= ../a.raw')
  (tmp_path / 'in' / 'b.mhd').write_text(header)
  left_out = []
  assert not list(series_lib.of_volumes(tmp_path / 'in', 2**20, left_out))
  assert left_out[0].reason == 'its pixels lie in another folder'
  assert len(list(series_lib.of_volumes(tmp_path / 'a.mhd', 2**20, []))) == 1


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    ({'PixelSpacing': [1.5, 1.5]}, 'orientation or spacing differs'),
    ({'ImagePositionPatient': None}, 'several slices of its series lie at one place'),
  ],
)
def test_slices_that_do_not_lie_side_by_side_are_no_series(folder, tmp_path, change, reason):
  paths = sorted((folder / 'originals').rglob('*.dcm'))
  for path in paths[:6]:
    shutil.copy(path, tmp_path)
  odd, beside = pydicom.dcmread(paths[5]), pydicom.dcmread(paths[4])
  for keyword, value in change.items():
    setattr(odd, keyword, getattr(beside, keyword) if value is None else value)
  odd.save_as(tmp_path / paths[5].name)
  left_out = []
  assert not list(series_lib.of_dicom(tmp_path, 2**20, True, left_out))
  assert reason in left_out[0].reason


def test_a_series_without_a_place_is_refused(tmp_path):
  with pytest.raises(UserError, match=r'no series was changed; .*there is no place'):
    run.run(resolve(configured(action='remove', smallest_mm=59.0, largest_mm=60.0)), tmp_path)
  assert not (tmp_path / 'series').exists()


def height_of(path):
  return float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])


@pytest.mark.slow
def test_a_real_nodule_is_taken_out(real_data, tmp_path):
  """The one of LIDC-IDRI-0001, about column 316 and row 367, where readers marked it."""
  files = (real_data / 'dicom_hu' / 'lidc_idri_0001').glob('*.dcm')
  (tmp_path / 'in').mkdir()
  for path in sorted(files, key=height_of)[70:110]:
    shutil.copy(path, tmp_path / 'in')
  config = configured(action='remove')
  config.data.source, config.data.path = 'dicom', str(tmp_path / 'in')
  (tmp_path / 'sites.csv').write_text('z,y,x,diameter_mm\n18,367,316,30\n')
  config.tamper.sites_csv = str(tmp_path / 'sites.csv')
  (tmp_path / 'out').mkdir()
  manifest = run.run(resolve(config), tmp_path / 'out')
  (site,) = manifest['series'][0]['sites']
  assert site['lesion_hu'] > -200
  (series,) = series_lib.of_dicom(Path(config.data.path), 2**20, False, [])
  after = stored(tmp_path / 'out' / 'series' / '0000')
  mask = np.load(tmp_path / 'out' / 'masks' / '0000.npz')['mask']
  np.testing.assert_array_equal(after != series.stored, mask)
  core = np.s_[16:21, 360:374, 310:323]
  assert np.median(series.hu[core]) > -200
  assert np.median(after[core] * series.slope[0] + series.intercept[0]) < -700
