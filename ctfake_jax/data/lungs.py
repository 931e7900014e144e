"""Where the lungs of a CT series are, by thresholds and connected components.

Source of the steps: S. Hu, E. A. Hoffman and J. M. Reinhardt, Automatic lung segmentation for
accurate quantitation of volumetric X-ray CT images, IEEE Trans Med Imaging 20:490, 2001.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

AIRY_HU = -400.0  # lung and air lie below
LEAST_ML = 50.0  # of a lung, or of the part of it that a series shows
LEAST_CM2 = 8.0  # where a few slices show less of it, on average over them
CLOSING_MM = 12.0  # vessels and nodules of this radius are bridged
THIN = 2  # every so many rows and columns are looked at


def lung_mask(
  hu: Float[np.ndarray, 'n h w'], spacing_mm: tuple[float, float, float]
) -> Bool[np.ndarray, 'n h w']:
  """Lungs with the vessels and nodules in them.

  Args:
    hu: a series.
    spacing_mm: between slices, rows, columns.
  """
  thin = hu[:, ::THIN, ::THIN]
  step, row, column = spacing_mm[0], spacing_mm[1] * THIN, spacing_mm[2] * THIN
  airy = thin < AIRY_HU
  for plane in airy:  # air round the body reaches the border of a slice
    parts, _ = ndimage.label(plane)
    edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    plane &= ~np.isin(parts, edge[edge > 0])
  parts, count = ndimage.label(airy)
  sizes = np.bincount(parts.ravel(), minlength=count + 1) * step * row * column / 1000
  sizes[0] = 0
  lungs = (sizes >= min(LEAST_ML, LEAST_CM2 * len(hu) * step / 10))[parts]
  closed = np.stack([_closed(plane, CLOSING_MM / row) for plane in lungs])
  large = closed.repeat(THIN, axis=1).repeat(THIN, axis=2)
  return large[:, : hu.shape[1], : hu.shape[2]]


def _closed(plane: Bool[np.ndarray, 'h w'], radius: float) -> Bool[np.ndarray, 'h w']:
  """Without holes, and without notches narrower than twice the radius, in pixels."""
  if not plane.any():
    return plane
  pad = int(np.ceil(radius)) + 1
  wide = np.pad(plane, pad)
  grown = ndimage.distance_transform_edt(~wide) <= radius
  shrunk = ndimage.distance_transform_edt(grown) > radius
  return ndimage.binary_fill_holes(shrunk | wide)[pad:-pad, pad:-pad]
