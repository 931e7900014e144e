"""The phantom's series: one patient in any slices, edges by volume, noise as of projections."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from ctfake_jax.data.sources.phantom import chest, chest_drawing, scanner, volume, volume_scanner
from ctfake_jax.data.sources.phantom.solids import Slab

SIZE, FIELD = 64, 360.0


def series(**changes):
  given = {'seed': 0, 'patient': 1, 'slices': 12, 'size': SIZE, 'thickness_mm': 5.0}
  return volume.series(**{**given, **changes}, scanners=('A',))


@pytest.fixture(scope='module')
def one():
  return series()


def test_a_series_lies_side_by_side_and_repeats(one):
  assert one.hu.shape == (12, SIZE, SIZE)
  heights = [plane.height_mm for plane in one.planes]
  np.testing.assert_allclose(np.diff(heights), -5.0)
  np.testing.assert_array_equal(series().hu, one.hu)
  assert (series(seed=1).hu != one.hu).any()


def test_it_shows_air_lung_soft_tissue_and_bone(one):
  middle = one.hu[4:8]
  assert np.median(middle[:, :3]) == pytest.approx(-1000, abs=15)
  assert np.median(middle[one.lung[4:8]]) == pytest.approx(-820, abs=50)
  assert 0.15 < one.lung[6].mean() < 0.4
  assert (middle > 200).mean() > 0.005


def test_neighbouring_slices_show_the_same_patient(one):
  smooth = one.hu.astype(float)
  alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in itertools.pairwise(smooth)]
  assert min(alike) > 0.95


def test_a_chest_hangs_on_seed_and_patient_alone():
  thin, thick = series(thickness_mm=2.0, slices=8), series(thickness_mm=4.0, slices=4)
  for a, b in zip(thin.nodules, thick.nodules, strict=True):
    np.testing.assert_array_equal(a.centre, b.centre)


def test_a_sphere_has_its_volume_whatever_the_pixels():
  """Partial volume: the sum over voxels is that of the solid (4/3 pi r^3)."""
  for size in (32, 64):
    slab = Slab.empty(np.arange(-15, 15) + 0.5, size, 64 / size, -1000.0)
    chest.Ellipsoid((1.3, -2.2, 0.4), (10.0, 10.0, 10.0), 0.0, 0.0).paint(slab)
    found = (slab.hu / 1000 + 1).sum() * slab.pixel_mm**2
    assert found == pytest.approx(4 / 3 * np.pi * 1000, rel=0.02)


def test_a_tube_has_the_area_of_its_section():
  slab = Slab.empty(np.array([0.0]), 64, 0.5, -1000.0)
  ends = np.array([[2.0, 1.0, -20.0]]), np.array([[2.0, 1.0, 20.0]])
  share = slab.tubes(*ends, np.array([[3.0, 3.0]]))
  assert share.sum() * 0.25 == pytest.approx(np.pi * 9, rel=0.02)


def test_branches_carry_the_flow_of_their_ends():
  """Murray 1926: the cube of a radius is the sum of the cubes of what it feeds."""
  rng = np.random.default_rng(0)
  tree = chest_drawing.grow(rng, np.zeros(3), rng.normal(size=(40, 3)), 0.5, 40.0)
  cubes = {tuple(end): (radius[1] / 0.5) ** 3 for end, radius in zip(tree.ends, tree.radii)}
  for node, own in cubes.items():
    fed = sum(
      (radius[1] / 0.5) ** 3
      for start, radius in zip(tree.starts, tree.radii)
      if tuple(start) == node
    )
    assert own == pytest.approx(1 + fed)


def test_nodules_are_where_they_are_said_to_be():
  """In the slice of its middle, against the same chest without it."""
  found = volume.draw_chest(3, 0)
  rng = np.random.default_rng(0)
  place = found.lungs[0].points(rng, 1, 0.5, lambda points: np.ones(len(points), bool))[0]
  nodule = dataclasses.replace(chest.Nodule.draw(rng, place), diameter_mm=20.0, hu=50.0)
  values = []
  for nodules in ((), (nodule,)):
    slab = Slab.empty(place[2:], 128, 3.0, -1000.0)
    dataclasses.replace(found, nodules=nodules).paint(slab)
    values.append(slab.hu[0])
  rows, columns = np.nonzero(values[1] - values[0] > 300)
  grid = slab.columns()
  assert np.hypot(grid[columns] - place[0], grid[rows] - place[1]).max() < 20
  assert len(rows) * 9 == pytest.approx(np.pi * 100, rel=0.6)


@pytest.mark.parametrize('kernel', scanner.KERNELS)
def test_noise_is_that_of_the_projections(kernel):
  """Standard deviation and spectrum in water against `scanner.scan`, dose and kernel the same."""
  count, dose = 16, 6.0
  water = np.zeros((count, 1, 6), np.float32)
  water[:, 0] = 0, 0, 100, 100, 0, 1000
  kernels = np.full(count, list(scanner.KERNELS).index(kernel), np.int32)
  field, doses = np.full(count, FIELD, np.float32), np.full(count, dose, np.float32)
  projected = np.asarray(
    scanner.scan(jax.random.split(jax.random.key(0), count), water, field, doses, kernels, size=64)
  )
  slab = Slab.empty(np.array([0.0]), SIZE, FIELD / SIZE, -1000.0)
  chest.Ellipsoid((0.0, 0.0, 0.0), (100.0, 100.0, 1.0), 0.0, 0.0).paint(slab)
  direct = np.stack([
    volume_scanner.scan(
      slab.hu[0],
      field_of_view_mm=FIELD,
      dose_mgy=dose,
      kernel=kernel,
      thickness_mm=volume_scanner.REFERENCE_MM,
      rng=np.random.default_rng(i),
    )
    for i in range(count)
  ])  # fmt: skip
  middle = np.s_[:, 22:42, 22:42]
  noises = [(images - images.mean(0))[middle] for images in (projected, direct)]
  assert noises[1].std() == pytest.approx(noises[0].std(), rel=0.06)
  window = np.hanning(20)[:, None] * np.hanning(20)
  powers = [(np.abs(np.fft.fft2(noise * window)) ** 2).mean(0) for noise in noises]
  frequency = np.hypot(np.fft.fftfreq(20)[:, None], np.fft.fftfreq(20))
  for low in (0.1, 0.3):
    band = (frequency >= low) & (frequency < low + 0.2)
    assert powers[1][band].mean() == pytest.approx(powers[0][band].mean(), rel=0.15)


def test_a_thicker_slice_has_less_noise():
  flat = np.zeros((SIZE, SIZE), np.float32)
  thin, thick = (
    volume_scanner.scan(
      flat,
      field_of_view_mm=200.0,
      dose_mgy=6.0,
      kernel='soft',
      thickness_mm=mm,
      rng=np.random.default_rng(0),
    ).std()
    for mm in (1.0, 4.0)
  )
  assert thick == pytest.approx(thin / 2, rel=0.01)
