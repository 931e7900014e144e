"""Simulated right answers on images of patients, whose images are alike."""

import numpy as np

SIZES = ('equal', 'many', 'skewed', 'geometric', 'one large')


def group_sizes(kind: str, patients: int) -> np.ndarray:
  """i[patients]: how many images each patient has, the same at every call."""
  rng = np.random.default_rng(7)
  if kind == 'equal':
    return np.full(patients, 4)
  if kind == 'many':
    return np.full(patients, 12)
  if kind == 'skewed':
    return np.maximum(1, np.round(4 * rng.lognormal(-0.5, 1.0, patients))).astype(int)
  if kind == 'geometric':
    return rng.geometric(1 / 6, patients)
  # One patient holds 8 % of all images.
  sizes = rng.integers(1, 8, patients)
  sizes[0] = max(4, round(0.08 / 0.92 * sizes[1:].sum()))
  return sizes


def right_answers(
  rng: np.random.Generator,
  accuracy: float,
  correlation: float,
  sizes: np.ndarray,
  repetitions: int,
) -> np.ndarray:
  """i[repetitions, g], beta-binomial with that mean and intra-class correlation."""
  shape = (repetitions, len(sizes))
  if correlation == 0:
    return rng.binomial(sizes, accuracy, shape)
  strength = (1 - correlation) / correlation
  return rng.binomial(sizes, rng.beta(accuracy * strength, (1 - accuracy) * strength, shape))


def each_once(sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Different rows of `sums` [r, g], and which of them each row is; order within a size is none."""
  if (sizes == sizes[0]).all():
    sums = np.sort(sums, axis=1)
  kinds, which = np.unique(sums, axis=0, return_inverse=True)
  return kinds, which.ravel()
