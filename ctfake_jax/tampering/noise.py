"""The noise of a series near a place: measured where tissue is even, made anew by its spectrum."""

import numpy as np
import scipy.fft
from jaxtyping import Float, Float32
from scipy import ndimage

WINDOW = 32  # pixels
EVEN_SHARE = 0.2  # of the windows with soft tissue, those with the least spread
TISSUE_HU = (-50.0, 150.0)
SMOOTH_PIXELS = 4.0  # wider variations are anatomy


def spectrum(hu: Float[np.ndarray, 'n h w']) -> Float[np.ndarray, 'k k']:
  """Noise power of `WINDOW` x `WINDOW` pixels, HU^2 a frequency, mean over even soft tissue.

  Where a few slices show no tissue, that of white noise of 10 HU.
  """
  step = WINDOW // 2
  windows = np.lib.stride_tricks.sliding_window_view(hu, (WINDOW, WINDOW), axis=(1, 2))
  windows = windows[:, ::step, ::step].reshape(-1, WINDOW, WINDOW)
  means = windows.mean((1, 2))
  tissue = windows[(means > TISSUE_HU[0]) & (means < TISSUE_HU[1])]
  if not len(tissue):
    return np.full((WINDOW, WINDOW), 100.0 * WINDOW**2)
  spread = tissue.std((1, 2))
  even = tissue[np.argsort(spread)[: max(1, round(EVEN_SHARE * len(tissue)))]]
  residual = even - np.stack([ndimage.gaussian_filter(w, SMOOTH_PIXELS) for w in even])
  return (np.abs(scipy.fft.fft2(residual - residual.mean((1, 2), keepdims=True))) ** 2).mean(0)


def draw(
  power: Float[np.ndarray, 'k k'], shape: tuple[int, int, int], rng: np.random.Generator
) -> Float32[np.ndarray, 'n h w']:
  """Noise of this spectrum, independent from slice to slice."""
  count, height, width = shape
  down, across = scipy.fft.fftfreq(height)[:, None], scipy.fft.fftfreq(width)[None, :]
  rows, columns = (np.rint(f * WINDOW).astype(int) % WINDOW for f in (down, across))
  amplitude = np.sqrt(power[rows, columns]) / WINDOW
  white = scipy.fft.fft2(rng.standard_normal((count, height, width)))
  return scipy.fft.ifft2(white * amplitude).real.astype(np.float32)
