"""What must stand beside an accuracy: how far one comes without a network.

Chance, the nearest neighbour on small pixels, a model on file facts alone, and a count of what
leaks between the parts.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int, UInt8
from sklearn.ensemble import RandomForestClassifier

from ctfake_jax.config.keys import SplitConfig
from ctfake_jax.data import file_facts as facts_of_files
from ctfake_jax.data import splits
from ctfake_jax.data.fingerprints import Fingerprints
from ctfake_jax.evaluation import metrics
from ctfake_jax.runtime import streams
from ctfake_jax.types import ImageSet


def describe(images: ImageSet) -> dict:
  """Counts of an image set for results.json."""
  counts = np.bincount(images.labels, minlength=len(images.class_names))
  patients = {record.patient_id for record in images.records} - {None}
  return {
    'images': len(images),
    'classes': dict(zip(images.class_names, counts.tolist())),
    'patients': len(patients) or None,
    'unit': images.unit,
    'image_size': images.images.shape[1],
    'unreadable': [{'path': e.path, 'reason': e.reason} for e in images.unreadable],
    'skipped': dict(images.skipped),
    'grey_values_used': images.grey_range or None,
  }


def measure(
  images: ImageSet,
  folds: Sequence[splits.Split],
  config: SplitConfig,
  seed: int,
  root: Path | None = None,
) -> dict:
  """Accuracies pooled over the folds' test parts, with intervals over groups; leaks summed.

  `root` is the folder of the images' files; None where there are none.
  """
  facts = stated_facts(images, root)
  right: dict[str, list[np.ndarray]] = {'chance': [], 'nearest_neighbour': [], 'file_facts': []}
  audits, fingerprints = [], Fingerprints.of(images)
  for fold, parts in enumerate(folds):
    seen = np.concatenate([parts.train, parts.val])
    guesses = {
      'chance': majority(images.labels[seen], len(parts.test)),
      'nearest_neighbour': images.labels[fingerprints.nearest(seen, parts.test)[0]],
      'file_facts': file_facts(
        facts, images.labels, seen, parts.test, streams.seed(seed, 'forest of file facts', fold)
      ),
    }
    for name, guess in guesses.items():
      right[name].append(guess == images.labels[parts.test])
    audits.append(splits.leak_audit(images, fingerprints, parts, config.duplicate_correlation))
  groups = np.concatenate([parts.groups[parts.test] for parts in folds])
  rows = {name: metrics.accuracy_row(np.concatenate(hits), groups) for name, hits in right.items()}
  audit = {key: sum(audit[key] for audit in audits) for key in audits[0]}
  audit['near_duplicate_correlation'] = config.duplicate_correlation
  audit['contradictions'] = contradictions(images.labels, fingerprints.digests)
  if audit['contradictions']:
    print(f'warning: {audit["contradictions"]} images are found under another class, too')
  near = int(fingerprints.near_copies(images.labels, config.duplicate_correlation).sum())
  audit['near_contradictions'] = near
  if near > audit['contradictions']:
    print(
      f'warning: {near} images are nearly the same as one of another class: copies (re-encoded, '
      'cropped), or neighbouring slices'
    )
  return {**rows, 'leak_audit': audit, 'split_by': folds[0].by}


def contradictions(labels: Int[np.ndarray, ' n'], digests: UInt8[np.ndarray, 'n 32']) -> int:
  """How many images have pixels, of these digests, that have another label, too."""
  _, picture = np.unique(digests, axis=0, return_inverse=True)
  seen = np.unique(np.stack([picture.ravel(), labels]), axis=1)[0]
  return int((np.bincount(seen)[picture] > 1).sum())


def majority(labels: Int[np.ndarray, ' seen'], n: int) -> Int[np.ndarray, ' n']:
  """The commonest label, n times."""
  return np.full(n, np.argmax(np.bincount(labels)))


def stated_facts(images: ImageSet, root: Path | None) -> Float64[np.ndarray, 'n f']:
  """Height, width and aspect; of files below a root also codec, bits and JPEG's tables."""
  height, width = images.native_sizes.T
  sizes = np.stack([height, width, width / height], 1)
  if root is None:
    return sizes
  files = facts_of_files.of_files(root, [record.path for record in images.records])
  stated = [facts_of_files.NAMES.index(name) for name in ('codec', 'bits', 'quantisation')]
  return np.concatenate([sizes, files[:, stated]], 1)


def file_facts(
  facts: Float64[np.ndarray, 'n f'],
  labels: Int[np.ndarray, ' n'],
  seen: Int[np.ndarray, ' s'],
  test: Int[np.ndarray, ' t'],
  seed: int,
) -> Int[np.ndarray, ' t']:
  """Labels guessed by a random forest on `stated_facts` alone."""
  forest = RandomForestClassifier(200, random_state=seed, min_samples_leaf=2)
  return forest.fit(facts[seen], labels[seen]).predict(facts[test])
