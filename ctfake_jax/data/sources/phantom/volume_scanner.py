"""What `scanner` would reconstruct, by the closed forms of filtered back-projection.

Enters HU with partial volume, float32[h, w]; leaves HU as scanned. A linear reconstruction passes
the object through its modulation transfer, and the noise of a reading at angle t ends as ramp
noise along t (S. J. Riederer, N. J. Pelc and D. A. Chesler, Phys Med Biol 23:446, 1978):

  power(f) = pi / views * bin * variance of readings * |f| window(f)^2    [1/mm^2 mm^2]

with the variance of the rays that cross a place at that angle, so that noise is streaky where a
body is wide.
"""

import functools

import numpy as np
import scipy.fft
from jaxtyping import Float, Float32
from scipy import ndimage

from ctfake_jax.data.sources.phantom.scanner import (
  BINS_PER_PIXEL,
  HU_RANGE,
  KERNELS,
  VIEWS_PER_PIXEL,
  WATER_PER_MM,
  photons_per_reading,
)

SECTORS = 12  # of angles that share a variance
COARSE = 128  # side of the image that rays are summed in
REFERENCE_MM = 2.5  # thickness that the doses of `scanner.SCANNERS` are for


def scan(
  hu: Float32[np.ndarray, 'h h'],
  *,
  field_of_view_mm: float,
  dose_mgy: float,
  kernel: str,
  thickness_mm: float,
  rng: np.random.Generator,
) -> Float32[np.ndarray, 'h h']:
  """One noisy scan.

  Args:
    hu: the object.
    field_of_view_mm: side of the image.
    dose_mgy: CTDIvol.
    kernel: a key of `scanner.KERNELS`.
    thickness_mm: of the slice: a thicker one takes more photons.
    rng: of the noise.

  Returns:
    HU within `HU_RANGE`.
  """
  size = len(hu)
  transfer, noise = _filters(size, kernel)
  seen = scipy.fft.irfft2(scipy.fft.rfft2(hu) * transfer, s=hu.shape)
  photons = float(photons_per_reading(np.array([dose_mgy], np.float32), size)[0])
  photons *= thickness_mm / REFERENCE_MM
  white = scipy.fft.rfft2(rng.standard_normal(hu.shape, np.float32))
  pixel_mm = field_of_view_mm / size
  for sector, along in enumerate(noise):
    deviation = np.sqrt(_variance(hu, sector, pixel_mm, photons)) / pixel_mm
    seen += deviation * scipy.fft.irfft2(white * along, s=hu.shape)
  return np.clip(seen, *HU_RANGE).astype(np.float32)


@functools.cache
def _filters(
  size: int, kernel: str
) -> tuple[Float32[np.ndarray, 'h w'], Float32[np.ndarray, 's h w']]:
  """Modulation transfer; and the amplitude of noise from each sector of angles.

  The latter in HU pixels for readings of unit variance.
  """
  down = scipy.fft.fftfreq(size)[:, None]
  across = scipy.fft.rfftfreq(size)[None, :]
  transfer = _window(np.hypot(down, across), kernel) * _aperture(np.hypot(down, across), 1)
  power = np.zeros(transfer.shape)
  for i in (-1, 0, 1):  # what lies beyond the pixels' Nyquist frequency comes back as an alias
    for j in (-1, 0, 1):
      f = np.hypot(down + i, across + j)
      power += f * (_window(f, kernel) * _aperture(f, 2)) ** 2
  # pi / views * bin, in pixels.
  power *= np.pi / (VIEWS_PER_PIXEL * size) / BINS_PER_PIXEL * (1000 / WATER_PER_MM) ** 2
  sector = np.floor(np.arctan2(down, across) / np.pi * SECTORS + 0.5) % SECTORS
  amplitudes = np.sqrt(power) * (sector == np.arange(SECTORS)[:, None, None])
  return transfer.astype(np.float32), amplitudes.astype(np.float32)


def _window(f: Float[np.ndarray, 'h w'], kernel: str) -> Float[np.ndarray, 'h w']:
  """Apodisation at frequencies in cycles a pixel."""
  hann, end = KERNELS[kernel]
  return np.where(f < end, 0.5 + 0.5 * np.cos(np.pi * f / end) if hann else 1.0, 0.0)


def _aperture(f: Float[np.ndarray, 'h w'], power: int) -> Float[np.ndarray, 'h w']:
  """Of a detector bin (1) and of linear interpolation between bins (2)."""
  return np.sinc(f / BINS_PER_PIXEL) ** power


def _variance(
  hu: Float32[np.ndarray, 'h h'], sector: int, pixel_mm: float, photons: float
) -> Float[np.ndarray, 'h h']:
  """Of the readings that cross each pixel at the angle of a sector."""
  factor = max(1, len(hu) // COARSE)
  side = len(hu) // factor
  coarse = hu[: side * factor, : side * factor].reshape(side, factor, side, factor).mean((1, 3))
  degrees = sector * 180 / SECTORS
  turned = ndimage.rotate(coarse, degrees, reshape=False, order=1, cval=-1000.0)
  integrals = (turned / 1000 + 1).sum(0) * pixel_mm * factor * WATER_PER_MM
  grid = (np.arange(len(hu)) - (len(hu) - 1) / 2) / factor
  angle = np.radians(degrees)
  position = grid[None, :] * np.cos(angle) + grid[:, None] * np.sin(angle) + (side - 1) / 2
  readings = np.exp(ndimage.gaussian_filter1d(integrals, 1.0)) / photons
  return np.interp(position, np.arange(side), readings)
