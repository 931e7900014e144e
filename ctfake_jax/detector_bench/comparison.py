"""Whether one method is better than another on the same images."""

import dataclasses

import numpy as np
import scipy.stats
import sklearn.metrics
from jaxtyping import Bool, Real, Shaped

from ctfake_jax.runtime import streams

RESAMPLES = 200


@dataclasses.dataclass(frozen=True)
class Scores:
  """What one method said of n images: scores f[n], fake bool[n], groups int[n]."""

  scores: Real[np.ndarray, ' n']
  fake: Bool[np.ndarray, ' n']
  groups: Shaped[np.ndarray, ' n']


def mean_auroc_difference(a: dict[str, Scores], b: dict[str, Scores], seed: int) -> dict:
  """Mean AUROC over cells of method a less that of b: {value, ci95}.

  The cells share their originals, so a bootstrap draws groups, each with its images in all cells.
  The two best of a table were chosen by these figures: an interval about the pair flatters it.
  """
  names = np.unique(np.concatenate([cell.groups for cell in a.values()]))
  rng = streams.generator(seed, 'bootstrap of cells')
  draws = []
  for _ in range(RESAMPLES):
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))
    draws.append(_difference(a, b, dict(zip(names.tolist(), counts.tolist()))))
  whole = _difference(a, b, dict.fromkeys(names.tolist(), 1))
  return {'value': whole, 'ci95': [float(q) for q in np.nanpercentile(draws, [2.5, 97.5])]}


def _difference(a: dict[str, Scores], b: dict[str, Scores], counts: dict[int, int]) -> float:
  differences = []
  for unit, cell in a.items():
    weights = np.array([counts[group] for group in cell.groups.tolist()], float)
    if weights[cell.fake].any() and weights[~cell.fake].any():
      first, second = (
        sklearn.metrics.roc_auc_score(cell.fake, method[unit].scores, sample_weight=weights)
        for method in (a, b)
      )
      differences.append(first - second)
  return float(np.mean(differences)) if differences else float('nan')


def delong(
  scores_a: Real[np.ndarray, ' n'], scores_b: Real[np.ndarray, ' n'], fake: Bool[np.ndarray, ' n']
) -> float:
  """Two-sided p-value that two methods' scores f[n] have the same AUROC.

  DeLong, DeLong & Clarke-Pearson 1988, doi:10.2307/2531595. Images are taken as independent.
  """
  placements = [_placements(scores, fake) for scores in (scores_a, scores_b)]
  on_fakes, on_reals = (np.stack([p[i] for p in placements]) for i in (0, 1))
  covariance = np.cov(on_fakes) / on_fakes.shape[1] + np.cov(on_reals) / on_reals.shape[1]
  variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
  difference = on_fakes[0].mean() - on_fakes[1].mean()
  if variance <= 0:
    return 1.0 if difference == 0 else 0.0
  return float(2 * scipy.stats.norm.sf(abs(difference) / np.sqrt(variance)))


def _placements(scores: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Share of reals below each fake, and of fakes above each real; ties count half."""
  positive, negative = scores[fake], scores[~fake]
  ranks = scipy.stats.rankdata(np.concatenate([positive, negative]))
  within_positive, within_negative = scipy.stats.rankdata(positive), scipy.stats.rankdata(negative)
  on_fakes = (ranks[: len(positive)] - within_positive) / len(negative)
  on_reals = 1 - (ranks[len(positive) :] - within_negative) / len(positive)
  return on_fakes, on_reals
