"""Edits of whole slices of untouched series, and how well a map finds them.

A place is what lies within `REACH_MM` of a point, and its value the highest log odds there. An
edited place is compared with the others of the lung of the same slice, so that how one source
differs from another has no say.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from ctfake_jax.forensics.examine import Examined, Triple, frame_of, squares
from ctfake_jax.forensics.pairs import changed_shares, whole
from ctfake_jax.forensics.series import above
from ctfake_jax.forensics.volumes import REAL_HU, Volume
from ctfake_jax.models.forensic_net import STRIDE
from ctfake_jax.tampering import sites
from ctfake_jax.tampering.methods import Method, Place
from ctfake_jax.types import UserError

REACH_MM = 16.0
DIAMETERS_MM = 6.0, 30.0
TRIES = 20
LEAST_CHANGED_MM2 = 20.0  # of the middle slice


Count = Callable[[Volume], int]  # of slices that are taken from a series


@dataclasses.dataclass(frozen=True)
class Edited:
  """A slice with one edit.

  Attributes:
    triple: it and its neighbours, edited with it.
    kind: of the edit.
    patient: whose slice it was.
    centre: row and column of the edit.
    changed: pixels.
  """

  triple: Triple
  kind: str
  patient: str
  centre: tuple[float, float]
  changed: Bool[np.ndarray, 'h w']


def edited_slices(
  volumes: Sequence[Volume],
  kinds: dict[str, Method],
  of_each: Count,
  rng: np.random.Generator,
) -> Iterator[Edited]:
  """Of every volume `of_each` slices by every kind; fewer where there is no place."""
  for volume in volumes:
    for name, method in kinds.items():
      for _ in range(of_each(volume)):
        if found := _one(volume, name, method, rng):
          yield found


def _one(volume: Volume, name: str, method: Method, rng: np.random.Generator) -> Edited | None:
  for _ in range(TRIES):
    row = int(rng.choice(volume.rows))
    around = volume.around(row)
    slab = volume.slab(row)
    found = _edit(volume, slab, volume.lung[around], row, len(slab) // 2, method, rng)
    if found:
      edited, site, changed = found
      return Edited(triple_of(volume, edited), name, volume.patient, site.centre[1:], changed)
  return None


def edited_volume(
  volume: Volume, method: Method, rng: np.random.Generator
) -> tuple[Volume, Bool[np.ndarray, 'n h w']] | None:
  """A series with one edit through several slices, and what was changed; None of no place."""
  hu = volume.hu.astype(np.float32)
  for _ in range(TRIES):
    row = int(rng.choice(volume.rows))
    if found := _edit(volume, hu, volume.lung, row, row, method, rng):
      changed = np.stack([changed_shares(a, b) > 0 for a, b in zip(hu, found[0])])
      values = np.clip(found[0], *REAL_HU).astype(np.int16)
      return dataclasses.replace(volume, hu=values), changed
  return None


def _edit(
  volume: Volume,
  hu: Float32[np.ndarray, 'k h w'],
  lung: Bool[np.ndarray, 'k h w'],
  row: int,
  middle: int,
  method: Method,
  rng: np.random.Generator,
) -> tuple[Float32[np.ndarray, 'k h w'], sites.Site, Bool[np.ndarray, 'h w']] | None:
  """Slices `hu` of a volume with an edit at a random place of its slice `row`, their `middle`.

  With the place and what was changed in that slice; None where too little was.
  """
  places = volume.in_lung[row]
  y, x = (float(v) for v in places[rng.integers(len(places))])
  site = sites.Site((float(middle), y, x), float(np.exp(rng.uniform(*np.log(DIAMETERS_MM)))))
  place = Place.of(hu, lung, volume.spacing_mm, site)
  try:
    made = np.where(place.reach, method(place, rng), place.own)
  except UserError:  # no place for this kind
    return None
  edited = hu.copy()
  edited[place.box] = np.rint(made)  # as a file would hold it
  changed = changed_shares(hu[middle], edited[middle]) > 0
  large = changed.sum() * volume.spacing_mm[1] * volume.spacing_mm[2] >= LEAST_CHANGED_MM2
  return (edited, site, changed) if large else None


def overlap(
  examined: Sequence[Examined], changed: Bool[np.ndarray, 'n h w'], map_limit: float
) -> dict[str, float]:
  """Of squares above a limit in the lung with those that were changed, over the slices judged.

  Returns:
    f1 and iou; that of nothing with nothing is 1.
  """
  hit = wrong = missed = 0
  for each in examined:
    found, true = above(each, map_limit), squares(changed[each.header.number])
    hit += int((found & true).sum())
    wrong += int((found & ~true).sum())
    missed += int((~found & true).sum())
  total = hit + wrong + missed
  if not total:
    return {'f1': 1.0, 'iou': 1.0}
  return {'f1': 2 * hit / (2 * hit + wrong + missed), 'iou': hit / total}


def whole_slices(
  volumes: Sequence[Volume], of_each: Count, rng: np.random.Generator
) -> Iterator[Triple]:
  """Slices made up as a whole."""
  for volume in volumes:
    for _ in range(of_each(volume)):
      slab = volume.slab(int(rng.choice(volume.rows)))
      yield triple_of(volume, np.rint(whole(slab, rng)))


def changed_slices(
  volumes: Sequence[Volume],
  change: Callable[[np.ndarray, np.random.Generator], np.ndarray],
  of_each: Count,
  rng: np.random.Generator,
) -> Iterator[Triple]:
  """Untouched slices after a harmless change."""
  for volume in volumes:
    for _ in range(of_each(volume)):
      slab = volume.slab(int(rng.choice(volume.rows)))
      yield triple_of(volume, np.rint(change(slab, rng)))


def triple_of(volume: Volume, slab: Float32[np.ndarray, 'k h w']) -> Triple:
  """As `examine` takes slices."""
  frames = [frame_of(volume, row, hu) for row, hu in enumerate(slab)]
  return (frames[0], frames[1], frames[2]) if len(frames) == 3 else (None, frames[0], None)


def location(each: Examined, centre: tuple[float, float]) -> dict[str, float]:
  """How a slice's map ranks a place.

  Returns:
    auroc, share of other places in the lung whose value is below the place's (half of equal ones);
    pointed, whether the map's maximum in the lung is in the place; chance of that.
  """
  spacing = each.header.spacing_mm
  assert spacing is not None
  reach = np.array([REACH_MM / (mm * STRIDE) for mm in spacing])
  own = np.array(centre) / STRIDE
  inside = np.where(each.lung, each.logits, -np.inf)
  size = 2 * np.ceil(reach).astype(int) + 1
  highest = ndimage.maximum_filter(inside, size=tuple(size), mode='constant', cval=-np.inf)
  rows, columns = np.mgrid[: inside.shape[0], : inside.shape[1]]
  near = (np.abs(rows - own[0]) <= reach[0]) & (np.abs(columns - own[1]) <= reach[1])
  value = float(inside[near].max())
  apart = (np.abs(rows - own[0]) > 2 * reach[0]) | (np.abs(columns - own[1]) > 2 * reach[1])
  others = highest[each.lung & apart]
  if not others.size or not np.isfinite(value):
    return {'auroc': float('nan'), 'pointed': float('nan'), 'chance': float('nan')}
  peak = np.array(each.peak) / STRIDE
  return {
    'auroc': float((others < value).mean() + (others == value).mean() / 2),
    'pointed': float((np.abs(peak - own) <= reach + 0.5).all()),
    'chance': float((near & each.lung).sum() / each.lung.sum()),
  }


def means_by_patient(values: Iterable[float], patients: Iterable[str]) -> dict[str, float]:
  """Of each patient's finite values."""
  by: dict[str, list[float]] = collections.defaultdict(list)
  for value, patient in zip(values, patients):
    if np.isfinite(value):
      by[patient].append(value)
  return {patient: float(np.mean(own)) for patient, own in by.items()}


def mean_by_patient(values: Iterable[float], patients: Iterable[str]) -> float:
  """Every patient weighing alike; NaN without any."""
  means = means_by_patient(values, patients)
  return float(np.mean(list(means.values()))) if means else float('nan')
