"""Whether one method is better than another on the same images."""

import numpy as np
import scipy.stats


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
  """Two-sided exact p-value that two methods, right or wrong bool[n], err equally often.

  McNemar 1947, doi:10.1007/BF02295996: a binomial test on the images where they differ.
  """
  only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
  if only_a + only_b == 0:
    return 1.0
  return float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue)


def delong(scores_a: np.ndarray, scores_b: np.ndarray, fake: np.ndarray) -> float:
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
