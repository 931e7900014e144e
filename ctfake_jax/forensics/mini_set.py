"""A few slices of the phantom, untouched and edited: whether a detector is what it was."""

from collections.abc import Iterator

import numpy as np

from ctfake_jax.data import series as series_lib
from ctfake_jax.data.sources.phantom import volume
from ctfake_jax.forensics import trial, volumes
from ctfake_jax.forensics.bundle import ForensicDetector
from ctfake_jax.forensics.edits import KINDS
from ctfake_jax.forensics.examine import Examined, examine_triples
from ctfake_jax.forensics.trial import Edited
from ctfake_jax.runtime import streams

SEED, SIZE, SLICES, PATIENTS, THICKNESS_MM = 31, 512, 3, (0, 1), 2.5
EDITS = ('smoothed', 'lesion')


def slices() -> Iterator[Edited]:
  """The middle slice of each patient, edited in every way of `EDITS`; always the same."""
  for patient in PATIENTS:
    scanned = volume.series(
      seed=SEED,
      patient=patient,
      slices=SLICES,
      size=SIZE,
      thickness_mm=THICKNESS_MM,
      scanners=('A', 'B'),
    )
    whole = series_lib.of_simulated(scanned, f'mini-{patient}')
    kinds = {name: KINDS[name] for name in EDITS}
    rng = streams.generator(SEED, 'mini set', patient)
    yield from trial.edited_slices(
      [volumes.of_series(whole, phantom=True)], kinds, lambda _: 1, rng
    )


def figures(detector: ForensicDetector) -> list[dict]:
  """What a detector makes of each: score, and location as `trial.location` has it."""
  edited = list(slices())
  found = examine_triples(detector.maps, (each.triple for each in edited))
  return [
    {'kind': each.kind, 'score': item.score, **trial.location(item, each.centre)}
    for each, item in zip(edited, found)
    if isinstance(item, Examined) and np.isfinite(item.score)
  ]
