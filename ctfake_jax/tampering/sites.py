"""Where a series is changed: places of an automatic, seeded choice, or of a table.

A table is CSV with the columns `z,y,x` (slice by ascending position, row, column as stored, from 0)
or `z_mm,y_mm,x_mm` (patient coordinates), `diameter_mm`, and, where the input has several series,
`series`: the path of a file or folder of it, below the input.
"""

import csv
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from ctfake_jax.data.series import CtSeries
from ctfake_jax.types import Plane, Record, UserError

FIRST_LINE = 2  # below the head
DIAMETERS_MM = 3, 60  # of lesions
EDGE_MM = 6.0  # from the pleura, beside the lesion's own radius
VESSEL_HU, VESSEL_SHARE = -500.0, 0.1  # of what lies where a lesion is to be put
NODULE_HU = -400.0  # what is denser in the lung may be one
ROUND = 2.5  # the longest axis of a nodule, of its shortest, at most
FEWEST_VOXELS = 8
# Of its voxels, so many may lie at the edge of the lung: the rest belongs to hilum or wall.
EDGE_SHARE = 0.3


@dataclasses.dataclass(frozen=True)
class Site:
  """A place in a series.

  Attributes:
    centre: slice, row, column, as stored.
    diameter_mm: of the lesion there, asked or found.
  """

  centre: tuple[float, float, float]
  diameter_mm: float


def free(
  hu: Float[np.ndarray, 'n h w'],
  lung: Bool[np.ndarray, 'n h w'],
  spacing_mm: tuple[float, float, float],
  diameters_mm: tuple[float, float],
  rng: np.random.Generator,
) -> Iterator[Site]:
  """Places in the lung, away from its edge and from large vessels, in random order."""
  depth = ndimage.distance_transform_edt(lung, sampling=spacing_mm)
  while True:
    diameter = float(np.exp(rng.uniform(*np.log(diameters_mm))))
    candidates = np.flatnonzero(depth > diameter / 2 + EDGE_MM)
    if not len(candidates):
      if depth.max() <= diameters_mm[0] / 2 + EDGE_MM:
        return
      continue
    for place in rng.choice(candidates, 64):
      z, y, x = np.unravel_index(place, lung.shape)
      centre = float(z), float(y), float(x)
      box, distance = around(centre, diameter / 2, spacing_mm, lung.shape)
      if (hu[box][distance <= diameter / 2] > VESSEL_HU).mean() <= VESSEL_SHARE:
        yield Site(centre, diameter)
        break
    else:
      return


def nodules(
  hu: Float[np.ndarray, 'n h w'],
  lung: Bool[np.ndarray, 'n h w'],
  spacing_mm: tuple[float, float, float],
  diameters_mm: tuple[float, float],
) -> list[Site]:
  """Dense things in the lung that hardly touch its edge, the roundest first."""
  dense = ndimage.binary_opening((hu > NODULE_HU) & lung)
  edge = ~ndimage.binary_erosion(lung, iterations=2)
  parts, _count = ndimage.label(dense)
  found: list[tuple[float, Site]] = []
  for number, box in enumerate(ndimage.find_objects(parts), 1):
    points = np.argwhere(parts[box] == number)
    if len(points) < FEWEST_VOXELS:
      continue
    axes = np.linalg.eigvalsh(np.cov((points * np.array(spacing_mm)).T) + np.eye(3) * 1e-3)
    # Of an ellipsoid, a fifth of the squares of its semi-axes.
    diameter = 2 * float(np.sqrt(5 * axes[-1]))
    if axes[-1] > ROUND**2 * axes[0] or not diameters_mm[0] <= diameter <= diameters_mm[1]:
      continue
    if edge[box][parts[box] == number].mean() > EDGE_SHARE:
      continue
    z, y, x = points.mean(0) + [s.start for s in box]
    found.append((float(axes[-1] / axes[0]), Site((float(z), float(y), float(x)), diameter)))
  return [site for _, site in sorted(found, key=lambda pair: pair[0])]


def around(
  centre: tuple[float, float, float],
  reach_mm: float,
  spacing_mm: tuple[float, float, float],
  shape: tuple[int, ...],
) -> tuple[tuple[slice, slice, slice], Float[np.ndarray, 'a b c']]:
  """The box of voxels within `reach_mm` of a place, and their distance from it in mm."""
  box = tuple(
    slice(max(0, int(np.floor(c - reach_mm / mm))), min(n, int(np.ceil(c + reach_mm / mm)) + 1))
    for c, mm, n in zip(centre, spacing_mm, shape)
  )
  offsets = offsets_mm(centre, box, spacing_mm)
  z, y, x = box
  return (z, y, x), np.linalg.norm(offsets, axis=-1)


