"""What is kept of untouched series while they are judged: thresholds and domains are made of it."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from ctfake_jax.data.sources.native import Header
from ctfake_jax.detector import calibration as detector_calibration
from ctfake_jax.forensics import series
from ctfake_jax.forensics.calibration import Domain, Untouched
from ctfake_jax.forensics.examine import Examined
from ctfake_jax.forensics.series import Evidence

SQUARES = 500  # of each slice that are kept


@dataclasses.dataclass
class Looks:
  """Of many slices, by patient; memory grows by little with each.

  Attributes:
    slices, series: patient and score of each that was judged.
    textures: of slices.
    squares: some log odds in the lung.
    left_out: what could not be judged.
  """

  slices: list[tuple[str, float]] = dataclasses.field(default_factory=list)
  series: list[tuple[str, float]] = dataclasses.field(default_factory=list)
  textures: list[Float[np.ndarray, ' t']] = dataclasses.field(default_factory=list)
  squares: dict[str, list[np.ndarray]] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(list)
  )
  left_out: list[Header] = dataclasses.field(default_factory=list)

  def take(self, examined: Iterable[Examined | Header], rng: np.random.Generator) -> None:
    """All slices of one series or more."""
    for item in series.gather(examined):
      if isinstance(item, Header):
        self.left_out.append(item)
      elif isinstance(item, Evidence):
        if item.judged:
          self.series.append((item.patient, item.score))
      else:
        patient = item.header.patient
        self.slices.append((patient, item.score))
        self.textures.append(item.texture)
        self.squares[patient].append(rng.choice(item.logits[item.lung], SQUARES))

  @property
  def patients(self) -> list[str]:
    """Of each slice."""
    return [patient for patient, _ in self.slices]

  def map_limit(self, rate: float) -> float:
    """Log odds that a share of the squares exceed, of every patient as many."""
    levels = np.linspace(0, 1, 20001)
    spread = [np.quantile(np.concatenate(own), levels) for own in self.squares.values()]
    return float(np.quantile(np.concatenate(spread), 1 - rate))

  def untouched(self, seed: int, phantoms: Sequence[str] = ()) -> tuple[Untouched, Untouched]:
    """Scores of slices and of series, one of each patient; those of phantoms apart."""
    one, two = (_one_each(scores, seed) for scores in (self.slices, self.series))
    return _apart(one, phantoms), _apart(two, phantoms)

  def distances(self, domain: Domain, seed: int, phantoms: Sequence[str] = ()) -> Untouched:
    """Of one slice of each patient."""
    found = [domain.distance(texture) for texture in self.textures]
    return _apart(_one_each(list(zip(self.patients, found)), seed), phantoms)


def _one_each(scores: Sequence[tuple[str, float]], seed: int) -> dict[str, float]:
  """The score of one slice or series of each patient, drawn at random."""
  if not scores:
    return {}
  names = np.array([patient for patient, _ in scores])
  kept = detector_calibration.one_per_group(np.arange(len(names)), names, seed)
  return {scores[row][0]: scores[row][1] for row in kept.tolist()}


def _apart(scores: dict[str, float], phantoms: Sequence[str]) -> Untouched:
  real = [score for patient, score in scores.items() if patient not in phantoms]
  simulated = [score for patient, score in scores.items() if patient in phantoms]
  return Untouched(np.sort(np.array(real, float)), np.sort(np.array(simulated, float)))
