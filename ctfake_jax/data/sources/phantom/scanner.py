"""A simulated CT scanner: ellipses in, reconstructed slices in HU out.

Enters: float32[b, k, 6] ellipses, columns x, y, semi-axis a, semi-axis b (all mm), angle of the
axis a (radians, from x towards y) and the HU that the ellipse adds to what lies under it; x runs
to the image's right, y down, the origin is the centre of rotation. Leaves: float32[b, size, size]
HU. In between: exact parallel projections, Poisson counts, filtered back-projection.

The geometry is fixed in units of the pixel (a detector bin is half a pixel wide), so that
scanners of any field of view share one compiled program.

Source: A. C. Kak and M. Slaney, Principles of Computerized Tomographic Imaging, IEEE Press 1988,
section 3.1 (projection of an ellipse), 3.3 (filtered back-projection), 5.2 (noise).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Key

# Linear attenuation of water at 70 keV, about the effective energy of a filtered 120 kVp beam
# (NIST XCOM: 0.193 cm2/g).
WATER_PER_MM = 0.0193
# Unattenuated photons a reading for each mGy of CTDIvol in a 512-pixel scan. Our choice: it puts
# the noise in a 200 mm disc of water at 6 HU (scanner A) to 28 HU (scanner D).
PHOTONS_PER_MGY = 1e5
BINS_PER_PIXEL = 2
# The detector is this much wider than the field of view: it must see the whole body, and a
# square field of view reaches out to sqrt(2) of its width.
DETECTOR_WIDTH = 1.5
VIEWS_PER_PIXEL = 2
# Apodisation of the ramp: whether it is a Hann window, and where it ends, in cycles per pixel.
KERNELS = {'soft': (True, 1.0), 'sharp': (False, 0.6)}
# Abramowitz and Stegun, Handbook of Mathematical Functions, 4.4.46, highest power first.
ARCSIN_COEFFICIENTS = (
  -0.0012624911,
  0.0066700901,
  -0.0170881256,
  0.0308918810,
  -0.0501743046,
  0.0889789874,
  -0.2145988016,
  1.5707963050,
)
# 12 stored bits with an intercept of -1024.
HU_RANGE = (-1024.0, 3071.0)


@dataclasses.dataclass(frozen=True)
class Scanner:
  """How a scanner is set up.

  Attributes:
    dose_mgy: CTDIvol in mGy.
    kernel: a key of `KERNELS`.
    field_of_view_mm: side of the reconstructed square.
  """

  dose_mgy: float
  kernel: str
  field_of_view_mm: float


# A: about the diagnostic reference level of an unenhanced chest, 9.3 mGy over 104,272 examinations
# (Diagn Interv Radiol 30:205, 2024). C: the limit of lung-cancer screening, 3.0 mGy for a standard
# patient (Centers for Medicare and Medicaid Services, decision memo CAG-00439N, 2015). D lies
# outside what A to C span in dose and field of view: the control of another scanner.
SCANNERS = {
  'A': Scanner(9.0, 'soft', 360.0),
  'B': Scanner(6.0, 'sharp', 380.0),
  'C': Scanner(3.0, 'soft', 400.0),
  'D': Scanner(1.0, 'sharp', 450.0),
}


def geometry(size: int) -> tuple[Float32[np.ndarray, ' views'], Float32[np.ndarray, ' edges']]:
  """Angles in radians, and edges of detector bins in bins, one more than these."""
  views = VIEWS_PER_PIXEL * size
  bins = round(DETECTOR_WIDTH * BINS_PER_PIXEL * size)
  angles = np.arange(views) * np.pi / views
  return angles.astype(np.float32), (np.arange(bins + 1) - bins / 2).astype(np.float32)


def photons_per_reading(
  dose_mgy: Float32[Array | np.ndarray, ' b'], size: int
) -> Float32[Array | np.ndarray, ' b']:
  """Unattenuated photons a reading.

  The variance of a pixel goes with size / photons (Kak and Slaney, section 5.2, with views and
  bins in proportion to the size), so photons in proportion to the size keep the noise in HU that
  a 512-pixel scan of this dose has.
  """
  return PHOTONS_PER_MGY * dose_mgy * (size / 512)


def _arcsin(u: jax.Array | np.ndarray) -> jax.Array:
  """Arcsine within 2e-8 (Abramowitz and Stegun 4.4.46); XLA's takes 25 times longer on a CPU."""
  size = jnp.abs(u)
  polynomial = jnp.zeros_like(u)
  for coefficient in ARCSIN_COEFFICIENTS:
    polynomial = polynomial * size + coefficient
  return jnp.sign(u) * (np.pi / 2 - jnp.sqrt(1 - size) * polynomial)


