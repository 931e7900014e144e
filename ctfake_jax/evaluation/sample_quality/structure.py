"""What images look like, without an extractor: MS-SSIM between them and their power spectrum.

In: images in [-1, 1]. Out: similarities in [0, 1] and spectra in decades.
Filters are banded matrices: two matrix products per filter, which on CPUs beat XLA's convolution.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Float64, Int

from ctfake_jax.runtime import streams

# Wang, Simoncelli & Bovik 2003, section 3.2: five scales, finest first.
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5
_RANGE = 2.0
_BATCH = 64


@functools.cache
def _window_matrix(side: int) -> np.ndarray:
  """float32[side - window + 1, side]: Gaussian means at the places where the window fits.

  The window is 11 wide, or the largest odd width that fits a smaller image (7 at 8 px).
  """
  width = min(_WINDOW, side - 1 + side % 2)
  offsets = np.arange(width) - width // 2
  taps = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
  matrix = np.zeros((side - width + 1, side), np.float32)
  for row in range(len(matrix)):
    matrix[row, row : row + width] = taps / taps.sum()
  return matrix


def _similarity_maps(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Luminance and contrast-structure maps f32[h', w'] of one pair f32[h, w]."""
  rows, columns = (jnp.asarray(_window_matrix(side)) for side in a.shape)

  def mean(x: jax.Array) -> jax.Array:
    return jnp.matmul(jnp.matmul(rows, x, precision='highest'), columns.T, precision='highest')

  c1, c2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
  mean_a, mean_b = mean(a), mean(b)
  variances = mean(a * a) + mean(b * b) - mean_a**2 - mean_b**2
  covariance = mean(a * b) - mean_a * mean_b
  luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
  return luminance, (2 * covariance + c2) / (variances + c2)


def _halve(x: jax.Array) -> jax.Array:
  h, w = x.shape[0] // 2, x.shape[1] // 2
  return x[: 2 * h, : 2 * w].reshape(h, 2, w, 2).mean((1, 3))


@functools.partial(jax.jit, static_argnames='scales')
def ms_ssim(
  a: Float32[Array | np.ndarray, 'n h w 1'],
  b: Float32[Array | np.ndarray, 'n h w 1'],
  scales: int = 3,
) -> Float32[Array, ' n']:
  """Multi-scale structural similarity of pairs.

  Contrast and structure at every scale, luminance at the coarsest, each mean over positions to the
  power of its published weight; the first `scales` of the five weights, made to sum to 1. A
  negative mean counts as 0, for it has no real power. Each scale halves by 2 x 2 means.

  Args:
    a: in [-1, 1], h and w at least 3 * 2**(scales - 1).
    b: in [-1, 1].
    scales: 1 (plain SSIM) to 5.

  Returns:
    In [0, 1], 1 for equal images.

  References:
    Wang, Simoncelli & Bovik 2003, doi:10.1109/ACSSC.2003.1292216; Wang et al. 2004,
    doi:10.1109/TIP.2003.819861 (window, K1 = 0.01, K2 = 0.03).
  """
  if a.shape != b.shape or min(a.shape[1:3]) < 3 * 2 ** (scales - 1):
    raise ValueError(f'{scales} scales need two equal, larger shapes, not {a.shape}, {b.shape}')
  weights = np.array(_WEIGHTS[:scales]) / sum(_WEIGHTS[:scales])

  def one_pair(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, y = pair
    result = jnp.ones(())
    for scale, weight in enumerate(weights):
      luminance, structure = _similarity_maps(x, y)
      coarsest = scale == scales - 1
      term = (luminance * structure if coarsest else structure).mean()
      result *= jnp.maximum(term, 0.0) ** weight
      if not coarsest:
        x, y = _halve(x), _halve(y)
    return result

  # In batches: 500 pairs of 256 px at once would hold gigabytes of maps.
  return jax.lax.map(one_pair, (a[..., 0], b[..., 0]), batch_size=_BATCH)


def within_class_ms_ssim(
  images: Float32[np.ndarray, 'n h w 1'], labels: Int[np.ndarray, ' n'], *, pairs: int, seed: int
) -> tuple[float, tuple[float, float]]:
  """Mean three-scale MS-SSIM of random pairs of one class: high where a generator repeats itself.

  No image is in two pairs, so pairs are as independent as images and the interval is the
  ordinary one of a mean (Odena et al. 2017, arXiv:1610.09585, compare classes this way).

  Args:
    images: in [-1, 1].
    labels: their classes.
    pairs: at most this many; fewer where n or the classes give fewer.
    seed: of the pairing.

  Returns:
    Mean and 95 % interval.
  """
  rng = streams.generator(seed, 'quality, pairs')
  order = rng.permutation(len(labels))
  couples = []
  for label in np.unique(labels):
    of_class = order[labels[order] == label]
    couples.append(of_class[: len(of_class) // 2 * 2].reshape(-1, 2))
  chosen = rng.permutation(np.concatenate(couples))[:pairs]
  if len(chosen) < 2:
    raise ValueError(f'MS-SSIM within classes needs two pairs; {len(labels)} images give too few')
  values = np.asarray(ms_ssim(images[chosen[:, 0]], images[chosen[:, 1]]), np.float64)
  mean, half = values.mean(), 1.96 * values.std(ddof=1) / np.sqrt(len(values))
  return float(mean), (float(mean - half), float(mean + half))


def radial_power_spectrum(
  images: Float32[np.ndarray, 'n h w 1'],
) -> Float64[np.ndarray, ' h//2']:
  """Mean log10 power by integer spatial frequency.

  Each image is made mean-free and multiplied with a Hann window (without it the jump from one edge
  to the opposite one leaks into all high frequencies), and its power is divided by the window's, so
  white noise of variance v has log10(v) everywhere. Rings are averaged before the logarithm.

  Args:
    images: square, in [-1, 1].

  Returns:
    For radius 1 ... h // 2 cycles per image.
  """
  side = images.shape[1]
  if images.shape[2] != side:
    raise ValueError(f'images must be square, not {images.shape[1:3]}')
  window = np.outer(np.hanning(side), np.hanning(side))
  frequency = np.fft.fftfreq(side, 1 / side)
  radius = np.rint(np.hypot(frequency[:, None], frequency[None, :])).astype(int).ravel()
  counts = np.bincount(radius)
  rings = []
  for image in np.asarray(images[..., 0], np.float64):
    power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2 / (window**2).sum()
    rings.append(np.bincount(radius, power.ravel()) / counts)
  # One part in 10^10 of full range: a flat image stays finite and adds nothing.
  return np.log10(np.array(rings)[:, 1 : side // 2 + 1] + 1e-10).mean(0)


def spectrum_gap(
  real: Float32[np.ndarray, 'n h h 1'], fake: Float32[np.ndarray, 'm h h 1']
) -> float:
  """Mean absolute difference of two sets' radial spectra, in decades of power.

  Args:
    real: in [-1, 1].
    fake: in [-1, 1].
  """
  return float(np.abs(radial_power_spectrum(real) - radial_power_spectrum(fake)).mean())
