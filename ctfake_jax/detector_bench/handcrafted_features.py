"""What a forensic analyst would measure: named features for classical learners.

Enters f32[n, h, h, 1] in [-1, 1], leaves f64[n, d] in the order of `NAMES`: the radial power
spectrum, moments of what smoothing takes away (Fridrich & Kodovsky 2012,
doi:10.1109/TIFS.2012.2190402), and co-occurrence of grey levels (Haralick, Shanmugam & Dinstein
1973, doi:10.1109/TSMC.1973.4309314).
"""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from skimage.feature import graycomatrix, graycoprops

from ctfake_jax.evaluation.sample_quality.structure import radial_power_spectrum
from ctfake_jax.models.patch_net import with_residuals

SPECTRUM_BINS = 16
GREY_LEVELS = 32
DISTANCES = (1, 2)
ANGLES = (0.0, np.pi / 2)
TEXTURES = ('contrast', 'homogeneity', 'energy', 'correlation')
MOMENTS = ('deviation', 'mean_size', 'kurtosis', 'next_below', 'next_right')
NAMES = (
  *(f'spectrum_{i}' for i in range(SPECTRUM_BINS)),
  *(f'residual{scale}_{moment}' for scale in (1, 2) for moment in MOMENTS),
  *(f'{texture}_{distance}' for texture in TEXTURES for distance in DISTANCES),
)


def named_features(images: Float[np.ndarray, 'n h w 1']) -> Float[np.ndarray, 'n f']:
  """f64[n, d] of images f32[n, h, h, 1]."""
  residuals = np.asarray(with_residuals(jnp.asarray(images)), np.float64)[..., 1:]
  moments = [_moments(residuals[..., scale]) for scale in range(residuals.shape[-1])]
  return np.concatenate([spectra(images), *moments, _textures(images)], axis=1)


def spectra(images: Float[np.ndarray, 'n h w 1']) -> Float[np.ndarray, 'n f']:
  """Log10 power f64[n, 16] in rings of equal width from the longest wave to the shortest."""
  curves = np.stack([radial_power_spectrum(image[None]) for image in images])
  places = np.linspace(0, curves.shape[1], SPECTRUM_BINS + 1).round().astype(int)
  return np.stack(
    [curves[:, low : max(high, low + 1)].mean(1) for low, high in pairwise(places)], 1
  )


def _moments(residual: np.ndarray) -> np.ndarray:
  """f64[n, 5] of f64[n, h, w]: size, tails, and how like its neighbours a pixel is."""
  flat = residual.reshape(len(residual), -1)
  power = np.maximum((flat**2).mean(1), 1e-12)
  below = (residual[:, 1:] * residual[:, :-1]).mean((1, 2)) / power
  right = (residual[:, :, 1:] * residual[:, :, :-1]).mean((1, 2)) / power
  deviation = np.maximum(flat.std(1), 1e-6)
  kurtosis = ((flat - flat.mean(1, keepdims=True)) ** 4).mean(1) / deviation**4
  return np.stack([flat.std(1), np.abs(flat).mean(1), kurtosis, below, right], 1)


def _textures(images: np.ndarray) -> np.ndarray:
  levels = np.clip((images[..., 0] + 1) / 2 * GREY_LEVELS, 0, GREY_LEVELS - 1).astype(np.uint8)
  rows = []
  for level in levels:
    pairs = graycomatrix(level, DISTANCES, ANGLES, GREY_LEVELS, symmetric=True, normed=True)
    rows.append(np.concatenate([graycoprops(pairs, name).mean(1) for name in TEXTURES]))
  return np.stack(rows)
