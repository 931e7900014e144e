"""Images that stay on disk: decoded and preprocessed when they are asked for."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped

from ctfake_jax.data.fingerprints import Fingerprints
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.types import Source


class LazyImages:
  """Stands for float32[n, size, size, 1] in [-1, 1]; only the rows that are indexed are ever read.

  `images[3]`, `images[a:b]` and `images[rows]` decode; `subset(rows)` does not. An image that
  can no longer be read raises the source's `UnreadableImageError`.
  """

  def __init__(
    self,
    source: Source,
    view: Preprocess,
    indices: Int[np.ndarray, ' n'],
    fingerprints: Fingerprints,
  ):
    """The images `indices` of a source, as `view` shows them, and their fingerprints."""
    self._source, self._view, self._indices = source, view, indices
    self.fingerprints = fingerprints

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """As of the array that it stands for."""
    return (len(self), self._view.size, self._view.size, 1)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, key: Any) -> Float32[np.ndarray, '*n size size 1']:
    chosen = self._indices[key]
    if np.ndim(chosen) == 0:
      return self._view(self._source[int(chosen)])
    images = np.empty((len(chosen), *self.shape[1:]), np.float32)
    for row, index in enumerate(chosen):
      images[row] = self._view(self._source[int(index)])
    return images

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> Shaped[np.ndarray, 'n size size 1']:
    """All of them in memory, for small parts."""
    del copy
    return self[:].astype(dtype or np.float32, copy=False)

  def subset(self, rows: Int[np.ndarray, ' m'] | Bool[np.ndarray, ' n']) -> 'LazyImages':
    """The images at `rows`, still unread."""
    return LazyImages(self._source, self._view, self._indices[rows], self.fingerprints.take(rows))
