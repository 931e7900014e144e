"""One answer for a series: evidence that hangs together over neighbouring slices."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from ctfake_jax.data.sources.native import Header
from ctfake_jax.forensics.examine import Examined, gap_mm, highest
from ctfake_jax.models.forensic_net import STRIDE

WEIGHTS = (0.25, 0.5, 0.25)  # of a slice and its neighbours


@dataclasses.dataclass
class Evidence:
  """What the slices of a series say together.

  Attributes:
    series, patient: pseudonyms.
    slices: that were judged.
    score: the highest log odds in the lung, weighted over a slice and its neighbours.
    peak: the slice of that, by its header's path, and row and column there.
    volume_mm3: of squares above the limit for maps.
  """

  series: str
  patient: str
  slices: int = 0
  score: float = -np.inf
  peak: tuple[str, int, int] = ('', 0, 0)
  volume_mm3: float = 0.0

  @property
  def judged(self) -> bool:
    """Whether any three slices lie side by side."""
    return self.score > -np.inf

  def add(self, last: Sequence[Examined], map_limit: float) -> None:
    """Takes the newest of up to three slices that are neighbours into account."""
    self.slices += 1
    if len(last) > 1:
      areas = [float(above(each, map_limit).sum()) * square_mm2(each) for each in last[-2:]]
      self.volume_mm3 += sum(areas) / 2 * _gap_mm(*last[-2:])
    if len(last) == len(WEIGHTS):
      together = np.tensordot(np.array(WEIGHTS), np.stack([each.logits for each in last]), 1)
      score, place = highest(together, last[1].lung)
      if score > self.score:
        self.score, self.peak = score, (last[1].header.path, *place)


def gather(
  examined: Iterable[Examined | Header], map_limit: float = np.inf
) -> Iterator[Examined | Header | Evidence]:
  """All slices as they come, and after the last of each series what they say together."""
  current: Evidence | None = None
  last: list[Examined] = []
  for each in examined:
    own = each.header if isinstance(each, Examined) else each
    if current is not None and own.series != current.series:
      yield current
      current, last = None, []
    if isinstance(each, Examined):
      current = current or Evidence(own.series, own.patient)
      last = [*last[-2:], each] if last and _gap_mm(last[-1], each) else [each]
      current.add(last, map_limit)
    yield each
  if current is not None:
    yield current


def _gap_mm(low: Examined, high: Examined) -> float:
  return gap_mm(low.header, high.header) if low.hu.shape == high.hu.shape else 0.0


def above(each: Examined, map_limit: float) -> Bool[np.ndarray, 'p q']:
  """Squares in the lung above a limit."""
  return (each.logits > map_limit) & each.lung


def region(each: Examined, map_limit: float) -> Bool[np.ndarray, 'p q']:
  """Those that hang together with the peak."""
  parts, _ = ndimage.label(above(each, map_limit))
  own = parts[each.peak[0] // STRIDE, each.peak[1] // STRIDE]
  return (parts == own) & (own > 0)


def square_mm2(each: Examined) -> float:
  """Area of a square of the map; NaN where the spacing is not known."""
  spacing = each.header.spacing_mm
  return float(np.prod(spacing)) * STRIDE**2 if spacing else float('nan')
