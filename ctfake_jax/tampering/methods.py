"""Ways to change a place in a CT series, all by closed forms.

Each takes a `Place` and a random stream and returns HU of its box; what lies outside of
`Place.reach` stays, which `apply` sees to. Edges are as soft as the series' own, and what is put in
has the noise of its surroundings (`noise`).
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Bool, Float, Float32
from scipy import ndimage

from ctfake_jax.tampering import noise, shapes, sites
from ctfake_jax.tampering.sites import Site
from ctfake_jax.types import UserError

AROUND_DIAMETERS = 2.5  # what is looked at
USUAL_LUNG_HU = -850.0  # where a place has no lung round it
EDGE_PIXELS = 1.0  # over which a lesion's edge falls off
SOLID_HU, TEXTURE_HU = (-30.0, 70.0), 15.0
SHAPE_LIMITS = 0.6, 1.4  # of the sphere's radius: the rest is for the soft edge
LEAST_SCALE = 0.7  # of a nodule that is transplanted, to the diameter that is asked for
LESION_HU, MARGIN_MM = -600.0, 2.5  # of a nodule that is transplanted: what it is, and round it
TRIES = 64  # places that a copy may come from


@dataclasses.dataclass(frozen=True)
class Place:
  """A site in its surroundings.

  Attributes:
    hu: of the series.
    lung: of the series.
    spacing_mm: between slices, rows, columns.
    site: in the series.
    box: voxels that are looked at.
    offsets: of these from the site, mm.
  """

  hu: Float32[np.ndarray, 'n h w']
  lung: Bool[np.ndarray, 'n h w']
  spacing_mm: tuple[float, float, float]
  site: Site
  box: tuple[slice, slice, slice]
  offsets: Float[np.ndarray, 'a b c 3']

  @classmethod
  def of(
    cls,
    hu: Float32[np.ndarray, 'n h w'],
    lung: Bool[np.ndarray, 'n h w'],
    spacing_mm: tuple[float, float, float],
    site: Site,
  ) -> 'Place':
    """With all that methods look at."""
    reach = AROUND_DIAMETERS / 2 * site.diameter_mm
    return cls(hu, lung, spacing_mm, site, *sites.around(site.centre, reach, spacing_mm, hu.shape))

  @functools.cached_property
  def distance(self) -> Float[np.ndarray, 'a b c']:
    """From the site, mm."""
    return np.linalg.norm(self.offsets, axis=-1)

  @functools.cached_property
  def power(self) -> Float[np.ndarray, 'k k']:
    """Noise of the slices there."""
    return noise.spectrum(self.hu[self.box[0]])

  def voxels(self, mm: float) -> list[float]:
    """A length along slices, rows and columns, at least one voxel each."""
    return [max(mm, step) / step for step in self.spacing_mm]

  @property
  def own(self) -> Float32[np.ndarray, 'a b c']:
    """HU in the box."""
    return self.hu[self.box]

  @property
  def radius(self) -> float:
    """Of the lesion, mm."""
    return self.site.diameter_mm / 2

  @property
  def reach(self) -> Bool[np.ndarray, 'a b c']:
    """Where anything may change."""
    return self.distance <= sites.CHANGED_DIAMETERS * self.radius

  def soft(self, inner: float) -> Float[np.ndarray, 'a b c']:
    """1 within `inner` radii, falling to 0 at the end of `reach`."""
    outer = sites.CHANGED_DIAMETERS * self.radius
    part = np.clip((outer - self.distance) / max(outer - inner * self.radius, 1e-6), 0, 1)
    return part**2 * (3 - 2 * part)

  def noise(self, rng: np.random.Generator) -> Float32[np.ndarray, 'a b c']:
    """As soft tissue there has it."""
    a, b, c = self.own.shape
    return noise.draw(self.power, (a, b, c), rng)

  def base(self) -> Float[np.ndarray, 'a b c']:
    """A smooth continuation of the lung round the lesion into it."""
    ring = (self.distance > 1.1 * self.radius) & self.lung[self.box] & (self.own < sites.VESSEL_HU)
    sigma = self.voxels(self.radius / 1.5)
    weight = ndimage.gaussian_filter(ring.astype(np.float32), sigma) + 1e-6
    usual = float(np.median(self.own[ring])) if ring.any() else USUAL_LUNG_HU
    values = ndimage.gaussian_filter(np.where(ring, self.own - usual, 0), sigma) / weight
    return usual + values


Method = Callable[[Place, np.random.Generator], Float[np.ndarray, 'a b c']]


def sculpt(place: Place, rng: np.random.Generator) -> Float[np.ndarray, 'a b c']:
  """A solid nodule of a real one's irregularity; texture and noise of soft tissue there."""
  directions = place.offsets / np.maximum(place.distance, 1e-6)[..., None]
  shape = np.exp(shapes.log_radius(directions, rng))
  radius = place.radius * np.clip(shape, *SHAPE_LIMITS)
  width = EDGE_PIXELS * place.spacing_mm[2]
  share = 1 / (1 + np.exp(np.clip((place.distance - radius) / (width / 2), -30, 30)))
  coarse = place.voxels(0.3 * place.radius)
  texture = ndimage.gaussian_filter(rng.standard_normal(place.own.shape), coarse)
  texture *= TEXTURE_HU / max(float(texture.std()), 1e-6)
  lesion = rng.uniform(*SOLID_HU) + texture + place.noise(rng)
  return place.own + share * (lesion - place.own)


