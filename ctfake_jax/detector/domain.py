"""Whether an image belongs to what a detector was calibrated on, fake or not.

Another source's real pictures have another window, field of view or frame, and a detector that
never saw such may call them fake. So a verdict is for images that look, coarsely, like those of its
making: by the grey levels of blocks, the border and an 8 x 8 thumbnail. None of these sees the
fine texture that generators leave, so that the test is nearly blind to fakery. A logistic score of
features and their squares (which closes round a cloud, as a plane cannot) is learnt of originals
*and* fakes as they are, or with another brightness, against the same as other sites show them
(`transforms.domain_randomization`). What may lie inside is decided by originals and by fakes of
generators that the score was fitted without; images from elsewhere have no say.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ctfake_jax.data.transforms import degradations, domain_randomization
from ctfake_jax.detector.dataset import FOLDER, REAL, DetectorDataset
from ctfake_jax.fakes import families as fakes
from ctfake_jax.runtime import batching, streams

THUMBNAIL, BLOCKS, BORDER = 8, 16, 32  # images are shrunk to these sides
LEVELS = np.linspace(0.02, 0.98, 17).tolist()  # quantiles of blocks
BORDER_LEVELS = [0.1, 0.5, 0.9]
# Brightness and contrast that generators miss their originals' by, and which say nothing.
GAIN, OFFSET = (0.8, 1.2), (-0.3, 0.15)
BRIGHTER = (1.1, 2.5)  # what white becomes, where another site's pictures are brighter
LEAST_CHANGE = 0.02  # of some pixel; a look that changes less is drawn again
DRAWS = 8
REALS_OUTSIDE, FAKES_OUTSIDE = 0.01, 0.05  # shares of known images that the limit lies beyond
INVERSE_PENALTY = 0.1
FARTHEST = 8.0  # deviations
FOLDS = 5
CROWD = 0.5  # more than this share of a batch outside: the batch is from elsewhere
FEWEST_OF_A_BATCH = 5  # images that can say where a batch comes from
BATCH, BATCHES = 20, 4000  # drawn to measure how often that is said


@dataclasses.dataclass(frozen=True)
class Domain:
  """A score of coarse features; an image whose score is above the limit lies outside.

  Attributes:
    centre, scale: f[d] of what lies inside.
    weights: of the features in units of scale and of their squares.
    bias: such that originals have mean 0 and deviation 1.
    limit: in these deviations.
  """

  centre: Float[np.ndarray, ' d']
  scale: Float[np.ndarray, ' d']
  weights: Float[np.ndarray, ' 2*d']
  bias: float
  limit: float

  def scores(self, features: Float[np.ndarray, 'n d']) -> Float[np.ndarray, ' n']:
    """Of `features_of` images."""
    return _with_squares((features - self.centre) / self.scale) @ self.weights + self.bias


@jax.jit
def coarse_features(images: Float[Array, 'b h h 1']) -> Float[Array, 'b 86']:
  """Of images in [-1, 1], their side a multiple of 32."""
  blocks, border = _shrunk(images, BLOCKS), _shrunk(images, BORDER)
  edge = jnp.concatenate([border[:, 0], border[:, -1], border[:, :, 0], border[:, :, -1]], 1)
  return jnp.concatenate(
    [
      _quantiles(blocks.reshape(len(images), -1), LEVELS),
      edge.mean(1, keepdims=True),
      edge.std(1, keepdims=True),
      _quantiles(edge, BORDER_LEVELS),
      _shrunk(images, THUMBNAIL).reshape(len(images), -1),
    ],
    1,
  )


def features_of(images: Float[np.ndarray, 'n h h 1']) -> Float[np.ndarray, 'n d']:
  """`coarse_features` of any number of images."""
  return batching.map_batches(lambda _, number, batch: coarse_features(batch), (), images)


def comes_from_elsewhere(outside: int, judged: int) -> bool:
  """Whether so many images outside of the domain say it of a batch of so many."""
  return judged >= FEWEST_OF_A_BATCH and outside > CROWD * judged


def batch_rates(
  reals: Bool[np.ndarray, ' n'],
  fakes: Bool[np.ndarray, ' m'],
  elsewhere: Bool[np.ndarray, ' k'],
  seed: int,
) -> dict[str, float]:
  """How often `comes_from_elsewhere` is said of batches of 20, drawn with replacement.

  Args:
    reals: which lie outside of the domain, of the test part; half of a batch of the source site.
    fakes: the same of fakes, the other half.
    elsewhere: the same of images that come from elsewhere.
    seed: of the draws.
  """
  rng = streams.generator(seed, 'batches')

  def outside(of: np.ndarray, count: int) -> np.ndarray:
    return rng.choice(of, (BATCHES, count)).sum(1)

  home, foreign = outside(reals, BATCH // 2) + outside(fakes, BATCH // 2), outside(elsewhere, BATCH)
  shares = [np.mean([comes_from_elsewhere(int(n), BATCH) for n in own]) for own in (home, foreign)]
  return {'batch_false_alarms': float(shares[0]), 'batch_power': float(shares[1])}


def generator_of(family: str) -> str:
  """What made a family of fakes: the name of a network, 'edits', or the folder they came from."""
  if family == FOLDER:
    return FOLDER
  return fakes.FAMILIES[family].network or 'edits'


def fit_domain(
  train: DetectorDataset,
  validation: DetectorDataset,
  reals: Float[np.ndarray, 'n h w 1'],
  seed: int,
) -> Domain:
  """The domain of a making.

  Args:
    train: the score is learnt of these.
    validation: its originals give mean and deviation, its fakes the limit, each generator's by a
      score that was learnt without that generator.
    reals: f32[n, h, h, 1], one of each group; all but `REALS_OUTSIDE` of them lie inside.
    seed: of the other sites' looks.
  """
  inside, outside = (
    _with_other_brightness(train.images, seed),
    domain_randomized(train.images, seed),
  )
  makers = np.array([_maker(family) for family in train.families])
  seen, bright, others = (features_of(images) for images in (train.images, inside, outside))
  source_reals = features_of(validation.of(REAL).images)

  def without(maker: str | None) -> Domain:
    kept = makers != maker
    return _learnt(seen[kept], bright[kept], others[kept], source_reals)

  limits = [_beyond(without(None).scores(features_of(reals)), REALS_OUTSIDE)]
  for maker in sorted(set(makers) - {REAL}):
    own = np.isin([_maker(family) for family in validation.families], maker)
    scores = without(maker).scores(features_of(validation.images[own]))
    limits.append(_beyond(scores, FAKES_OUTSIDE))
  return dataclasses.replace(without(None), limit=max(limits))


def fit_site_domain(old: Domain, images: Float[np.ndarray, 'n h w 1'], seed: int) -> Domain:
  """The domain of another site's reals f32[n, h, h, 1], with no fakes to learn from.

  The limit is the old one, or what all but `REALS_OUTSIDE` of the reals keep by the others' score.
  """
  changed = (
    images,
    _with_other_brightness(images, seed),
    *(domain_randomized(images, streams.seed(seed, 'again', i)) for i in range(FOLDS)),
  )
  features = [features_of(x) for x in changed]
  fold = np.arange(len(images)) % min(FOLDS, len(images))

  def without(left_out: np.ndarray) -> Domain:
    kept = ~left_out
    seen, bright, *others = (found[kept] for found in features)
    return _learnt(seen, bright, np.concatenate(others), seen)

  scores = np.concatenate(
    [without(fold == k).scores(features[0][fold == k]) for k in np.unique(fold)]
  )
  limit = max(old.limit, _beyond(scores, REALS_OUTSIDE))
  return dataclasses.replace(without(np.zeros(len(images), bool)), limit=limit)


def domain_randomized(
  images: Float[np.ndarray, 'n h w 1'], seed: int
) -> Float[np.ndarray, 'n h w 1']:
  """Each as another site shows it, in 8 bits; at least a little changed."""
  changed = images.copy()
  for draw in range(DRAWS):
    rows = np.flatnonzero(np.abs(changed - images).max((1, 2, 3)) < LEAST_CHANGE)
    if not len(rows):
      break
    key = streams.key(seed, 'looks', draw)
    changed[rows] = _in_batches(_randomized, images[rows], key)
  return changed


def _with_other_brightness(images: np.ndarray, seed: int) -> np.ndarray:
  return _in_batches(_brightness, images, streams.key(seed, 'brightness'))


def _in_batches(change, images: np.ndarray, key: jax.Array) -> np.ndarray:
  def changed(key, number, batch):
    return change(batch, jax.random.fold_in(key, number))

  return batching.map_batches(changed, key, images)


@jax.jit
def _randomized(images: jax.Array, key: jax.Array) -> jax.Array:
  tone, bright, choice, field, zoom = jax.random.split(key, 5)
  # To a site of dark pictures the others are those that are bright.
  brighter = jax.random.bernoulli(choice, shape=(len(images), 1, 1, 1))
  toned = jnp.where(
    brighter,
    domain_randomization.toned(images, bright, BRIGHTER),
    domain_randomization.toned(images, tone),
  )
  return degradations.as_8_bit(
    domain_randomization.zoomed_out(domain_randomization.in_field(toned, field), zoom)
  )


@jax.jit
def _brightness(images: jax.Array, key: jax.Array) -> jax.Array:
  gain, offset = (
    jax.random.uniform(k, (len(images),), minval=low, maxval=high)
    for k, (low, high) in zip(jax.random.split(key), (GAIN, OFFSET))
  )
  return degradations.as_8_bit(degradations.windowed(images, gain, offset))


def _learnt(
  seen: np.ndarray, bright: np.ndarray, others: np.ndarray, source_reals: np.ndarray
) -> Domain:
  """A score of features f[n, d], inside against outside, standard on originals; without limit."""
  inside = np.concatenate([seen, bright]).astype(np.float64)
  centre, scale = inside.mean(0), np.maximum(inside.std(0), 1e-6)
  known, elsewhere, own = (
    _with_squares((x - centre) / scale) for x in (inside, others, source_reals)
  )
  line = make_pipeline(
    StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=1000, class_weight='balanced')
  ).fit(np.concatenate([known, elsewhere]), np.repeat([False, True], [len(known), len(elsewhere)]))
  weights = line[1].coef_[0] / line[0].scale_
  scores = own @ weights
  deviation = max(float(scores.std()), 1e-9)
  return Domain(centre, scale, weights / deviation, -float(scores.mean()) / deviation, np.inf)


def _with_squares(standard: np.ndarray) -> np.ndarray:
  """f[n, 2 d] of f[n, d], which is cut off far out, where nothing was learnt."""
  cut = standard.clip(-FARTHEST, FARTHEST)
  return np.concatenate([cut, cut**2], 1)


def _beyond(scores: np.ndarray, share: float) -> float:
  """What a new one of such scores f[n] exceeds with a chance of `share`, or the highest of few."""
  rank = min(math.ceil((len(scores) + 1) * (1 - share)), len(scores))
  return float(np.sort(scores)[rank - 1])


def _maker(family: str) -> str:
  return REAL if family == REAL else generator_of(family)


@functools.partial(jax.jit, static_argnums=1)
def _shrunk(images: jax.Array, side: int) -> jax.Array:
  """Means f32[b, side, side] in [0, 1] of the squares of f32[b, h, h, 1]."""
  b, height, width, _ = images.shape
  squares = images.reshape(b, side, height // side, side, width // side)
  return (squares.mean((2, 4)) + 1) / 2


def _quantiles(values: jax.Array, shares: list[float]) -> jax.Array:
  """f32[b, k] of f32[b, n], interpolated between neighbours in order (as NumPy's default)."""
  ordered = jnp.sort(values, 1)
  place = np.array(shares) * (values.shape[1] - 1)
  low = np.floor(place).astype(int)
  part = jnp.asarray(place - low, jnp.float32)[None]
  high = np.minimum(low + 1, values.shape[1] - 1)
  return (1 - part) * ordered[:, low] + part * ordered[:, high]
