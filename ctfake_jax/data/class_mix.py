"""Labels, and rows of labelled images, in the class mix of a reference.

An accuracy, a distance or a detector's score that is measured on fakes in one mix of classes and on
reals in another differs by the mix alone. Counts are apportioned by largest remainders (Hamilton's
method), so that they differ from the exact shares by less than one image a class.
"""

import numpy as np
from jaxtyping import Int, Int32, Real

from ctfake_jax.runtime import streams


def counts_in_mix(shares: Real[np.ndarray, ' c'], count: int) -> Int[np.ndarray, ' c']:
  """Counts that sum to `count`, in the proportions of `shares` (counts of classes, or any).

  Raises:
    ValueError: no share is positive.
  """
  shares = np.asarray(shares, np.float64)
  if not shares.sum() > 0:
    raise ValueError('the reference of a class mix has no image')
  exact = count * shares / shares.sum()
  counts = np.floor(exact + 1e-9).astype(int)
  order = np.argsort(counts - exact, kind='stable')
  counts[order[: count - counts.sum()]] += 1
  return counts


def labels_in_mix(shares: Real[np.ndarray, ' c'], count: int) -> Int32[np.ndarray, ' count']:
  """Sorted, in the proportions of `shares`."""
  return np.repeat(np.arange(len(shares), dtype=np.int32), counts_in_mix(shares, count))


def rows_in_mix(labels: Int[np.ndarray, ' n'], count: int, seed: int) -> Int[np.ndarray, ' count']:
  """Sorted rows of `labels` in their own mix, each as often as others of its.

  Rows of a class come in random order, in turn where `count` asks for more than there are.
  """
  classes = np.unique(labels)
  counts = counts_in_mix(np.array([(labels == k).sum() for k in classes]), count)
  rng = streams.generator(seed, 'rows in mix')
  taken = [
    np.resize(rng.permutation(np.flatnonzero(labels == k)), n) for k, n in zip(classes, counts)
  ]
  return np.sort(np.concatenate(taken))


def class_counts(labels: Int[np.ndarray, ' n'], classes: int) -> Int[np.ndarray, ' classes']:
  """How often each label occurs; unlabelled images (-1) count nowhere."""
  return np.bincount(labels[labels >= 0], minlength=classes)