def transplant(place: Place, rng: np.random.Generator) -> Float[np.ndarray, 'a b c']:
  """A nodule from elsewhere in the series, scaled, blended in the gradient domain.

  P. Perez, M. Gangnet and A. Blake, Poisson image editing, ACM Trans Graph 22:313, 2003: the
  Laplacian of what is put in, the values of the series at the border.

  Raises:
    UserError: the series has no other nodule, or none of it fits.
  """
  donor = _donor(place, rng)
  scale = donor.diameter_mm / place.site.diameter_mm
  places = np.array(donor.centre) + place.offsets * scale / np.array(place.spacing_mm)
  where = np.moveaxis(places, -1, 0)
  lesion = ndimage.map_coordinates(place.hu, where, order=1, mode='nearest')
  in_lung = ndimage.map_coordinates(place.lung.astype(np.uint8), where, order=0)
  in_donors_lung = ndimage.binary_erosion(in_lung > 0, iterations=2, border_value=1)
  inside = place.reach & in_donors_lung & _grown((lesion > LESION_HU) & in_donors_lung, place)
  lesion = lesion + _noise_lost(place, lesion, rng)
  for axis in range(3):  # the border of the box is given
    ends = np.moveaxis(inside, axis, 0)
    ends[0] = ends[-1] = False
  if not inside.any():
    raise UserError('config.tamper.method = transplant: nothing of the nodule fits there')
  return _blend(place.own, lesion, inside)


def _grown(dense: Bool[np.ndarray, 'a b c'], place: Place) -> Bool[np.ndarray, 'a b c']:
  """What hangs together with the middle, and a margin round it."""
  parts, _ = ndimage.label(dense)
  near = np.bincount(parts[place.distance <= 0.5 * place.radius].ravel())[1:]
  if not near.size:
    return place.reach
  away = ndimage.distance_transform_edt(
    parts != int(np.argmax(near)) + 1, sampling=place.spacing_mm
  )
  return away <= MARGIN_MM


def _noise_lost(
  place: Place, resampled: Float[np.ndarray, 'a b c'], rng: np.random.Generator
) -> Float[np.ndarray, 'a b c']:
  """As strong as what interpolation took from the noise of these slices."""
  made = place.noise(rng)
  before, after = (_fine(values)[place.reach].var() for values in (place.own, resampled))
  own = max(float(_fine(made).var()), 1e-6)
  return made * np.sqrt(max(0.0, float(before - after)) / own)


def _fine(values: Float[np.ndarray, 'a b c']) -> Float[np.ndarray, 'a b c']:
  """What is finer than a pixel or two of a slice."""
  return values - ndimage.gaussian_filter(values, (0, 1, 1))


def _donor(place: Place, rng: np.random.Generator) -> Site:
  sizes = place.site.diameter_mm * LEAST_SCALE, place.site.diameter_mm / LEAST_SCALE
  apart = [
    site
    for site in sites.nodules(place.hu, place.lung, place.spacing_mm, sizes)
    if sites.apart(site, place.site, place.spacing_mm)
  ]
  if not apart:
    raise UserError(
      'config.tamper.method = transplant: the series has no nodule of '
      f'{sizes[0]:.0f} to {sizes[1]:.0f} mm elsewhere; take sculpt, or another diameter'
    )
  return apart[rng.integers(len(apart))]


def _blend(
  target: Float[np.ndarray, 'a b c'],
  source: Float[np.ndarray, 'a b c'],
  inside: Bool[np.ndarray, 'a b c'],
) -> Float[np.ndarray, 'a b c']:
  """What has the source's Laplacian inside and the target's values elsewhere.

  The difference from the source is harmonic inside: its Laplace equation is solved.
  """
  number = np.full(inside.shape, -1)
  number[inside] = np.arange(inside.sum())
  apart = (target - source).astype(np.float64)
  rows, columns, given = [], [], np.zeros(inside.sum())
  for axis in range(3):
    for step in (-1, 1):
      beside = np.roll(number, -step, axis)[inside]
      known = np.roll(apart, -step, axis)[inside]
      own = number[inside]
      rows.append(own[beside >= 0])
      columns.append(beside[beside >= 0])
      given += np.where(beside < 0, known, 0)
  size = len(given)
  links = scipy.sparse.coo_array(
    (np.ones(sum(map(len, rows))), (np.concatenate(rows), np.concatenate(columns))), (size, size)
  ).tocsr()
  laplace = 6 * scipy.sparse.eye_array(size, format='csr') - links
  found, failed = scipy.sparse.linalg.cg(laplace, given, rtol=1e-5, maxiter=2000)
  assert not failed, 'the Laplace equation of a sphere converges'
  blended = target.astype(np.float64).copy()
  blended[inside] = source[inside] + found
  return blended


