"""Distances between two sets of feature vectors or of images: what the quality measure is made of.

In: features (Fréchet, kernel, precision and recall) or images in [-1, 1] (nearest neighbours).
Out: plain floats in the squared or plain unit of the features.
"""

import numpy as np
from jaxtyping import Float, Float64, Shaped

from ctfake_jax.runtime import streams

_PIXEL_SIDE = 16
_CHUNK = 256


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  x = np.asarray(x, np.float64)
  if x.ndim != 2 or len(x) < 2:
    raise ValueError(f'features must be [n, d] with n >= 2, not {x.shape}')
  return x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))


def frechet_distance(a: Float[np.ndarray, 'n d'], b: Float[np.ndarray, 'm d']) -> float:
  """Fréchet distance of the Gaussians with the moments of `a` and `b`.

  |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2). It is biased upwards, to first order
  in proportion to 1/n + 1/m: compare only values from the same n and m.

  Args:
    a: n >= 2.
    b: m >= 2.

  Returns:
    The squared distance, in squared feature units, never below 0.

  References:
    Heusel et al. 2017, arXiv:1706.08500; Dowson & Landau 1982, doi:10.1016/0047-259X(82)90077-X.
  """
  (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
  # Two symmetric eigenproblems instead of scipy's sqrtm of a product: no complex residue,
  # and singular covariances (n <= d) need no special case.
  values, vectors = np.linalg.eigh(cov_a)
  root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
  cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
  distance = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
  return max(float(distance), 0.0)


def kernel_distance(
  a: Float[np.ndarray, 'n d'], b: Float[np.ndarray, 'm d'], *, seed: int, resamples: int = 400
) -> tuple[float, tuple[float, float]]:
  """Unbiased squared maximum mean discrepancy (KID) with an interval.

  Kernel (x.y / d + 1)^3. The interval comes from random halves of both sets without replacement: a
  half's spread about the whole equals the standard error of the whole (McCarthy 1969), and unlike
  a bootstrap it puts no copies into a set, which this measure would rightly punish.

  Args:
    a: n >= 4.
    b: m >= 4.
    seed: of the random halves.
    resamples: number of random halves.

  Returns:
    The value (below 0 at times: it is unbiased) and its 95 % interval.

  References:
    Bińkowski et al. 2018, arXiv:1801.01401; Gretton et al. 2012, JMLR 13:723-773, lemma 6;
    McCarthy 1969, Rev. Int. Stat. Inst. 37:239-264.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if min(len(a), len(b)) < 4:
    raise ValueError(f'kernel distance needs 4 vectors on each side, not {len(a)} and {len(b)}')
  inner_a, inner_b, cross = _kernel(a, a), _kernel(b, b), _kernel(a, b)
  np.fill_diagonal(inner_a, 0.0)
  np.fill_diagonal(inner_b, 0.0)

  def value(keep_a: np.ndarray, keep_b: np.ndarray) -> np.ndarray:
    n, m = keep_a[0].sum(), keep_b[0].sum()
    within_a = ((keep_a @ inner_a) * keep_a).sum(1) / (n * (n - 1))
    within_b = ((keep_b @ inner_b) * keep_b).sum(1) / (m * (m - 1))
    return within_a + within_b - 2 * ((keep_a @ cross) * keep_b).sum(1) / (n * m)

  whole = float(value(np.ones((1, len(a))), np.ones((1, len(b))))[0])
  rng = streams.generator(seed, 'quality, halves')
  halves = value(_halves(len(a), resamples, rng), _halves(len(b), resamples, rng))
  below, above = np.quantile(halves - whole, [0.025, 0.975])
  return whole, (float(whole - above), float(whole - below))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return (a @ b.T / a.shape[1] + 1.0) ** 3


def _halves(n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
  """float64[resamples, n]: 1 for a random half of each row, else 0."""
  return (rng.random((resamples, n)).argsort(1) < n // 2).astype(np.float64)


def pair_distances(
  a: Float[np.ndarray, 'n d'], b: Float[np.ndarray, 'm d']
) -> Float64[np.ndarray, 'n m']:
  """Euclidean distances between the rows of `a` and of `b`, chunk by chunk."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  # A shift leaves distances as they are and keeps the expanded square from losing digits.
  center = b.mean(0)
  a, b = a - center, b - center
  square_b = (b**2).sum(1)
  rows = []
  for start in range(0, len(a), _CHUNK):
    part = a[start : start + _CHUNK]
    squares = (part**2).sum(1)[:, None] + square_b[None, :] - 2 * part @ b.T
    rows.append(np.sqrt(squares.clip(0)))
  return np.concatenate(rows)


def precision_recall(
  real: Float[np.ndarray, 'n d'],
  fake: Float[np.ndarray, 'm d'],
  k: int = 3,
  groups: Shaped[np.ndarray, ' n'] | None = None,
) -> tuple[float, float]:
  """Improved precision and recall.

  Precision: the share of fakes within the k-nearest-neighbour ball of some real. Recall: the share
  of reals within such a ball of some fake. Both depend on the number of vectors.

  Args:
    real: n > k.
    fake: m > k.
    k: which neighbour within its own set is a ball's radius.
    groups: patients of the reals. Neighbours of the same patient do not count: their balls
      would hold that patient and nothing else.

  Returns:
    (precision, recall), each in [0, 1].

  References:
    Kynkäänniemi et al. 2019, arXiv:1904.06991 (k = 3).
  """
  if min(len(real), len(fake)) <= k:
    raise ValueError(f'precision and recall need more than {k} vectors on each side')
  radius_real = _kth_nearest(real, np.arange(len(real)) if groups is None else groups, k)
  radius_fake = _kth_nearest(fake, np.arange(len(fake)), k)
  between = pair_distances(real, fake)
  precision = (between <= radius_real[:, None]).any(0).mean()
  recall = (between <= radius_fake[None, :]).any(1).mean()
  return float(precision), float(recall)


def _kth_nearest(vectors: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
  """Distance float[n] to the k-th nearest vector of another group; infinite where there is none."""
  between = pair_distances(vectors, vectors)
  between[groups[:, None] == groups[None, :]] = np.inf
  return np.partition(between, k - 1, axis=1)[:, k - 1]


def small_pixels(images: Float[np.ndarray, 'n h w 1']) -> Float[np.ndarray, 'n 256']:
  """Mean-free block means: what 'near' means when copies are looked for.

  Pixels rather than features, so that no extractor can be blind to a copy; as few as 16 x 16,
  because noise in finer ones keeps even copies apart.

  Args:
    images: square, in [-1, 1], the side a multiple of 16.
  """
  n, h, w, _ = images.shape
  if h != w or h % _PIXEL_SIDE:
    raise ValueError(f'images must be square with a side that is a multiple of 16, not {h}x{w}')
  block = h // _PIXEL_SIDE
  small = images.reshape(n, _PIXEL_SIDE, block, _PIXEL_SIDE, block).mean((2, 4)).reshape(n, -1)
  return small - small.mean(1, keepdims=True)


def _nearest(distances: np.ndarray) -> np.ndarray:
  """The smallest of each row over its median.

  The median takes out what smoothness does: a blurred image is nearer to everything.
  """
  return distances.min(1) / np.maximum(np.median(distances, axis=1), 1e-12)


def nearest_ratio(
  fakes: Float[np.ndarray, 'n h h 1'],
  train: Float[np.ndarray, 't h h 1'],
  reals_heldout: Float[np.ndarray, 'm h h 1'],
) -> dict[str, float | int]:
  """Memorisation: are fakes nearer to the training images than unseen reals are?

  A distance is that of `small_pixels` to the nearest training image, over the median one.

  Args:
    fakes: in [-1, 1].
    train: what the generator saw.
    reals_heldout: of patients or groups that are not in `train`.

  Returns:
    nearest_ratio: median distance of a fake over the same of a held-out real; about 1 without
      memorisation, towards 0 with it.
    memorised: number of fakes at most as far as the 1st percentile of the held-out reals.
    memorised_expected: that number if fakes were distributed as held-out reals, n / 100.
  """
  train_pixels = small_pixels(train)
  of_fakes, of_reals = (
    _nearest(pair_distances(small_pixels(x), train_pixels)) for x in (fakes, reals_heldout)
  )
  return {
    'nearest_ratio': float(np.median(of_fakes)) / max(float(np.median(of_reals)), 1e-12),
    'memorised': int((of_fakes <= np.quantile(of_reals, 0.01)).sum()),
    'memorised_expected': len(fakes) / 100,
  }


def repeats(fakes: Float[np.ndarray, 'n h h 1'], reals: Float[np.ndarray, 'm h h 1']) -> int:
  """Number of fakes that are as near to another fake as only 1 % of reals are to another real.

  About n / 100 for n fakes as varied as the reals. The Fréchet distance hardly sees repetition
  (`ctfake_jax.quality`), hence this count beside it. Distances as in `nearest_ratio`.

  Args:
    fakes: in [-1, 1].
    reals: take m = n, for a nearest neighbour gets nearer as a set grows.
  """
  of_fakes, of_reals = (_nearest_within(small_pixels(x)) for x in (fakes, reals))
  return int((of_fakes <= np.quantile(of_reals, 0.01)).sum())


def _nearest_within(pixels: np.ndarray) -> np.ndarray:
  distances = pair_distances(pixels, pixels)
  np.fill_diagonal(distances, np.inf)
  return _nearest(distances)
