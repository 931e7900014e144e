"""From slices of series to maps, scores and places: the one way of calibration and verdicts.

Nothing but pixels enters a score: positions in space only say which slices are neighbours.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Shaped
from scipy import ndimage

from ctfake_jax.data import lungs
from ctfake_jax.data.sources.native import Frame, Header
from ctfake_jax.forensics.volumes import LEAST_LUNG_CM2, MOST_GAP_MM, Volume
from ctfake_jax.models.forensic_net import LIMITS_HU, LUNG_HU, MULTIPLE, NEIGHBOURS, STRIDE
from ctfake_jax.runtime import batching

BATCH = 4  # slices
USUAL_SPACING_MM = 0.7  # of what says nothing
NO_LUNG = 'shows no lung'
TOO_SMALL = 'is smaller than 128 x 128 pixels'
LEAST_SIDE = 128
MARGIN, STEP = 16, 128  # pixels round the lung that are looked at; sides are multiples of a step
UNSEEN = -20.0  # log odds where nothing was looked at


Slabs = Float32[np.ndarray, 'n 3 h w']
Present = Bool[np.ndarray, 'n 3']
Squares = Float[np.ndarray, 'n p q']
# From parts of slices with their neighbours, sides multiples of `MULTIPLE`, to maps in squares of
# `STRIDE` pixels.
Maps = Callable[[Slabs, Present], Squares]
# A slice between the one below and the one above it, None where there is none.
Triple = tuple[Frame | None, Frame, Frame | None]


@dataclasses.dataclass(frozen=True)
class Examined:
  """What the network makes of a slice.

  Attributes:
    header: which slice.
    hu: rows and columns as stored.
    logits: log odds of squares of `STRIDE` pixels to be edited, means of three by three; `UNSEEN`
      far from the lung.
    lung: squares that touch the lung.
    score: the highest of these in the lung.
    peak: row and column of that, in the file's pixels.
    texture: what the slice's noise is like, `texture`.
  """

  header: Header
  hu: Float32[np.ndarray, 'h w'] = dataclasses.field(repr=False)
  logits: Float[np.ndarray, 'p q']
  lung: Bool[np.ndarray, 'p q']
  score: float
  peak: tuple[int, int]
  texture: Float[np.ndarray, ' t']


def frame_of(volume: Volume, row: int, hu: Shaped[np.ndarray, 'h w']) -> Frame:
  """A slice of a volume in memory, or what was made of it."""
  step, row_mm, column_mm = volume.spacing_mm
  header = Header(
    path=f'{volume.name}#{row + 1}',
    number=row,
    series=volume.name,
    patient=volume.patient,
    height_mm=row * step,
    spacing_mm=(row_mm, column_mm),
  )
  return Frame(header, hu.astype(np.float32))


def frames_of(volume: Volume) -> Iterator[Frame]:
  """All slices of a volume."""
  return (frame_of(volume, row, hu) for row, hu in enumerate(volume.hu))


def network_maps(model: nn.Module, variables: dict) -> Maps:
  """Those of a network, smoothed."""

  def maps(hu: Slabs, present: Present) -> Squares:
    def judge(constants, _, *batch):
      return smooth_map(model, constants, *batch)

    return batching.map_batches(judge, variables, hu, present, batch_size=BATCH)

  return maps


def examine(maps: Maps, frames: Iterable[Frame]) -> Iterator[Examined | Header]:
  """Every frame in order; those of a series follow each other from the lowest slice up.

  Of what cannot be judged there is its header, with the reason. Memory does not grow with their
  number.
  """
  return examine_triples(maps, _with_neighbours(frames))


def examine_triples(maps: Maps, triples: Iterable[Triple]) -> Iterator[Examined | Header]:
  """The same of frames that bring their neighbours, where they have any."""
  waiting: list[_Slab | Header] = []

  def flush() -> Iterator[Examined | Header]:
    done = _judge(maps, [each for each in waiting if isinstance(each, _Slab)])
    for each in waiting:
      yield next(done) if isinstance(each, _Slab) else each
    waiting.clear()

  for each in _prepared_ahead(triples):
    slabs = [other for other in waiting if isinstance(other, _Slab)]
    other_shape = isinstance(each, _Slab) and slabs and slabs[0].hu.shape != each.hu.shape
    if len(slabs) == 2 * BATCH or other_shape:
      yield from flush()
    waiting.append(each)
  yield from flush()


def _prepared_ahead(triples: Iterable[Triple]) -> Iterator['_Slab | Header']:
  """In a thread of its own, while the network is at work on those before."""
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    pending: collections.deque = collections.deque()
    for triple in triples:
      pending.append(thread.submit(_prepared, triple))
      if len(pending) > 2 * BATCH:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()


@dataclasses.dataclass(frozen=True)
class _Slab:
  """The part of a slice that holds the lung, between its neighbours, and what is found of it."""

  header: Header
  middle: Float32[np.ndarray, 'rows columns']
  box: tuple[slice, slice]
  hu: Float32[np.ndarray, '3 h w']
  present: Bool[np.ndarray, ' 3']
  lung: Bool[np.ndarray, 'p q']
  texture: Float[np.ndarray, ' t']


def _with_neighbours(frames: Iterable[Frame]) -> Iterator[Triple]:
  """Each frame with the one before and the one after, where these are its neighbours in space."""
  padded = itertools.chain([None], frames, [None])
  a, b, c = itertools.tee(padded, 3)
  for before, frame, after in zip(a, itertools.islice(b, 1, None), itertools.islice(c, 2, None)):
    assert frame is not None
    yield (
      before if before and _adjacent(before, frame) else None,
      frame,
      after if after and _adjacent(frame, after) else None,
    )


def _adjacent(low: Frame, high: Frame) -> bool:
  if low.hu is None or high.hu is None or low.hu.shape != high.hu.shape:
    return False
  return gap_mm(low.header, high.header) > 0


def gap_mm(low: Header, high: Header) -> float:
  """Between two slices of a series that are neighbours; 0 where they are none."""
  if low.series != high.series or low.height_mm is None or high.height_mm is None:
    return 0.0
  gap = high.height_mm - low.height_mm
  return gap if 0 < gap <= MOST_GAP_MM else 0.0


def _prepared(triple: Triple) -> _Slab | Header:
  """A slice between its neighbours, or why it cannot be judged."""
  frame = triple[1]
  if frame.hu is None:
    return frame.header
  if min(frame.hu.shape) < LEAST_SIDE:
    return dataclasses.replace(frame.header, reason=TOO_SMALL)
  spacing = frame.header.spacing_mm or (USUAL_SPACING_MM, USUAL_SPACING_MM)
  lung = lungs.lung_mask(frame.hu[None], (1.0, *spacing))[0]
  if float(lung.sum()) * spacing[0] * spacing[1] / 100 < LEAST_LUNG_CM2:
    return dataclasses.replace(frame.header, reason=NO_LUNG)
  around = [each.hu for each in triple if each is not None and each.hu is not None]
  whole = len(around) == NEIGHBOURS
  pads = [(0, -side % MULTIPLE) for side in frame.hu.shape]
  box = _box(np.pad(lung, pads))
  slab = [np.pad(hu, pads, mode='edge')[box] for hu in (around if whole else [frame.hu])]
  return _Slab(
    frame.header,
    frame.hu,
    box,
    np.stack(slab if whole else slab * NEIGHBOURS),
    np.array([whole, True, whole]),
    squares(lung),
    texture(frame.hu, lung, spacing),
  )


def _judge(maps: Maps, slabs: list[_Slab]) -> Iterator[Examined]:
  if not slabs:
    return
  hu, present = np.stack([slab.hu for slab in slabs]), np.stack([slab.present for slab in slabs])
  for slab, logits in zip(slabs, maps(hu, present)):
    own = np.full(slab.lung.shape, UNSEEN, logits.dtype)
    part = own[tuple(slice(s.start // STRIDE, s.stop // STRIDE) for s in slab.box)]
    part[:] = logits[: part.shape[0], : part.shape[1]]
    score, peak = highest(own, slab.lung)
    yield Examined(slab.header, slab.middle, own, slab.lung, score, peak, slab.texture)


def _box(lung: Bool[np.ndarray, 'h w']) -> tuple[slice, slice]:
  """Rows and columns about the lung; few sizes, since a program is compiled for each."""

  def along(any_lung: Bool[np.ndarray, ' n']) -> slice:
    places, total = np.flatnonzero(any_lung), len(any_lung)
    first = max(0, int(places[0]) - MARGIN) // MULTIPLE * MULTIPLE
    size = min(total, -(-(int(places[-1]) + MARGIN + 1 - first) // STEP) * STEP)
    first = min(first, total - size)
    return slice(first, first + size)

  return along(np.asarray(lung.any(1))), along(np.asarray(lung.any(0)))


def highest(
  logits: Float[np.ndarray, 'p q'], lung: Bool[np.ndarray, 'p q']
) -> tuple[float, tuple[int, int]]:
  """The highest log odds in the lung, and the pixel in the middle of their square."""
  inside = np.where(lung, logits, -np.inf)
  row, column = np.unravel_index(int(np.argmax(inside)), inside.shape)
  place = int(row) * STRIDE + STRIDE // 2, int(column) * STRIDE + STRIDE // 2
  return float(inside[row, column]), place


@functools.partial(jax.jit, static_argnums=0)
def forward(
  model: nn.Module,
  variables: dict,
  hu: Float[Array, 'b 3 h w'],
  present: Bool[Array, 'b 3'],
) -> Float32[Array, 'b p q']:
  """Maps of log odds of having been edited."""
  return jnp.asarray(model.apply(variables, hu, present, train=False))


@functools.partial(jax.jit, static_argnums=0)
def smooth_map(
  model: nn.Module,
  variables: dict,
  hu: Float[Array, 'b 3 h w'],
  present: Bool[Array, 'b 3'],
) -> Float32[Array, 'b p q']:
  """The network's log odds, each the mean of its own square and the eight round it."""
  logits = forward(model, variables, hu, present)
  wide = jnp.pad(logits, ((0, 0), (1, 1), (1, 1)), mode='edge')
  height, width = logits.shape[1:]
  shifted = [wide[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
  return jnp.stack(shifted).mean(0)


def squares(mask: Bool[np.ndarray, 'h w']) -> Bool[np.ndarray, 'p q']:
  """Squares of `STRIDE` pixels that hold any of the mask."""
  padded = np.pad(mask, [(0, -n % STRIDE) for n in mask.shape])
  rows, columns = padded.shape[0] // STRIDE, padded.shape[1] // STRIDE
  return np.asarray(padded.reshape(rows, STRIDE, columns, STRIDE).any((1, 3)))


def texture(
  hu: Float[np.ndarray, 'h w'], lung: Bool[np.ndarray, 'h w'], spacing_mm: tuple[float, ...]
) -> Float[np.ndarray, ' t']:
  """What noise and sharpness of a slice's lung are like, by medians, which an edit hardly moves.

  Returns:
    Logarithms of the residual's size after smoothing by three pixels, of that after six relative to
    it, and of the pixel's side; correlations of the residual with its neighbour right and below.
  """
  hu = np.clip(hu, *LIMITS_HU).astype(np.float32)
  smooth = ndimage.uniform_filter(hu, 3)
  wide = ndimage.uniform_filter(smooth, 5)
  airy = lung & (wide > LUNG_HU[0]) & (wide < LUNG_HU[1])
  airy[-1] = airy[:, -1] = False
  rows, columns = np.nonzero(airy if airy.any() else lung)
  fine, middle = hu - smooth, smooth - wide
  own, beside, below = (fine[rows + i, columns + j] for i, j in ((0, 0), (0, 1), (1, 0)))
  size = 1e-1 + float(np.median(np.abs(own)))
  relative = 1e-1 + float(np.median(np.abs(middle[rows, columns])))
  likeness = (float(np.median(np.sign(own) * x)) / size for x in (beside, below))
  return np.array([np.log(size), np.log(relative / size), np.log(min(spacing_mm)), *likeness])