def project(
  ellipses: Float32[Array | np.ndarray, 'b k 6'],
  bin_mm: Float32[Array | np.ndarray, ' b'],
  size: int,
) -> Float32[Array, 'b views bins']:
  """Line integrals of attenuation, each the exact mean over the width of its detector bin.

  The mean over a bin is what a detector measures; with t from the centre of an ellipse, and
  s the half-width of its shadow, the chord 2 a b sqrt(s^2 - t^2) / s^2 integrates to
  a b (u sqrt(1 - u^2) + asin u), u = t / s.

  Args:
    ellipses: see the module's head.
    bin_mm: width of a detector bin.
    size: pixels on a side of the image that will be reconstructed.

  Returns:
    Without unit.
  """
  angles, edges = geometry(size)
  edges_mm = bin_mm[:, None, None] * edges[None, None, :]

  def add(area, ellipse):
    x, y, a, b, tilt, hu = (value[:, None] for value in ellipse)
    view = angles[None, :]
    centre = x * jnp.cos(view) + y * jnp.sin(view)
    half = jnp.sqrt((a * jnp.cos(view - tilt)) ** 2 + (b * jnp.sin(view - tilt)) ** 2)
    u = jnp.clip((edges_mm - centre[..., None]) / half[..., None], -1.0, 1.0)
    primitive = u * jnp.sqrt(1 - u**2) + _arcsin(u)
    return area + (hu / 1000 * a * b)[..., None] * primitive, None

  start = jnp.zeros((ellipses.shape[0], len(angles), len(edges)), jnp.float32)
  area, _ = jax.lax.scan(add, start, jnp.moveaxis(ellipses, 0, -1))
  return WATER_PER_MM * jnp.diff(area, axis=-1) / bin_mm[:, None, None]


def detect(
  keys: Key[Array, ' b'],
  integrals: Float32[Array | np.ndarray, 'b views bins'],
  photons: Float32[Array | np.ndarray, ' b'],
) -> Float32[Array, 'b views bins']:
  """The line integrals as a detector that counts photons measures them.

  Args:
    keys: of the noise.
    integrals: without unit.
    photons: unattenuated photons a reading.

  Returns:
    Without unit; a reading without a photon counts as one, to keep the logarithm.
  """
  photons = photons[:, None, None]
  expected = photons * jnp.exp(-integrals)
  normal = jax.vmap(lambda key: jax.random.normal(key, integrals.shape[1:]))(keys)
  # Cornish and Fisher's expansion of the Poisson quantile: mean, variance and skewness are right
  # to a few per cent from 2 photons on, and it is 60 times faster than jax.random.poisson here.
  counts = jnp.round(expected + jnp.sqrt(expected) * normal + (normal**2 - 1) / 6)
  return -jnp.log(jnp.maximum(counts, 1) / photons)


@functools.cache
def ramp_filters(bins: int) -> Float32[np.ndarray, 'kernels frequencies']:
  """Responses of the band-limited ramp (Kak and Slaney, eq. 61) under each of `KERNELS`.

  Returns:
    n // 2 + 1 frequencies, for signals padded to n, the power of two at or over 2 * bins
    that keeps the circular convolution from wrapping round.
  """
  length = 2 ** int(np.ceil(np.log2(2 * bins)))
  n = np.fft.fftfreq(length, 1 / length)
  taps = np.where(n % 2 == 1, -1 / (np.pi * np.where(n == 0, 1, n)) ** 2, 0.0)
  taps[0] = 0.25
  ramp = np.fft.rfft(taps).real
  frequency = np.fft.rfftfreq(length) * BINS_PER_PIXEL
  windows = [
    np.where(frequency < end, 0.5 + 0.5 * np.cos(np.pi * frequency / end) if hann else 1.0, 0.0)
    for hann, end in KERNELS.values()
  ]
  return (ramp * np.stack(windows)).astype(np.float32)


