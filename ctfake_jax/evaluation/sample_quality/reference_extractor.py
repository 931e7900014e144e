"""The one extractor that all runs are measured with, so that their distances can be compared.

Texture features whitened on a phantom of its own seed, which no generator was trained on. For the
sides of `KEPT` the package holds the fit: the same numbers on any machine, and no phantom to scan
before a generator trains. This module, run by `python -m`, writes these files anew, which is due
after a change to the phantom or to the features (the tests tell).
"""

import functools
from pathlib import Path

import numpy as np

from ctfake_jax.data.dataset import gather
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.data.sources.phantom.source import PhantomSource
from ctfake_jax.evaluation.sample_quality.extractor import (
  WhitenedExtractor,
  fit_extractor,
  texture_features,
)

SEED = 1_000_003
PATIENTS = 400
SLICES_PER_PATIENT = 3
# The lung window; the reference is always seen through it.
WINDOW_HU = (-600.0, 1500.0)
KEPT = (32, 64)


@functools.cache
def phantom_extractor(size: int) -> WhitenedExtractor:
  """64 whitened texture features for images of side `size`, a power of two from 32."""
  if size not in KEPT:
    return fit_reference_extractor(size)
  with np.load(_kept(size), allow_pickle=False) as file:
    center, projection = (file[key].astype(np.float64) for key in ('center', 'projection'))
  return WhitenedExtractor(_name(size), ((texture_features, center, projection),))


def fit_reference_extractor(size: int) -> WhitenedExtractor:
  """The extractor from a phantom that is scanned now."""
  source = PhantomSource(
    patients=PATIENTS, slices_per_patient=SLICES_PER_PATIENT, size=size, seed=SEED
  )
  reference = gather(source, Preprocess(size, *WINDOW_HU, 'crop')).images
  return fit_extractor(_name(size), [texture_features], reference)


def _name(size: int) -> str:
  return f'texture on phantom {SEED}, {size} px'


def _kept(size: int) -> Path:
  return Path(__file__).with_name(f'reference_{size}.npz')


def _keep(size: int) -> None:
  ((_, center, projection),) = fit_reference_extractor(size).parts
  arrays = {'center': center, 'projection': projection}
  rounded = {key: array.astype(np.float32) for key, array in arrays.items()}
  np.savez_compressed(_kept(size), allow_pickle=False, **rounded)


if __name__ == '__main__':
  for side in KEPT:
    _keep(side)
