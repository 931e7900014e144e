"""How good generated images are, held against reals that the generator has not seen.

In: fakes and reals as float32[n, h, h, 1] in [-1, 1] and an extractor (`extractor.py`). Out: one
dictionary of plain numbers and lists, ready for JSON.

The Fréchet distance is biased by the number of images, so the fakes' distance means something only
beside the floor: the distance of as many reals, drawn from other patients, to the same reference.
Both samples have the same n, the same mixture of classes and the same reference, the held-out
reals. The floor's reals may be training images: whatever separates the held-out part from the
training part, a generator cannot be asked to bridge.

What the Fréchet distance does not see well is repetition. It only knows moments, whose sampling
error goes as 1/n: 100 reals five times over lie (1/100 + 1/500) / (2/500) = 3 floors away from 500
reals to first order, whatever the features, and less where reals come in groups. With 2,000 reals
it is (1/100 + 1/2000) / (1/500 + 1/2000) = 4.2. So give as many held-out reals as there are, and
read `frechet` together with `repeats`, `recall` and MS-SSIM, as `marks` does.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from ctfake_jax.evaluation.sample_quality.distances import (
  frechet_distance,
  kernel_distance,
  nearest_ratio,
  precision_recall,
  repeats,
)
from ctfake_jax.evaluation.sample_quality.extractor import Extractor
from ctfake_jax.evaluation.sample_quality.structure import (
  radial_power_spectrum,
  spectrum_gap,
  within_class_ms_ssim,
)
from ctfake_jax.runtime import streams
from ctfake_jax.types import GroupedImages, Images, UserError

LIMIT = 500
FRECHET_MARK = 3.0
MS_SSIM_MARGIN = 0.1
# As varied a sample as the reals has 1 % by construction; up to 5 % was met among real CT, for a
# 1st percentile of 500 hangs on five images and near-twins cluster.
COPY_MARK = 0.1
_FEWEST = 20


def class_counts(
  reference: Int[np.ndarray, ' n'], pools: Mapping[str, Int[np.ndarray, ' _']], limit: int = LIMIT
) -> dict[int, int]:
  """How many of each class to draw from every pool: the reference's mixture, as many as all have.

  Args:
    reference: int[n], labels whose mixture is kept.
    pools: name in messages -> int[m], labels to draw from.
    limit: largest total.

  Raises:
    UserError: if fewer than 20 images result.
  """
  classes, counts = np.unique(reference, return_counts=True)
  shares = counts / counts.sum()
  room = {
    (name, int(c)): np.sum(labels == c) / share
    for name, labels in pools.items()
    for c, share in zip(classes, shares)
  }
  scarcest = min(room, key=room.__getitem__)
  total = min(float(limit), room[scarcest])
  if total < _FEWEST:
    raise UserError(
      f'quality: too few {scarcest[0]} of class {scarcest[1]}: they allow samples of {int(total)} '
      f'images in the classes of the held-out reals, at least {_FEWEST} are needed'
    )
  # The tiny term: 0.3 * (3 / 0.3) must not floor to 2.
  return {int(c): int(share * total + 1e-9) for c, share in zip(classes, shares)}


def draw(
  labels: Int[np.ndarray, ' n'],
  groups: Shaped[np.ndarray, ' n'],
  counts: dict[int, int],
  rng: np.random.Generator,
) -> Int[np.ndarray, ' m']:
  """Random indices with given class counts, spread over as many groups as possible.

  Every group gives one image before any gives a second: the kin of one patient would raise the
  floor, and images of a good generator are as independent as images of as many patients.
  """
  chosen = []
  for label, count in counts.items():
    order = rng.permutation(np.flatnonzero(labels == label))
    _, member = np.unique(groups[order], return_inverse=True)
    by_group = np.argsort(member, kind='stable')
    sizes = np.bincount(member)
    turn = np.empty(len(order), int)
    turn[by_group] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen.append(order[np.argsort(turn, kind='stable')[:count]])
  return np.concatenate(chosen)


def measure(
  extractor: Extractor,
  fakes: Images,
  *,
  reals: GroupedImages,
  train: GroupedImages,
  others: GroupedImages | None = None,
  seed: int,
  splits: int = 8,
) -> dict[str, Any]:
  """Everything about a set of generated images, beside the same of real ones.

  Args:
    extractor: named, at most 64 dimensions, not trained on the generator's data.
    fakes: with the classes that were asked for.
    reals: held-out images, the reference of all distances; more of them make the Fréchet distance
      sharper.
    train: what the generator saw.
    others: more real images, for the floor; the training images if None. Those whose group is among
      `reals` are left out.
    seed: of every draw.
    splits: draws of fakes and of floor reals over which the Fréchet distances are averaged.

  Returns:
    frechet, frechet_real_real: means over draws, beside them each draw in `..._draws`.
    kernel, precision, recall, spectrum_gap: of the fakes; the same of floor reals in `..._real`;
      kernel_ci95, kernel_real_ci95.
    ms_ssim_fake, ms_ssim_real, with `..._ci95`; spectrum_fake, spectrum_real: decades by radius.
    nearest_ratio, memorised, memorised_expected, repeats: see `distances`.
    extractor (its name), dimensions, n, n_reference, n_train; marks: see `marks`.

  Raises:
    UserError: if reals are too few, or share all their groups with the floor's.
  """
  pool = train if others is None else others
  pool = pool.take(np.flatnonzero(~np.isin(pool.groups, reals.groups)))
  pools = {
    'held-out reals': reals.labels,
    'generated images': fakes.labels,
    'reals for the floor, of groups not held out,': pool.labels,
  }
  counts = class_counts(reals.labels, pools)
  rng = streams.generator(seed, 'quality, draws')
  of_fakes = [draw(fakes.labels, np.arange(len(fakes)), counts, rng) for _ in range(splits)]
  of_pool = [draw(pool.labels, pool.groups, counts, rng) for _ in range(splits)]
  # As they come, twins included: what of reals is alike must not count against fakes.
  kept = draw(reals.labels, np.arange(len(reals.labels)), counts, rng)
  held = reals.take(kept)
  fake_features, pool_features, reference = (
    extractor(x) for x in (fakes.images, pool.images, reals.images)
  )
  fake, floor = fakes.take(of_fakes[0]), pool.take(of_pool[0])
  result: dict[str, Any] = {
    'extractor': extractor.name,
    'dimensions': reference.shape[1],
    'n': len(fake),
    'n_reference': len(reference),
    'n_train': len(train.labels),
    **_averaged('frechet', reference, [fake_features[i] for i in of_fakes]),
    **_averaged('frechet_real_real', reference, [pool_features[i] for i in of_pool]),
    **_kernel('kernel', reference, fake_features[of_fakes[0]], seed),
    **_kernel('kernel_real', reference, pool_features[of_pool[0]], seed),
    **_structure('fake', fake, seed),
    **_structure('real', held, seed),
    **nearest_ratio(fake.images, train.images, held.images),
    'repeats': repeats(fake.images, held.images),
    'spectrum_gap': spectrum_gap(held.images, fake.images),
    'spectrum_gap_real': spectrum_gap(held.images, floor.images),
  }
  for suffix, features in (('', fake_features[of_fakes[0]]), ('_real', pool_features[of_pool[0]])):
    precision, recall = precision_recall(reference[kept], features, groups=held.groups)
    result |= {f'precision{suffix}': precision, f'recall{suffix}': recall}
  return result | {'marks': marks(result)}


def _averaged(key: str, reference: np.ndarray, samples: list[np.ndarray]) -> dict[str, Any]:
  values = [frechet_distance(reference, sample) for sample in samples]
  return {key: float(np.mean(values)), f'{key}_draws': values}


def _kernel(key: str, reference: np.ndarray, sample: np.ndarray, seed: int) -> dict[str, Any]:
  value, interval = kernel_distance(reference, sample, seed=streams.seed(seed, key))
  return {key: value, f'{key}_ci95': list(interval)}


def _structure(key: str, own: Images, seed: int) -> dict[str, Any]:
  mean, interval = within_class_ms_ssim(
    own.images, own.labels, pairs=LIMIT, seed=streams.seed(seed, key)
  )
  return {
    f'ms_ssim_{key}': mean,
    f'ms_ssim_{key}_ci95': list(interval),
    f'spectrum_{key}': radial_power_spectrum(own.images).tolist(),
  }


def marks(measured: dict[str, Any]) -> dict[str, bool]:
  """Which marks a measured set of fakes reaches; good ones reach all.

  frechet: at most 3 times the real-against-real floor. ms_ssim: within-class similarity inside the
  reals' interval, 0.1 wider on each side. repeats and memorised: at most 10 % of the fakes are as
  near to another fake, or to a training image, as only 1 % of the reals are.
  """
  low, high = measured['ms_ssim_real_ci95']
  copies = COPY_MARK * measured['n']
  return {
    'frechet': measured['frechet'] <= FRECHET_MARK * measured['frechet_real_real'],
    'ms_ssim': low - MS_SSIM_MARGIN <= measured['ms_ssim_fake'] <= high + MS_SSIM_MARGIN,
    'repeats': measured['repeats'] <= copies,
    'memorised': measured['memorised'] <= copies,
  }
