"""Shapes of nodules: a random radius in every direction, as readers drew real ones.

The logarithm of the radius is an isotropic Gaussian field on the sphere whose sections have the
Fourier powers of real contours: the largest of each of 2,469 annotations of 8 to 30 mm in LIDC-IDRI
(S. G. Armato et al., Med Phys 38:915, 2011; annotations CC BY 3.0), by `tests/contour_powers.py`.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import eval_legendre

# Variance of the logarithm by degree of the spherical harmonics.
POWERS = {
  2: 0.03035, 3: 0.00947, 4: 0.00493, 5: 0.00273, 6: 0.00169,
  7: 0.00140, 8: 0.00108, 9: 0.00115, 10: 0.00091,
}  # fmt: skip
AXES = 24  # random directions whose zonal functions make a degree


def log_radius(
  directions: Float[np.ndarray, '*shape 3'], rng: np.random.Generator
) -> Float[np.ndarray, '*shape']:
  """Of one random shape, relative to a sphere's, in directions (unit vectors)."""
  found = np.zeros(directions.shape[:-1])
  for degree, power in POWERS.items():
    axes = rng.normal(size=(AXES, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    heights = rng.normal(size=AXES) * np.sqrt(power * (2 * degree + 1) / AXES)
    found += eval_legendre(degree, np.clip(directions @ axes.T, -1, 1)) @ heights
  return found
