"""Harmless changes of whole slices: what scanners, archives and viewers do, no sign of an edit.

Both members of a training pair get the same, so that none of them tells edited from untouched.
Each takes slices f32[k, h, w] in HU and a random stream.
"""

from collections.abc import Callable

import numpy as np
import scipy.fft
from jaxtyping import Float32
from scipy import ndimage

Slices = Float32[np.ndarray, 'k h w']
Change = Callable[[Slices, np.random.Generator], Slices]
BLOCK = 8  # of a lossy codec
FACTORS, TURN_DEGREES = (0.75, 1.35), 4.0


def resampled(hu: Slices, rng: np.random.Generator) -> Slices:
  """To another field of view, and turned a little."""
  factor, angle = np.exp(rng.uniform(*np.log(FACTORS))), np.deg2rad(rng.normal() * TURN_DEGREES)
  return turned(hu, factor, angle, order=int(rng.choice([1, 1, 3])))


def turned(hu: Slices, factor: float, angle: float, order: int) -> Slices:
  """Enlarged and turned about the middle, radians; outside, the edge goes on."""
  matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / factor
  middle = (np.array(hu.shape[1:]) - 1) / 2
  offset = middle - matrix @ middle
  return np.stack([
    ndimage.affine_transform(p, matrix, offset, order=order, mode='nearest') for p in hu
  ]).astype(np.float32)  # fmt: skip


def kernel(hu: Slices, rng: np.random.Generator) -> Slices:
  """A softer or a sharper one."""
  sigma = rng.uniform(0.5, 1.0)
  soft = ndimage.gaussian_filter(hu, (0, sigma, sigma))
  amount = rng.choice([rng.uniform(0.3, 1.0), rng.uniform(-1.2, -0.3)])
  return (hu + amount * (soft - hu)).astype(np.float32)


def lossy(hu: Slices, rng: np.random.Generator) -> Slices:
  """Quantised cosine coefficients of blocks, as lossy JPEG does, or steps of HU."""
  step = np.exp(rng.uniform(np.log(4), np.log(60)))
  if rng.random() < 0.2:
    return (np.rint(hu / (step / 4)) * (step / 4)).astype(np.float32)
  count, height, width = hu.shape
  padded = np.pad(hu, ((0, 0), (0, -height % BLOCK), (0, -width % BLOCK)), mode='edge')
  rows, columns = padded.shape[1] // BLOCK, padded.shape[2] // BLOCK
  blocks = padded.reshape(count, rows, BLOCK, columns, BLOCK)
  found = scipy.fft.dctn(blocks, axes=(2, 4), norm='ortho')
  slope = rng.uniform(0, 0.5)
  rise = 1 + slope * np.add.outer(np.arange(BLOCK), np.arange(BLOCK))[:, None, :]
  found = np.rint(found / (step * rise)) * (step * rise)
  smooth = scipy.fft.idctn(found, axes=(2, 4), norm='ortho').reshape(padded.shape)
  return smooth[:, :height, :width].astype(np.float32)


def denoised(hu: Slices, rng: np.random.Generator) -> Slices:
  """By a median, a Gaussian or a filter that keeps edges, in part."""
  way = rng.integers(3)
  if way == 0:
    soft = ndimage.median_filter(hu, size=(1, 3, 3))
  elif way == 1:
    sigma = rng.uniform(0.5, 1.2)
    soft = ndimage.gaussian_filter(hu, (0, sigma, sigma))
  else:  # Lee, IEEE PAMI 2:165, 1980: local mean, and what varies more than noise does
    mean = ndimage.uniform_filter(hu, (0, 5, 5))
    variance = np.maximum(ndimage.uniform_filter(hu**2, (0, 5, 5)) - mean**2, 0)
    noise = float(np.median(variance)) * rng.uniform(0.5, 2)
    soft = mean + (hu - mean) * np.clip((variance - noise) / np.maximum(variance, 1e-6), 0, 1)
  return (hu + rng.uniform(0.4, 1.0) * (soft - hu)).astype(np.float32)


def noisy(hu: Slices, rng: np.random.Generator) -> Slices:
  """With noise of 5 to 80 HU, of a band as reconstruction kernels have."""
  made = rng.standard_normal(hu.shape)
  sigma = rng.uniform(0.0, 1.2)
  made = ndimage.gaussian_filter(made, (0, sigma, sigma))
  if rng.random() < 0.5:
    made = made - ndimage.gaussian_filter(made, (0, 3 * sigma + 1, 3 * sigma + 1))
  size = np.exp(rng.uniform(np.log(5), np.log(80)))
  return (hu + made * size / max(float(made.std()), 1e-6)).astype(np.float32)


def scaled(hu: Slices, rng: np.random.Generator) -> Slices:
  """Another calibration of the scanner."""
  return (hu * rng.uniform(0.96, 1.04) + rng.uniform(-25, 25)).astype(np.float32)


def thicker(hu: Slices, rng: np.random.Generator) -> Slices:
  """Means over neighbours."""
  weight = rng.uniform(0.1, 0.33)
  if len(hu) == 1:
    return hu
  return ndimage.correlate1d(hu, [weight, 1 - 2 * weight, weight], axis=0, mode='nearest')


def streaked(hu: Slices, rng: np.random.Generator) -> Slices:
  """Streaks as of metal or motion: bands that fade across."""
  rows, columns = np.mgrid[: hu.shape[1], : hu.shape[2]] / max(hu.shape[1:])
  angle, added = rng.uniform(0, np.pi), np.zeros(hu.shape[1:])
  for _ in range(int(rng.integers(1, 6))):
    turn = angle + rng.normal() * 0.3
    across = rows * np.cos(turn) + columns * np.sin(turn) - rng.uniform(-0.5, 1.2)
    added += rng.normal() * 60 * np.exp(-0.5 * (across / rng.uniform(0.004, 0.04)) ** 2)
  return (hu + added).astype(np.float32)


CHANGES: dict[str, Change] = {
  'resampled': resampled,
  'kernel': kernel,
  'lossy': lossy,
  'denoised': denoised,
  'noisy': noisy,
  'scaled': scaled,
  'thicker': thicker,
  'streaked': streaked,
}
