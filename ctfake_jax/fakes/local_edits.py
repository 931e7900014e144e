"""Local edits of real slices, with the mask of what was changed.

Three ways to fill an irregular patch inside the chest: with another slice's tissue; with a smooth
continuation of what surrounds it (biharmonic inpainting); with a copy of another place of the same
slice. What is put in has an edge between hard and softly blended. Outside the mask an edited image
equals its original.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from skimage.restoration import inpaint_biharmonic

from ctfake_jax.runtime import progress_bar, streams
from ctfake_jax.types import ImageSet

# Radii of a patch as shares of the side: from a large nodule to a lobe.
SMALLEST, LARGEST = 0.07, 0.17
# Centres lie within this share of the side about the middle; the rest is often air and table.
CENTRAL = 0.5
FEATHER = 0.03  # widest standard deviation of a blended edge, share of the side
LEAST_CHANGE = 0.04  # root mean square within the mask, of a range of 2; less is hardly an edit
ATTEMPTS = 20

Edit = Callable[[np.ndarray, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def random_mask(side: int, rng: np.random.Generator) -> Bool[np.ndarray, 'side side']:
  """One ellipse with a wavy edge, away from the border."""
  while True:
    mask = _wavy_ellipse(side, rng)
    if mask[1:-1, 1:-1].sum() == mask.sum():
      return mask


def _wavy_ellipse(side: int, rng: np.random.Generator) -> np.ndarray:
  radii = rng.uniform(SMALLEST, LARGEST, 2) * side
  centre = side / 2 + rng.uniform(-CENTRAL / 2, CENTRAL / 2, 2) * side
  y, x = np.mgrid[:side, :side] - centre[:, None, None]
  turn = rng.uniform(0, np.pi)
  along, across = y * np.cos(turn) + x * np.sin(turn), x * np.cos(turn) - y * np.sin(turn)
  angle = np.arctan2(along, across)
  waves = sum(
    rng.normal(0, 0.12) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5)
  )
  return (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= (1 + waves) ** 2


def blended(image, mask, other, rng):
  """Another slice's tissue under the mask, its mean fitted."""
  fitted = other + (image[mask].mean() - other[mask].mean())
  return put_in(image, mask, fitted, rng)


def inpainted(image, mask, other, rng):
  """What surrounds the mask, smoothly continued."""
  del other, rng
  return inpaint_biharmonic(image, mask)


def copied(image, mask, other, rng):
  """Another place of the same slice, shifted by one to three times the patch's size."""
  del other
  rows, columns = np.nonzero(mask)
  height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
  angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(1, 3)
  shift = (round(far * height * np.sin(angle)), round(far * width * np.cos(angle)))
  return put_in(image, mask, np.roll(image, shift, (0, 1)), rng)


def put_in(image, mask, patch, rng):
  """The patch under the mask, its edge feathered inwards by a random width."""
  width = rng.uniform(0, FEATHER) * len(image)
  distance = ndimage.distance_transform_edt(mask)
  weight = 1 - np.exp(-0.5 * (distance / max(width, 1e-3)) ** 2)
  return image + weight * (patch - image)


EDITS: dict[str, Edit] = {
  'blended': blended,
  'inpainted': inpainted,
  'copied': copied,
}


WITH_DONOR = ('blended',)  # edits that put another image's tissue in


class Edited(NamedTuple):
  """Edited images.

  Attributes:
    images: f32[m, h, w, 1] in [-1, 1].
    masks: bool[m, h, w], what was changed.
    donors: int[m], rows of the images whose tissue was put in; None for edits without one.
  """

  images: Float[np.ndarray, 'n h w 1']
  masks: Bool[np.ndarray, 'n h w']
  donors: Int[np.ndarray, ' n'] | None


def edit(images: ImageSet, rows: Int[np.ndarray, ' m'], kind: str, seed: int) -> Edited:
  """The images at `rows`, each with one patch changed.

  Args:
    images: a blended patch comes from another of these.
    rows: int[m].
    kind: a key of `EDITS`.
    seed: of masks, patches and their sources.
  """
  pixels = np.asarray(images.images)[..., 0]
  edited, masks, donors = [], [], []
  for i, row in enumerate(
    progress_bar.bar(f'editing, {kind}', rows, patience=progress_bar.PATIENCE)
  ):
    rng = streams.generator(seed, 'edit', i)
    result, mask, donor = _visible(EDITS[kind], pixels, int(row), rng)
    edited.append(result)
    masks.append(mask)
    donors.append(donor)
  return Edited(
    np.stack(edited)[..., None].astype(np.float32),
    np.stack(masks),
    np.array(donors) if kind in WITH_DONOR else None,
  )


def _visible(change: Edit, pixels: np.ndarray, row: int, rng: np.random.Generator):
  """The first of some random edits that changes enough to be seen, or the strongest of them."""
  image, strongest = pixels[row], (-1.0, pixels[row], np.zeros(pixels[row].shape, bool), row)
  for _ in range(ATTEMPTS):
    mask = random_mask(len(image), rng)
    donor = int(rng.integers(len(pixels)))
    result = np.where(mask, np.clip(change(image, mask, pixels[donor], rng), -1, 1), image)
    strength = float(np.sqrt(((result - image)[mask] ** 2).mean()))
    if strength > strongest[0]:
      strongest = (strength, result, mask, donor)
    if strength >= LEAST_CHANGE:
      break
  return strongest[1:]
