"""Kinds of local edits that the forensic network learns from, made on the fly in small scenes.

The attacks of `tampering.methods`, and beside them plainer traces that many attacks leave: content
taken from elsewhere and turned, resampled, decoded from a coarser grid, denoised, given noise. What
a network learns from many of these holds for attacks that it never saw; an imitation of one attack
does not. Every kind is a `tampering.methods.Method`.
"""

import numpy as np
from jaxtyping import Float, Float32
from scipy import ndimage

from ctfake_jax.tampering import methods
from ctfake_jax.tampering.methods import Method, Place

CORE = 0.5, 1.3  # radii of a lesion within which an edit is whole
CUBE = 0.87  # half the side of a cube within a place's reach, of the reach
EDGE_VOXELS = 0.5, 4.0  # over which an edit fades
FACTORS = 1.3, 3.0  # of the coarser grid of what a generator decodes
TURN_DEGREES, SCALES = 180.0, (0.7, 1.4)
STRENGTHS = 0.4, 1.2  # of noise that is put in, of the noise there
TRIES = 8


def share(place: Place, rng: np.random.Generator) -> Float[np.ndarray, 'a b c']:
  """How much of an edit shows: a soft sphere, cube or irregular body."""
  form = rng.integers(3)
  if form == 0:
    return place.soft(rng.uniform(*CORE))
  sigma = [0.0, *[rng.uniform(*EDGE_VOXELS)] * 2]
  if form == 1:
    half = CUBE * methods.sites.CHANGED_DIAMETERS * place.radius * rng.uniform(0.5, 1)
    body = (np.abs(place.offsets) <= half).all(-1)
  else:
    field = ndimage.gaussian_filter(
      rng.standard_normal(place.own.shape), place.voxels(place.radius / 3)
    )
    spread = max(float(field.std()), 1e-9)
    body = place.distance < place.radius * (1 + 0.3 * field / spread)
  return ndimage.gaussian_filter(body.astype(np.float32), sigma)


def _mixed(
  place: Place, content: Float[np.ndarray, 'a b c'], rng: np.random.Generator
) -> Float[np.ndarray, 'a b c']:
  return place.own + share(place, rng) * (content - place.own)


def graft(place: Place, rng: np.random.Generator) -> Float[np.ndarray, 'a b c']:
  """Whatever lies elsewhere in the scene, turned and scaled: vessels, wall, lung, nodules."""
  for _ in range(TRIES):
    content = _turned(place, _elsewhere(place, rng), rng)
    if abs(float((content - place.own)[place.reach].mean())) > 5:
      break
  return _mixed(place, content, rng)


def lesion(place: Place, rng: np.random.Generator) -> Float[np.ndarray, 'a b c']:
  """A body of another density than the lung's, with no noise or any, solid or ground glass."""
  level = rng.uniform(-700, 100)
  smooth = rng.uniform(0, 1) * (place.own - ndimage.gaussian_filter(place.own, (0, 1, 1)))
  content = level + rng.uniform(0, 1.2) * place.noise(rng) + smooth
  return _mixed(place, content, rng)


def resampled(place: Place, rng: np.random.Generator) -> Float[np.ndarray, 'a b c']:
  """What is there, moved by parts of a pixel, turned or scaled."""
  return _mixed(place, _turned(place, np.array(place.site.centre), rng, small=True), rng)


def decoded(place: Place, rng: np.random.Generator) -> Float[np.ndarray, 'a b c']:
  """What a decoder makes of the place, with or without a lesion, from a coarser grid; noise put in.

  In-painting generators work on cubes of another spacing, and their noise is touched up.
  """
  wanted = place.own
  if rng.random() < 0.4:
    wanted = methods.sculpt(place, rng)
  elif rng.random() < 0.5:
    inside = place.soft(0.9)
    wanted = wanted + inside * (place.base() - wanted)
  content = coarse(wanted, rng.uniform(*FACTORS), int(rng.integers(1, 4)))
  if rng.random() < 0.6:
    content = content + _noise(place, content, rng)
  return _mixed(place, content, rng)


