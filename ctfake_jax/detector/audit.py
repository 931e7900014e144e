"""The shortcut audit: what tells real from fake without any forensics.

Random forests on facts of files, on classes, on facts of grey values (range, tails, border) and on
thumbnails are tried for each family, by folds of whole groups. A detector could learn what they
find. Facts of files and classes must not differ at all; for images made here they cannot, since
reals and fakes pass one path and come in one mix. Grey values and thumbnails of those may differ,
by how good their generator is; of somebody's folder nobody knows what made them differ, so it is
refused unless that is accepted. Labels drawn anew show what chance gives.
"""

import numpy as np
from jaxtyping import Float
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold

from ctfake_jax.data import file_facts
from ctfake_jax.data.fingerprints import thumbnail_and_digest
from ctfake_jax.data.preprocess import resize
from ctfake_jax.detector.dataset import FOLDER, REAL, DetectorDataset
from ctfake_jax.evaluation import metrics
from ctfake_jax.runtime import streams
from ctfake_jax.types import UserError

LEAK = 0.6
KINDS = ('file_facts', 'class_mix', 'grey_facts', 'thumbnails')
FOLDS = 5
THUMBNAIL = 8
TAIL = 0.98
SAME = 0.995  # correlation of 32x32 pixels from which a fake is a copy of a real
GREY_NAMES = ('minimum', 'maximum', 'levels', 'low_tail', 'high_tail', 'border_mean', 'border_std')


def audit(shown: DetectorDataset, seed: int) -> dict:
  """For each family the AUROC of what should tell nothing, and the fact that tells most.

  Returns:
    {family: {file_facts, class_mix, grey_facts, thumbnails, random_labels: AUROC or None, tells:
    name or None, copies: how many fakes are copies of a real}}.
  """
  return {
    family: _audit_family(shown.of(REAL, family), seed)
    for family in sorted(set(shown.families) - {REAL})
  }


def refuse_leaks(found: dict, ignore: bool) -> None:
  """UserError where files' facts or classes tell a family from reals, or anything tells a folder's.

  With `ignore` never.
  """
  if ignore:
    return
  for family, row in found.items():
    for kind in KINDS if family == FOLDER else KINDS[:2]:
      if _loud(row, kind):
        raise UserError(
          f'{family}: distinguished from the originals by {_leak(row, kind)}; store both alike, or '
          "if that is their generator's own doing, set --config.detection.ignore_leaks=True"
        )


def remarks(found: dict) -> list[str]:
  """What does not stop the making, but who gave the fakes should see."""
  said = []
  for family, row in found.items():
    leaks = '; '.join(_leak(row, kind) for kind in KINDS if _loud(row, kind))
    if leaks:
      said.append(f'{family}: distinguished from the originals without forensics, by {leaks}')
    if row['copies']:
      said.append(f'{family}: {row["copies"]} are copies of originals')
  return said


def _loud(row: dict, kind: str) -> bool:
  return row[kind] is not None and row[kind] > LEAK


def _leak(row: dict, kind: str) -> str:
  fact = f', {row["tells"]} most' if row['tells'] and kind.endswith('facts') else ''
  return f'{kind.replace("_", " ")} alone (AUROC {row[kind]:.2f}{fact})'


def grey_facts(images: Float[np.ndarray, 'n h w 1']) -> Float[np.ndarray, 'n f']:
  """f64[n, 7] in the order of `GREY_NAMES`, of f32[n, h, w, 1] in [-1, 1]."""
  flat = images.reshape(len(images), -1)
  side = images.shape[1]
  inner = np.zeros((side, side), bool)
  inner[1:-1, 1:-1] = True
  border = flat[:, ~inner.ravel()]
  levels = [len(np.unique(row)) for row in flat]
  return np.stack(
    [
      flat.min(1),
      flat.max(1),
      levels,
      (flat <= -TAIL).mean(1),
      (flat >= TAIL).mean(1),
      border.mean(1),
      border.std(1),
    ],
    1,
  )


def _audit_family(shown: DetectorDataset, seed: int) -> dict:
  rng = streams.generator(seed, 'random labels')
  thumbnails = np.stack([resize(image, THUMBNAIL).ravel() for image in shown.images[..., 0]])
  greys = grey_facts(shown.images)
  files = shown.file_facts
  # Copies of a real in both classes belong to one fold.
  names, index = np.unique(shown.groups, return_inverse=True)
  drawn = rng.permutation(np.arange(len(names)) % 2 == 0)[index]
  known = not np.isnan(files).any()
  labelled = shown.labels.min() >= 0
  classes = np.eye(shown.labels.max() + 1)[shown.labels]
  return {
    'file_facts': _auroc(files, shown.fake, shown.groups, seed) if known else None,
    'class_mix': _auroc(classes, shown.fake, shown.groups, seed) if labelled else None,
    'grey_facts': _auroc(greys, shown.fake, shown.groups, seed),
    'thumbnails': _auroc(thumbnails, shown.fake, shown.groups, seed),
    'random_labels': _auroc(greys, drawn, shown.groups, seed),
    'tells': _loudest(files, greys, shown.fake) if known else _loudest(None, greys, shown.fake),
    'copies': _copies(shown),
  }


def _auroc(facts: np.ndarray, truth: np.ndarray, groups: np.ndarray, seed: int) -> float:
  """Of a random forest, over folds of whole groups."""
  scores = np.zeros(len(truth))
  folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=streams.seed(seed, 'audit folds'))
  for train, test in folds.split(facts, truth, groups):
    forest = RandomForestClassifier(
      100, min_samples_leaf=3, random_state=streams.seed(seed, 'audit forest'), n_jobs=1
    )
    scores[test] = forest.fit(facts[train], truth[train]).predict_proba(facts[test])[:, 1]
  return metrics.auroc(scores[truth], scores[~truth])


def _loudest(files: np.ndarray | None, greys: np.ndarray, fake: np.ndarray) -> str | None:
  """The single fact that tells most, facts of files first; None where none tells anything."""
  for names, facts in ((file_facts.NAMES, files), (GREY_NAMES, greys)):
    if facts is None:
      continue
    aurocs = [metrics.auroc(column[fake], column[~fake]) for column in facts.T]
    strength = np.abs(np.array(aurocs) - 0.5)
    if np.max(strength) > LEAK - 0.5:
      return names[int(np.argmax(strength))]
  return None


def _copies(shown: DetectorDataset) -> int:
  """Whole-image fakes that are one of the reals again: a generator that has memorised.

  What was rebuilt from a real, and so is of its group, is meant to resemble it.
  """
  rebuilt = np.isin(shown.groups, shown.groups[~shown.fake]) & (shown.families != FOLDER)
  whole = shown.fake & shown.masks.all((1, 2)) & ~rebuilt
  if not whole.any():
    return 0
  reals, fakes = (
    np.stack([thumbnail_and_digest(image)[0] for image in shown.images[rows]])
    for rows in (~shown.fake, whole)
  )
  return int(((fakes @ reals.T).max(1) > SAME).sum())
