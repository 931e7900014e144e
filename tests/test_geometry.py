"""Where pixels lie: closed forms, and images whose value is their place."""

import dataclasses

import numpy as np
import pytest
from made_dicom import ct, save

from ctfake_jax.data.preprocess import REGIONS, Preprocess
from ctfake_jax.data.sources.dicom.source import DicomSource
from ctfake_jax.types import AS_STORED, DisplayOrientation, Plane, centred, tilt_degrees

TURNS = [DisplayOrientation(*(bool(i >> k & 1) for k in range(3))) for i in range(8)]
X, Y = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


@pytest.mark.parametrize('turn', TURNS)
def test_a_turn_is_undone(turn):
  stored = np.arange(12).reshape(3, 4)
  shown = turn(stored)
  np.testing.assert_array_equal(turn.inverse(shown), stored)
  for row, column in np.ndindex(shown.shape):
    assert stored[turn.stored_pixel(row, column, shown.shape)] == shown[row, column]


@pytest.mark.parametrize('turn', TURNS)
def test_a_plane_is_turned_with_its_pixels(turn):
  plane = Plane((3, 4), (2.0, 0.5), (X, Y), (10.0, 20.0, 30.0))
  turned = plane.turned(turn)
  assert turned.turned(turn.inverse) == plane
  for row, column in np.ndindex(turned.shape):
    np.testing.assert_allclose(
      turned.place(row, column), plane.place(*turn.stored_pixel(row, column, turned.shape))
    )
  assert turned.turned(turned.display).axes == (X, Y)


def test_what_is_not_known_stays_unknown():
  plane = Plane((3, 4), (2.0, 0.5))
  assert plane.display == AS_STORED
  assert plane.turned(TURNS[7]) == Plane((4, 3), (0.5, 2.0))
  assert plane.height_mm is plane.place(0, 0) is None
  assert Plane((3, 4), (2.0, 0.5), (X, Y)).cut(0, 0, 3, 4, (6, 8)) == Plane(
    (6, 8), (1.0, 0.25), (X, Y)
  )


def test_planes_in_closed_form():
  # 3 rows of 2 mm and 4 columns of 0.5 mm about the origin.
  assert centred((3, 4), (2.0, 0.5), -7.0).corner_mm == (-0.75, -2.0, -7.0)
  assert Plane((4, 4), (1.0, 1.0), (X, Y), (5.0, 6.0, 7.0)).height_mm == 7
  # Four pixels of 1 mm become two of 2 mm: centres at 0.5 and 2.5 mm from the first old one.
  assert Plane((4, 4), (1.0, 1.0), (X, Y), (0.0, 0.0, 0.0)).cut(0, 0, 4, 4, (2, 2)) == Plane(
    (2, 2), (2.0, 2.0), (X, Y), (0.5, 0.5, 0.0)
  )
  tilted = (X, (0.0, float(np.cos(np.radians(25))), float(np.sin(np.radians(25)))))
  assert tilt_degrees(tilted) == pytest.approx(25)
  assert tilt_degrees((Y, X)) == 0


@pytest.mark.parametrize('aspect', REGIONS)
@pytest.mark.parametrize('turn', TURNS)
@pytest.mark.parametrize(('shape', 'spacing'), [((48, 60), (1.0, 1.0)), ((50, 40), (1.0, 1.5))])
def test_a_view_lies_where_its_values_say(tmp_path, aspect, turn, shape, spacing):
  shown = dataclasses.replace(centred(shape, spacing), corner_mm=(-31.0, 12.0, -200.0))
  plane = shown.turned(turn.inverse)
  rows, columns = np.indices(plane.shape)
  place = np.vectorize(lambda r, c: plane.place(r, c)[:2])
  x, y = place(rows, columns)
  ds = ct(
    np.rint(5 * x + 7 * y),
    RescaleIntercept=0,
    PixelSpacing=list(plane.spacing_mm),
    ImageOrientationPatient=[v for axis in plane.axes for v in axis],
    ImagePositionPatient=list(plane.corner_mm),
  )
  source = DicomSource(save(ds, tmp_path / 'a'), labels_csv=None, max_pixels=2**20)
  view = Preprocess(20, 0.0, 2000.0, aspect)
  seen, hu = view.seen(source.records[0].plane), view.to_hu(view(source[0])[..., 0])
  assert seen.axes == (X, Y)
  # Away from the border, which resizing and black edges of a letterbox disturb.
  for row, column in ((8, 8), (9, 12), (12, 7)):
    x, y, z = seen.place(row, column)
    assert hu[row, column] == pytest.approx(5 * x + 7 * y, abs=1.5)
    assert z == -200
