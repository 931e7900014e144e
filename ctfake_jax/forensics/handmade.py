"""Statistics of residuals by hand, as maps: what a network has to beat.

Each is a number for every square of a slice, and how far it lies from the lung's median: edits are
whiter or smoother than their surroundings, whichever. (Residual statistics in forensics: Fridrich &
Kodovsky 2012, doi:10.1109/TIFS.2012.2190402; prediction from neighbours: Farid & Lyu 2003.)
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32
from scipy import ndimage

from ctfake_jax.forensics.examine import Maps, Present, Slabs, Squares
from ctfake_jax.models.forensic_net import LIMITS_HU, LUNG_HU, STRIDE

WINDOW = 5  # squares that a number is of
LEAST_POWER = 1.0  # HU^2

Plane = Float32[np.ndarray, 'h w']
Statistic = Callable[[Plane], Float[np.ndarray, 'p q']]


def _mean(values: Float[np.ndarray, 'h w']) -> Float[np.ndarray, 'p q']:
  """Over windows of squares."""
  padded = np.pad(values, [(0, -n % STRIDE) for n in values.shape], mode='edge')
  rows, columns = padded.shape[0] // STRIDE, padded.shape[1] // STRIDE
  squares = padded.reshape(rows, STRIDE, columns, STRIDE).mean((1, 3))
  return ndimage.uniform_filter(squares, WINDOW)


def _bands(hu: Plane) -> tuple[Plane, Plane]:
  smooth = ndimage.gaussian_filter(hu, 0.8)
  return hu - smooth, smooth - ndimage.gaussian_filter(smooth, 2.0)


def band_ratio(hu: Plane) -> Float[np.ndarray, 'p q']:
  """Logarithm of the high band's power over the middle one's."""
  high, middle = _bands(hu)
  return np.log((_mean(high**2) + LEAST_POWER) / (_mean(middle**2) + LEAST_POWER))


def residual_correlation(hu: Plane) -> Float[np.ndarray, 'p q']:
  """Of the residual with its neighbours right and below."""
  high = _bands(hu)[0]
  beside = (high * np.roll(high, -1, 1) + high * np.roll(high, -1, 0)) / 2
  return _mean(beside) / (_mean(high**2) + LEAST_POWER)


def prediction_error(hu: Plane) -> Float[np.ndarray, 'p q']:
  """Logarithm of what the best linear prediction from neighbours leaves, over the variance."""
  steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
  around = np.stack([np.roll(hu, step, (0, 1)) for step in steps], -1)
  airy = (hu > LUNG_HU[0]) & (hu < LUNG_HU[1])
  chosen = airy if airy.sum() > 10 * len(steps) else np.ones_like(airy)
  weights = np.linalg.lstsq(around[chosen], hu[chosen], rcond=None)[0]
  error = hu - around @ weights
  spread = hu - ndimage.gaussian_filter(hu, 2.0)
  return np.log((_mean(error**2) + LEAST_POWER) / (_mean(spread**2) + LEAST_POWER))


STATISTICS: dict[str, Statistic] = {
  'band_ratio': band_ratio,
  'residual_correlation': residual_correlation,
  'prediction_error': prediction_error,
}


def maps_of(statistic: Statistic) -> Maps:
  """Distances from the lung's median, in its median absolute deviations."""

  def maps(hu: Slabs, present: Present) -> Squares:
    del present
    return np.stack([_deviations(statistic, slab[1]) for slab in hu])

  return maps


def _deviations(statistic: Statistic, hu: Plane) -> Float[np.ndarray, 'p q']:
  hu = np.clip(hu, *LIMITS_HU)
  found = statistic(hu)
  level = _mean(hu)
  airy = (level > LUNG_HU[0]) & (level < LUNG_HU[1])
  usual = found[airy] if airy.any() else found
  middle = np.median(usual)
  return np.abs(found - middle) / max(float(np.median(np.abs(usual - middle))), 1e-6)
