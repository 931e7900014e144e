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
from ctfake_jax.types import Record, UserError

FIRST_LINE = 2  # below the head
DIAMETERS_MM = 3, 60  # of lesions
MOST_TRIES = 2000
CHANGED_DIAMETERS = 1.5  # all that is changed at a place lies within a sphere of so many
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
  """Places in the lung, away from its edge and from large vessels: those of `MOST_TRIES` draws."""
  depth = ndimage.distance_transform_edt(lung, sampling=spacing_mm)
  deep = np.flatnonzero(depth > diameters_mm[0] / 2 + EDGE_MM)
  for _ in range(MOST_TRIES if len(deep) else 0):
    diameter = float(np.exp(rng.uniform(*np.log(diameters_mm))))
    z, y, x = np.unravel_index(rng.choice(deep), lung.shape)
    if depth[z, y, x] <= diameter / 2 + EDGE_MM:
      continue
    centre = float(z), float(y), float(x)
    box, offsets = around(centre, diameter / 2, spacing_mm, lung.shape)
    own = np.linalg.norm(offsets, axis=-1) <= diameter / 2
    if (hu[box][own] > VESSEL_HU).mean() <= VESSEL_SHARE:
      yield Site(centre, diameter)


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
) -> tuple[tuple[slice, slice, slice], Float[np.ndarray, 'a b c 3']]:
  """The box of voxels within `reach_mm` of a place, and their offsets from it in mm."""
  z, y, x = (
    slice(max(0, int(np.floor(c - reach_mm / mm))), min(n, int(np.ceil(c + reach_mm / mm)) + 1))
    for c, mm, n in zip(centre, spacing_mm, shape, strict=True)
  )
  axes = [(np.arange(s.start, s.stop) - c) * mm for s, c, mm in zip((z, y, x), centre, spacing_mm)]
  return (z, y, x), np.stack(np.meshgrid(*axes, indexing='ij'), -1)


def apart(a: Site, b: Site, spacing_mm: tuple[float, float, float]) -> bool:
  """Whether what is changed at two places does not touch."""
  gap = (np.array(a.centre) - np.array(b.centre)) * np.array(spacing_mm)
  return bool(np.linalg.norm(gap) > CHANGED_DIAMETERS * (a.diameter_mm + b.diameter_mm) / 2)


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
  """Those of a table that concern a series, by their line; they may lie outside of it."""
  found = {}
  for number, row in enumerate(rows, FIRST_LINE):
    named = (row.get('series') or '').strip().rstrip('/')
    if not named or any(_is_of(record, named) for record in series.records):
      found[number] = Site(_centre(row, series), float(row['diameter_mm']))
  return found


def refuse_outside(found: dict[int, Site], series: CtSeries) -> None:
  """Raises UserError naming the line of a table whose place is not in the series."""
  for number, site in found.items():
    if not all(0 <= c <= n - 1 for c, n in zip(site.centre, series.stored.shape)):
      raise UserError(f'config.tamper.sites_csv, line {number}: lies outside of the series')


def _is_of(record: Record, named: str) -> bool:
  """Whether a record's file is this one, or lies in this folder."""
  return named in (record.path, record.provenance) or record.provenance.startswith(f'{named}/')


def _centre(row: dict[str, str], series: CtSeries) -> tuple[float, float, float]:
  if row.get('z'):
    return float(row['z']), float(row['y']), float(row['x'])
  point = np.array([float(row[name]) for name in ('x_mm', 'y_mm', 'z_mm')])
  return series.voxel_of(point)