def offsets_mm(
  centre: tuple[float, float, float],
  box: tuple[slice, ...],
  spacing_mm: tuple[float, float, float],
) -> Float[np.ndarray, 'a b c 3']:
  """Of the voxels of a box from a place, along slices, rows and columns."""
  axes = [
    (np.arange(s.start, s.stop) - c) * mm for s, c, mm in zip(box, centre, spacing_mm, strict=True)
  ]
  return np.stack(np.meshgrid(*axes, indexing='ij'), -1)


def read(path: Path) -> list[dict[str, str]]:
  """Rows of a table of sites.

  Raises:
    UserError: it cannot be read, lacks columns or rows, or a value is none.
  """
  try:
    with open(path, newline='', encoding='utf-8-sig') as handle:
      table = csv.DictReader(handle)
      rows, columns = list(table), set(table.fieldnames or ())
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f'config.tamper.sites_csv = {path}: cannot be read ({error})') from None
  places = {'z', 'y', 'x'} <= columns or {'z_mm', 'y_mm', 'x_mm'} <= columns
  if not places or 'diameter_mm' not in columns:
    raise UserError(
      f'config.tamper.sites_csv = {path}: needs the columns z, y, x or z_mm, y_mm, x_mm, '
      'and diameter_mm'
    )
  if not rows:
    raise UserError(f'config.tamper.sites_csv = {path}: has no rows')
  for number, row in enumerate(rows, FIRST_LINE):
    _check(number, row)
  return rows


def _check(number: int, row: dict[str, str]) -> None:
  line = f'config.tamper.sites_csv, line {number}'
  names = ('z', 'y', 'x') if row.get('z') else ('z_mm', 'y_mm', 'x_mm')
  try:
    values = [float(row[name]) for name in (*names, 'diameter_mm')]
  except (TypeError, ValueError):
    values = [math.nan]
  if not all(map(math.isfinite, values)):
    raise UserError(f'{line}: a value is no number')
  if not DIAMETERS_MM[0] <= values[-1] <= DIAMETERS_MM[1]:
    raise UserError(
      f'{line}: diameter_mm = {values[-1]:g}: must be from {DIAMETERS_MM[0]} to {DIAMETERS_MM[1]}'
    )


def of_table(rows: list[dict[str, str]], series: CtSeries) -> dict[int, Site]:
  """Those of a table that concern a series, by their line.

  Raises:
    UserError: a place lies outside.
  """
  found = {}
  for number, row in enumerate(rows, FIRST_LINE):
    named = (row.get('series') or '').strip().rstrip('/')
    if named and not any(_is_of(record, named) for record in series.records):
      continue
    centre = _centre(row, series)
    if not all(0 <= c <= n - 1 for c, n in zip(centre, series.stored.shape)):
      raise UserError(f'config.tamper.sites_csv, line {number}: lies outside of the series')
    found[number] = Site(centre, float(row['diameter_mm']))
  return found


def _is_of(record: Record, named: str) -> bool:
  """Whether a record's file is this one, or lies in this folder."""
  return named in (record.path, record.provenance) or record.provenance.startswith(f'{named}/')


def _centre(row: dict[str, str], series: CtSeries) -> tuple[float, float, float]:
  if row.get('z'):
    return float(row['z']), float(row['y']), float(row['x'])
  point = np.array([float(row[name]) for name in ('x_mm', 'y_mm', 'z_mm')])
  return voxel_of(point, series.planes)


def voxel_of(
  point: Float[np.ndarray, ' 3'], planes: tuple[Plane, ...]
) -> tuple[float, float, float]:
  """Slice, row and column of a point (x, y, z) of the patient, mm."""
  heights = np.array([plane.height_mm for plane in planes], float)
  first = planes[0]
  assert first.axes is not None
  height = float(np.cross(*first.axes) @ point)
  order = np.argsort(heights)
  place = float(np.interp(height, heights[order], order))
  if not heights.min() - 1e-3 <= height <= heights.max() + 1e-3:
    place = -1.0
  plane = planes[max(0, round(place))]
  assert plane.axes is not None
  assert plane.corner_mm is not None
  from_corner = point - np.array(plane.corner_mm)
  along, down = (np.array(axis) for axis in plane.axes)
  return (
    place,
    float(from_corner @ down) / plane.spacing_mm[0],
    float(from_corner @ along) / plane.spacing_mm[1],
  )
