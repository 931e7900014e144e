"""Aligned pairs of an edited and an untouched crop, made while the network trains.

Acquisition noise comes before the edit, harmless changes come after it and on both members, so that
neither tells them apart: what does is the edit. Pair n of a run depends on seed and n alone.
"""

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int16, UInt8
from scipy import ndimage

from ctfake_jax.forensics import benign
from ctfake_jax.forensics.edits import KINDS, coarse
from ctfake_jax.forensics.volumes import LEAST_SIDE, Volume
from ctfake_jax.models.forensic_net import NEIGHBOURS, STRIDE
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.runtime import streams
from ctfake_jax.tampering.methods import Place
from ctfake_jax.tampering.sites import Site
from ctfake_jax.types import UserError

# Pixels: seen by an edit, by harmless changes, by the network.
SCENE, WINDOW, CROP = 256, LEAST_SIDE, 128
DIAMETERS_MM, MOST_PIXELS = (7.0, 36.0), 44.0
NOISE_BEFORE, HARMLESS, ALONE = 0.5, 0.4, 0.3  # chances
CHANGED_HU = 3.0  # root of the mean square round a pixel, above which it counts as edited
WHOLE = 'whole'  # the kind whose slices are fakes all over
WHOLE_FACTORS = 3.0, 12.0
AHEAD = 4  # batches
BACKGROUND = 0.15  # share of crops at any pixel of the slice, not in the lung


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two crops of the same place.

  Attributes:
    edited: of three slices.
    untouched: the same without the edit.
    present: whether each slice is one of its own; else it repeats the middle one.
    shares: of squares of `STRIDE` pixels, how much of each was edited, of 255.
    kind: of the edit.
  """

  edited: Int16[np.ndarray, '3 h w']
  untouched: Int16[np.ndarray, '3 h w']
  present: Bool[np.ndarray, ' 3']
  shares: UInt8[np.ndarray, 'p q']
  kind: str


def draw(volumes: Sequence[Volume], kinds: Sequence[str], rng: np.random.Generator) -> Pair:
  """One pair from any of the volumes; of one with four times the slices twice as often."""
  weights = np.sqrt([len(volume.rows) for volume in volumes])
  while True:
    volume = volumes[rng.choice(len(volumes), p=weights / weights.sum())]
    row = int(rng.choice(volume.rows))
    slab, lung, centre = _scene(volume, row, rng)
    if rng.random() < NOISE_BEFORE:
      slab = benign.noisy(slab, rng)
    kind = str(rng.choice(kinds))
    try:
      edited = _edited(kind, slab, lung, volume.spacing_mm, centre, rng)
    except UserError:  # there is no place for this kind here
      continue
    return _cut(kind, slab, edited, centre, rng)


def _scene(
  volume: Volume, row: int, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, 'k h w'], Bool[np.ndarray, 'k h w'], tuple[int, int]]:
  """Slices about a place, their lung, and the place in them."""
  lung = volume.lung[row]
  chance = rng.random()
  if chance < BACKGROUND:
    y, x = (int(rng.integers(n)) for n in lung.shape)
  else:
    places = volume.in_lung[row]
    y, x = places[rng.integers(len(places))].tolist()
  top, left = (
    int(np.clip(c - SCENE // 2, 0, max(0, n - SCENE))) for c, n in zip((y, x), lung.shape)
  )
  part = volume.around(row), slice(top, top + SCENE), slice(left, left + SCENE)
  return volume.hu[part].astype(np.float32), volume.lung[part], (y - top, x - left)


def _edited(
  kind: str,
  slab: Float32[np.ndarray, 'k h w'],
  lung: Bool[np.ndarray, 'k h w'],
  spacing_mm: tuple[float, float, float],
  centre: tuple[int, int],
  rng: np.random.Generator,
) -> Float32[np.ndarray, 'k h w']:
  if kind == WHOLE:
    return whole(slab, rng)
  low, high = DIAMETERS_MM[0], min(DIAMETERS_MM[1], MOST_PIXELS * spacing_mm[2])
  diameter = float(np.exp(rng.uniform(np.log(low), np.log(high))))
  middle = len(slab) // 2
  # The slice need not go through the middle of what is edited.
  height = middle + rng.uniform(-0.35, 0.35) * diameter / spacing_mm[0]
  site = Site((float(height), float(centre[0]), float(centre[1])), diameter)
  place = Place.of(slab, lung, spacing_mm, site)
  made = np.where(place.reach, KINDS[kind](place, rng), place.own)
  edited = slab.copy()
  edited[place.box] = made
  return edited


def whole(
  slab: Float32[np.ndarray, 'k h w'], rng: np.random.Generator
) -> Float32[np.ndarray, 'k h w']:
  """A slice as generators make them: from a much coarser grid, with noise or without."""
  made = coarse(slab, rng.uniform(*WHOLE_FACTORS), int(rng.integers(0, 4)))
  return benign.noisy(made, rng) if rng.random() < 0.4 else made


def changed_shares(
  before: Float[np.ndarray, 'h w'], after: Float[np.ndarray, 'h w']
) -> Float32[np.ndarray, 'h w']:
  """1 where a slice was edited by more than `CHANGED_HU`, else 0."""
  power = ndimage.gaussian_filter(np.square(after - before), 1.5)
  return (power > CHANGED_HU**2).astype(np.float32)


def _cut(
  kind: str,
  untouched: Float32[np.ndarray, 'k h w'],
  edited: Float32[np.ndarray, 'k h w'],
  centre: tuple[int, int],
  rng: np.random.Generator,
) -> Pair:
  """Windows about the place, changed alike, then crops, turned alike."""
  middle = len(untouched) // 2
  changed = changed_shares(untouched[middle], edited[middle])
  changed = np.ones_like(changed) if kind == WHOLE else changed
  jitter = rng.integers(-CROP // 3, CROP // 3 + 1, 2)
  sides = untouched.shape[1:]
  top, left = (
    int(np.clip(c + j - WINDOW // 2, 0, n - WINDOW)) for c, j, n in zip(centre, jitter, sides)
  )
  window = slice(None), slice(top, top + WINDOW), slice(left, left + WINDOW)
  stack = np.stack([untouched[window], edited[window]])
  changed = changed[window[1:]][None]
  if rng.random() < HARMLESS:
    stack, changed = _harmless(stack, changed, rng)
  edge = (WINDOW - CROP) // 2
  inner = slice(edge, edge + CROP)
  stack, changed = stack[..., inner, inner], changed[0, inner, inner]
  turns, flip = int(rng.integers(4)), rng.random() < 0.5
  stack, changed = (np.rot90(a, turns, (-2, -1)) for a in (stack, changed))
  if flip:
    stack, changed = stack[..., ::-1], changed[..., ::-1]
  if stack.shape[1] == NEIGHBOURS and rng.random() < 0.5:
    stack = stack[:, ::-1]
  present = np.full(NEIGHBOURS, stack.shape[1] == NEIGHBOURS and rng.random() >= ALONE)
  present[1] = True
  if not present.all():
    stack = np.repeat(stack[:, stack.shape[1] // 2][:, None], NEIGHBOURS, axis=1)
  small = changed.reshape(CROP // STRIDE, STRIDE, CROP // STRIDE, STRIDE).mean((1, 3))
  both = np.clip(np.rint(stack), -(2**15), 2**15 - 1).astype(np.int16)
  shares = np.rint(255 * small).astype(np.uint8)
  return Pair(both[1], both[0], present, shares, kind)


def _harmless(
  stack: Float32[np.ndarray, '2 k h w'],
  changed: Float32[np.ndarray, '1 h w'],
  rng: np.random.Generator,
) -> tuple[Float32[np.ndarray, '2 k h w'], Float32[np.ndarray, '1 h w']]:
  """One or two changes of both; what moves pixels moves the mask."""
  names = rng.choice(list(benign.CHANGES), size=int(rng.integers(1, 3)), replace=False)
  for name in names:
    seed = int(rng.integers(2**31))
    change = benign.CHANGES[str(name)]
    stack = np.stack([change(member, streams.generator(seed, str(name))) for member in stack])
    if name == 'resampled':
      moved = benign.resampled(changed, streams.generator(seed, str(name)))
      changed = np.clip(moved, 0, 1)
  return stack, changed


@dataclasses.dataclass(frozen=True)
class PairFeed:
  """Batches of pairs for `train.loop`, made ahead by a thread.

  Attributes:
    volumes: that crops are cut from.
    kinds: of edits.
    pairs: of a batch.
    seed: of all of them.
  """

  volumes: Sequence[Volume]
  kinds: Sequence[str]
  pairs: int
  seed: int

  @property
  def device_data(self) -> tuple:
    """None stays on the devices."""
    return ()

  def batch(self, step: int) -> tuple[np.ndarray, ...]:
    """Edited and untouched i16[p, 3, h, w], present bool[p, 3], shares u8[p, q, r] of a step."""
    made = [
      draw(self.volumes, self.kinds, streams.generator(self.seed, 'pair', step, number))
      for number in range(self.pairs)
    ]
    return tuple(
      np.stack([getattr(pair, name) for pair in made])
      for name in ('edited', 'untouched', 'present', 'shares')
    )

  def batch_indices(self, start: int) -> Iterator[tuple[jax.Array, ...]]:
    """The batches from a step on."""
    mesh = mesh_lib.data_mesh()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
      waiting = [thread.submit(self.batch, start + i) for i in range(AHEAD)]
      step = start + AHEAD
      while True:
        made = waiting.pop(0).result()
        waiting.append(thread.submit(self.batch, step))
        step += 1
        yield mesh_lib.shard_batch(mesh, made)

  def get_batch(self, device_data: tuple, indices: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
    """HU f32[2p, 3, h, w], present, shares f32: an edited crop, then its untouched twin."""
    del device_data
    edited, untouched, present, shares = indices
    shares = shares.astype(jnp.float32) / 255
    return {
      'hu': mesh_lib.alternating(edited, untouched).astype(jnp.float32),
      'present': mesh_lib.alternating(present, present),
      'shares': mesh_lib.alternating(shares, jnp.zeros_like(shares)),
    }