def fill(place: Place, rng: np.random.Generator) -> Float[np.ndarray, 'a b c']:
  """The lung round a lesion continued into it, with the fine structure of lung elsewhere."""
  donor = _elsewhere(place, rng)
  fine = donor - ndimage.gaussian_filter(donor, place.voxels(place.radius / 1.5))
  share = place.soft(1.1)
  return place.own + share * (place.base() + fine - place.own)


def copy_move(place: Place, rng: np.random.Generator) -> Float[np.ndarray, 'a b c']:
  """Lung from elsewhere in the series, as it is."""
  return place.own + place.soft(1.2) * (_elsewhere(place, rng) - place.own)


def renoise(place: Place, rng: np.random.Generator) -> Float[np.ndarray, 'a b c']:
  """Denoised, which takes what is finer than a few voxels, and given noise again."""
  smooth = ndimage.median_filter(place.own, size=(1, 5, 5))
  smooth = ndimage.gaussian_filter(smooth, (0, 1.5, 1.5))
  inside = place.reach
  lost = float((place.own - smooth)[inside].std())
  made = place.noise(rng)
  made *= lost / max(float(made.std()), 1e-6)
  return place.own + place.soft(0.8) * (smooth + made - place.own)


def _elsewhere(place: Place, rng: np.random.Generator) -> Float32[np.ndarray, 'a b c']:
  """A box of as many voxels, as airy as there is among places of the same lung."""
  size, shape = np.array(place.own.shape), np.array(place.hu.shape)
  low = np.array([s.start for s in place.box])
  best, value = None, np.inf
  core = place.distance <= sites.CHANGED_DIAMETERS * place.radius
  for _ in range(TRIES):
    shift = rng.uniform(-1, 1, 3) * np.array([2.0, 6.0, 6.0]) * place.site.diameter_mm
    start = low + np.rint(shift / np.array(place.spacing_mm)).astype(int)
    if (start < 0).any() or (start + size > shape).any():
      continue
    if np.linalg.norm(shift) < sites.CHANGED_DIAMETERS * place.site.diameter_mm:
      continue
    box = tuple(slice(a, a + n) for a, n in zip(start.tolist(), size.tolist()))
    outside = 1 - place.lung[box][core].mean()
    dense = (place.hu[box][core] > sites.VESSEL_HU).mean()
    if outside + dense < value:
      best, value = place.hu[box], outside + dense
  return place.own if best is None else best


# Of each action, the ways to it; the first is usual.
METHODS: dict[str, dict[str, Method]] = {
  'inject': {'sculpt': sculpt, 'transplant': transplant},
  'remove': {'fill': fill, 'copy_move': copy_move, 'renoise': renoise},
  'copy_move': {'copy_move': copy_move},
}


def apply(method: Method, place: Place, rng: np.random.Generator) -> Float32[np.ndarray, 'n h w']:
  """The series' HU after the change; outside of the place's reach they are as before."""
  changed = place.hu.copy()
  made = method(place, rng)
  changed[place.box] = np.where(place.reach, made, place.own)
  return changed


def contrast_to_noise(hu: Float32[np.ndarray, 'n h w'], place: Place) -> dict[str, float]:
  """Of a lesion in a series against the lung round it in the series before the change.

  Returns:
    lesion_hu, of its middle; lung_hu and noise_hu, median and standard deviation of the lung round
    it; contrast_to_noise of these; volume_mm3 of what is nearer to the lesion's HU than the lung's.
  """
  ring = (place.distance > sites.CHANGED_DIAMETERS * place.radius) & place.lung[place.box]
  core = place.distance <= max(0.5 * place.radius, float(place.distance.min()))
  around = place.own[ring & (place.own < sites.VESSEL_HU)]
  lung = float(np.median(around)) if around.size else float('nan')
  noise_hu = float(around.std()) if around.size else float('nan')
  own = hu[place.box]
  lesion = float(own[core].mean())
  nearer = place.reach & (np.abs(own - lesion) < np.abs(own - lung))
  return {
    'lesion_hu': lesion,
    'lung_hu': lung,
    'noise_hu': noise_hu,
    'contrast_to_noise': (lesion - lung) / noise_hu if noise_hu else float('nan'),
    'volume_mm3': float(nearer.sum()) * float(np.prod(place.spacing_mm)),
  }