def back_project(
  filtered: Float32[Array, 'b views bins'], size: int
) -> Float32[Array, 'b size size']:
  """Smears filtered projections back over the image, with linear interpolation between bins.

  Args:
    filtered: projections.
    size: pixels on a side.

  Returns:
    The mean over views times pi.
  """
  angles, edges = geometry(size)
  grid = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * BINS_PER_PIXEL
  x, y = np.tile(grid, size), np.repeat(grid, size)

  # The batch goes last: each pixel then gathers contiguous rows.
  def add(image, view):
    angle, reading = view
    position = x * jnp.cos(angle) + y * jnp.sin(angle) - edges[0] - 0.5
    left = jnp.floor(position).astype(jnp.int32)
    weight = (position - left)[:, None]
    low, high = (jnp.take(reading, left + i, axis=0, mode='clip') for i in (0, 1))
    return image + low * (1 - weight) + high * weight, None

  start = jnp.zeros((size * size, filtered.shape[0]), jnp.float32)
  image, _ = jax.lax.scan(add, start, (angles, jnp.moveaxis(filtered, 0, -1)))
  return jnp.moveaxis(image, -1, 0).reshape(-1, size, size) * (np.pi / len(angles))


def reconstruct(
  integrals: Float32[Array | np.ndarray, 'b views bins'],
  bin_mm: Float32[Array | np.ndarray, ' b'],
  kernels: Int[Array | np.ndarray, ' b'],
  size: int,
) -> Float32[Array, 'b size size']:
  """Filtered back-projection.

  Args:
    integrals: without unit.
    bin_mm: width of a detector bin.
    kernels: positions in `KERNELS`.
    size: pixels on a side.

  Returns:
    HU within `HU_RANGE`.
  """
  bins = integrals.shape[-1]
  response = jnp.asarray(ramp_filters(bins))[kernels][:, None, :]
  length = 2 * (response.shape[-1] - 1)
  filtered = jnp.fft.irfft(jnp.fft.rfft(integrals, length) * response, length)[..., :bins]
  attenuation = back_project(filtered, size) / bin_mm[:, None, None]
  return jnp.clip(1000 * (attenuation / WATER_PER_MM - 1), *HU_RANGE)


# A scan without optimisation takes ten times longer, so it has them even where a process goes
# without, as tests do.
OPTIMISED = {'xla_backend_optimization_level': 3, 'xla_llvm_disable_expensive_passes': False}


@functools.partial(jax.jit, static_argnames='size', compiler_options=OPTIMISED)
def scan(
  keys: Key[Array, ' b'],
  ellipses: Float32[Array | np.ndarray, 'b k 6'],
  field_of_view_mm: Float32[Array | np.ndarray, ' b'],
  dose_mgy: Float32[Array | np.ndarray, ' b'],
  kernels: Int[Array | np.ndarray, ' b'],
  *,
  size: int,
) -> Float32[Array, 'b size size']:
  """One noisy scan of each of b phantoms.

  Args:
    keys: one for the noise of each slice.
    ellipses: see the module's head.
    field_of_view_mm: side of the reconstructed square.
    dose_mgy: CTDIvol.
    kernels: positions in `KERNELS`.
    size: pixels on a side.

  Returns:
    HU within `HU_RANGE`.
  """
  bin_mm = field_of_view_mm / (size * BINS_PER_PIXEL)
  integrals = project(ellipses, bin_mm, size)
  measured = detect(keys, integrals, photons_per_reading(dose_mgy, size))
  return reconstruct(measured, bin_mm, kernels, size)