def smoothed(place: Place, rng: np.random.Generator) -> Float[np.ndarray, 'a b c']:
  """Denoised and left so."""
  sigma = rng.uniform(0.6, 2.0)
  if rng.random() < 0.5:
    content = ndimage.gaussian_filter(place.own, (0, sigma, sigma))
  else:
    content = ndimage.median_filter(place.own, size=(1, *[int(rng.choice([3, 5]))] * 2))
  return _mixed(place, content, rng)


def noised(place: Place, rng: np.random.Generator) -> Float[np.ndarray, 'a b c']:
  """With more noise than its surroundings, white or as tissue there has it."""
  made = place.noise(rng)
  if rng.random() < 0.5:
    made = rng.standard_normal(made.shape) * made.std()
  return _mixed(place, place.own + rng.uniform(0.5, 1.5) * made, rng)


def coarse(
  hu: Float[np.ndarray, 'k h w'], factor: float, order: int
) -> Float32[np.ndarray, 'k h w']:
  """Averaged to pixels of `factor` times the side, and interpolated back by a spline."""
  height, width = hu.shape[1:]
  small = np.maximum(2, np.rint(np.array([height, width]) / factor)).astype(int)
  soft = ndimage.gaussian_filter(hu.astype(np.float32), (0, 0.4 * factor, 0.4 * factor))
  down, across = (np.linspace(0, n - 1, m) for n, m in zip((height, width), small))
  rows, columns = (np.linspace(0, m - 1, n) for n, m in zip((height, width), small))
  shrunk = (_at(plane, down, across, order=1) for plane in soft)
  return np.stack([_at(plane, rows, columns, order=order) for plane in shrunk])


def _at(plane: np.ndarray, rows: np.ndarray, columns: np.ndarray, order: int) -> np.ndarray:
  places = np.stack(np.meshgrid(rows, columns, indexing='ij'))
  return ndimage.map_coordinates(plane, places, order=order, mode='nearest')


def _noise(
  place: Place, content: Float[np.ndarray, 'a b c'], rng: np.random.Generator
) -> Float[np.ndarray, 'a b c']:
  """About as strong as what `content` lacks of the noise there."""
  lost = float((place.own - content)[place.reach].std())
  made = place.noise(rng)
  if rng.random() < 0.3:
    made = rng.standard_normal(made.shape)
  return rng.uniform(*STRENGTHS) * made * min(lost, 60.0) / max(float(made.std()), 1e-6)


def _elsewhere(place: Place, rng: np.random.Generator) -> np.ndarray:
  """A slice, row and column of the scene."""
  size = np.array(place.hu.shape)
  there = rng.uniform(0.1, 0.9, 3) * (size - 1)
  there[0] = place.site.centre[0]
  return there


def _turned(
  place: Place, centre: np.ndarray, rng: np.random.Generator, small: bool = False
) -> Float[np.ndarray, 'a b c']:
  """The scene about `centre`, turned and scaled within its slices."""
  angle = np.deg2rad(rng.uniform(-1, 1) * (6 if small else TURN_DEGREES))
  scale = np.exp(rng.uniform(*np.log(SCALES)) * (0.3 if small else 1))
  cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
  move = rng.uniform(-1.5, 1.5, 2) if small else np.zeros(2)
  steps = place.offsets / np.array(place.spacing_mm)
  rows = centre[1] + move[0] + cosine * steps[..., 1] - sine * steps[..., 2]
  columns = centre[2] + move[1] + sine * steps[..., 1] + cosine * steps[..., 2]
  order = int(rng.choice([1, 3]))
  slices = range(*place.box[0].indices(len(place.hu)))
  return np.stack([
    ndimage.map_coordinates(place.hu[z], [rows[i], columns[i]], order=order, mode='reflect')
    for i, z in enumerate(slices)
  ])  # fmt: skip


# By name; `forensics.kinds` picks among them, the bench leaves one out.
KINDS: dict[str, Method] = {
  'sculpt': methods.sculpt,
  'fill': methods.fill,
  'copy_move': methods.copy_move,
  'renoise': methods.renoise,
  'graft': graft,
  'lesion': lesion,
  'resampled': resampled,
  'decoded': decoded,
  'smoothed': smoothed,
  'noised': noised,
}
