"""Untouched series that the forensic network learns from, is calibrated on and is tried on."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int16, Int32

from ctfake_jax.config.keys import Config
from ctfake_jax.data import lungs
from ctfake_jax.data import series as series_lib
from ctfake_jax.data.series import CtSeries
from ctfake_jax.data.sources.phantom import volume
from ctfake_jax.runtime import progress_bar, streams
from ctfake_jax.types import UnreadableImageError

MOST_GAP_MM = 10.0  # slices farther apart are no neighbours
LEAST_LUNG_CM2 = 10.0  # of a slice that is used
REAL_HU = -1024, 3071  # 12 bits
LEAST_SIDE = 176  # pixels, of series to learn from
THICKNESSES_MM = 1.0, 5.0  # of the phantom's slices


@dataclasses.dataclass(frozen=True)
class Volume:
  """An untouched series.

  Attributes:
    name: of the series, as it is shown.
    patient: who must not be in two parts.
    phantom: whether nobody was scanned.
    hu: as stored, rows and columns as in the files.
    lung: with the vessels and nodules in it.
    spacing_mm: between slices, rows, columns.
    rows: slices with enough lung.
    digest: of the values, SHA-256.
  """

  name: str
  patient: str
  phantom: bool
  hu: Int16[np.ndarray, 'n h w']
  lung: Bool[np.ndarray, 'n h w']
  spacing_mm: tuple[float, float, float]
  rows: Int32[np.ndarray, ' r']
  digest: str

  def slab(self, row: int) -> Float32[np.ndarray, 'k h w']:
    """A slice between its neighbours, the middle one of three; alone where it has none."""
    return self.hu[self.around(row)].astype(np.float32)

  def around(self, row: int) -> slice:
    """The slices that `slab` takes."""
    inner = 0 < row < len(self.hu) - 1 and self.spacing_mm[0] <= MOST_GAP_MM
    return slice(row - 1, row + 2) if inner else slice(row, row + 1)

  @functools.cached_property
  def in_lung(self) -> dict[int, Int32[np.ndarray, 'm 2']]:
    """Of each of `rows`, some pixels of the lung."""
    return {row: np.argwhere(self.lung[row])[::7].astype(np.int32) for row in self.rows.tolist()}


def of_series(series: CtSeries, *, phantom: bool) -> Volume:
  """With its lungs."""
  hu = np.clip(np.rint(series.hu), *REAL_HU).astype(np.int16)
  lung = lungs.lung_mask(hu.astype(np.float32), series.spacing_mm)
  _, row_mm, column_mm = series.spacing_mm
  areas = lung.sum((1, 2)) * row_mm * column_mm / 100
  return Volume(
    name=series.records[0].provenance,
    patient=series.records[0].patient_id or series.name,
    phantom=phantom,
    hu=hu,
    lung=lung,
    spacing_mm=series.spacing_mm,
    rows=np.flatnonzero(areas >= LEAST_LUNG_CM2).astype(np.int32),
    digest=hashlib.sha256(hu.tobytes()).hexdigest(),
  )


def of_folder(config: Config, left_out: list[UnreadableImageError]) -> Iterator[Volume]:
  """Every series below `config.data.path` with enough lung; what is none goes to `left_out`."""
  c = config.data
  out = config.forensics.leave_out
  found = series_lib.of_dicom(
    Path(c.path), c.max_pixels, c.synthetic_ok, left_out, alone_ok=True, leave_out=out
  )
  for series in progress_bar.bar('reading series', found):
    read = of_series(series, phantom=False)
    if min(read.hu.shape[1:]) < LEAST_SIDE:
      left_out.append(UnreadableImageError(read.name, f'below {LEAST_SIDE} pixels on a side'))
    elif not read.rows.size:
      left_out.append(UnreadableImageError(read.name, 'shows no lung'))
    else:
      yield read


def of_phantom(config: Config) -> Iterator[Volume]:
  """As many slices of every patient of `config.phantom`, whose thickness is drawn."""
  c = config.phantom
  for patient in progress_bar.bar('scanning phantoms', range(c.patients)):
    rng = streams.generator(c.seed, 'forensics, thickness', patient)
    scanned = volume.series(
      seed=c.seed,
      patient=patient,
      slices=c.slices_per_patient,
      size=c.size or config.data.image_size,
      thickness_mm=float(rng.uniform(*THICKNESSES_MM)),
      scanners=c.scanners,
    )
    series = series_lib.of_simulated(scanned, f'phantom-{c.seed}-{patient:04d}')
    yield of_series(series, phantom=True)
