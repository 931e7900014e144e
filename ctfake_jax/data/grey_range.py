"""Which of their stored values the pictures of a set use.

A 12-bit CT in 16-bit pictures (HU + 1024, HU + 32768) fills 6 % of the type's range: scaled by the
type, all of it is nearly one grey. `data.grey_range` = 'auto' scales by what is found here.
"""

import collections
import dataclasses

import numpy as np

from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import DataConfig
from ctfake_jax.data.preprocess import LEAST_SHARE, GreyRange
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.types import Source, UnreadableImageError, UserError

_SAMPLED = 200  # images
_LEVELS = 65536  # of grey in [0, 1]
_TAILS = 0.001  # of the pixels, at either end


def settle(data: DataConfig, source: Source) -> tuple[str, DataConfig]:
  """Says which range the pictures of a source use.

  Returns:
    the range as `data.grey_range` takes it, '' of a source in HU; and the section with it in the
    place of an 'auto'.

  Raises:
    UserError: little of the type's range is used, and `data.grey_range` is 'type'.
  """
  ranges = find(source)
  if not ranges:
    own = 'type' if data.grey_range == 'auto' else data.grey_range
    return '', dataclasses.replace(data, grey_range=own)
  found = ranges[0]
  if data.grey_range == 'type':
    refuse_narrow(
      ranges, 'set --config.data.grey_range=auto to scale by the range that the set uses'
    )
  if data.grey_range == 'auto':
    if not config_lib.parse_grey_range(str(found)):
      raise UserError('config.data.grey_range = auto: the pictures have one grey value everywhere')
    data = dataclasses.replace(data, grey_range=str(found))
  if mesh_lib.is_main_process():
    typed = data.grey_range == 'type'
    scale = 'their type' if typed else f'data.grey_range = {data.grey_range}'
    print(f'grey values use {found} ({found.share:.1%}); scaled by {scale}')
  return str(found), data


def refuse_narrow(ranges: list[GreyRange], remedy: str) -> None:
  """Raises UserError where pictures that are scaled by their type use little of its range."""
  for own in ranges:
    if own.share < LEAST_SHARE:
      raise UserError(
        f"config.data.grey_range = 'type': pictures use {own.share:.1%} of their type's range, "
        f'{own}, and would be nearly one grey; {remedy}'
      )


def find(source: Source) -> list[GreyRange]:
  """The range of each type of a sample of the source, the commonest type first; () of HU.

  From 0.1 to 99.9 % of the pixels. Those of the lowest and the highest value that the type has do
  not count, if there are others: they are what was filled or written in. Where every PNG says how
  many bits it uses (sBIT) and keeps to it, these are the range.
  """
  counts: dict[int, np.ndarray] = {}
  images: collections.Counter[int] = collections.Counter()
  bits: dict[int, set[int | None]] = {}
  for i in np.unique(np.linspace(0, len(source) - 1, _SAMPLED).astype(int)).tolist():
    try:
      image = source[i]
    except UnreadableImageError:
      continue
    if image.unit == 'HU':
      return []
    levels = np.rint(image.pixels * (_LEVELS - 1)).astype(np.int64).ravel()
    seen = np.bincount(levels, minlength=_LEVELS)
    counts[image.white] = counts.get(image.white, 0) + seen
    images[image.white] += 1
    bits.setdefault(image.white, set()).add(image.significant_bits)
  return [_range(counts[white], white, bits[white]) for white, _ in images.most_common()]


def _range(counts: np.ndarray, white: int, bits: set[int | None]) -> GreyRange:
  stored = np.nonzero(counts)[0] * (white / (_LEVELS - 1))
  if len(bits) == 1 and (told := next(iter(bits))) and stored[-1] < 2**told <= white:
    return GreyRange(0, 2**told - 1, white)
  inner = counts.copy()
  inner[[0, -1]] = 0
  below = np.cumsum(inner if inner.any() else counts)
  low, high = np.searchsorted(below, np.array([_TAILS, 1 - _TAILS]) * below[-1])
  scale = white / (_LEVELS - 1)
  return GreyRange(float(low * scale), float(high * scale), white)
