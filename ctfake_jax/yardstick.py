"""The one extractor that all runs are measured with, so that their distances can be compared.

Texture features whitened on a phantom of its own seed, which no generator has learnt from.
"""

import functools

from ctfake_jax.data.phantom import PhantomSource
from ctfake_jax.data.pipeline import gather
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.quality.extractor import Extractor, fit_extractor, texture_features

SEED = 1_000_003
PATIENTS = 400
SLICES_PER_PATIENT = 3
# The lung window; the reference is always seen through it.
WINDOW_HU = (-600.0, 1500.0)


@functools.cache
def phantom_extractor(size: int) -> Extractor:
  """64 whitened texture features for images of side `size`, a power of two from 32."""
  source = PhantomSource(
    patients=PATIENTS, slices_per_patient=SLICES_PER_PATIENT, size=size, seed=SEED
  )
  reference = gather(source, Preprocess(size, *WINDOW_HU, 'crop')).images
  return fit_extractor(f'texture on phantom {SEED}, {size} px', [texture_features], reference)
