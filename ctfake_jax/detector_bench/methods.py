"""The methods: each is trained in a context and leaves a scorer of images.

A score is higher for what looks fake. Methods that learn real against fake see every family of the
context; those of one class see originals alone, or a classifier of the originals' labels.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.ensemble
import sklearn.linear_model
import sklearn.pipeline
import sklearn.preprocessing
import sklearn.svm
import sklearn.tree
from jaxtyping import Float

from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import Config
from ctfake_jax.data.transforms import degradations
from ctfake_jax.detector import discriminant, training
from ctfake_jax.detector.dataset import REAL, DetectorDataset
from ctfake_jax.detector_bench.handcrafted_features import named_features, spectra
from ctfake_jax.evaluation import ood_scores
from ctfake_jax.inference import classifier as inference
from ctfake_jax.inference import generator as sampling
from ctfake_jax.models import diffusion, registry
from ctfake_jax.models.ops.convolution import conv
from ctfake_jax.models.patch_net import with_residuals
from ctfake_jax.runtime import batching, streams

RESERVOIRS, RESERVOIR_WIDTHS, RESERVOIR_SPREAD = 4, (16, 32, 64), 1.5
RESIDUAL_TIMES = (0.1, 0.2, 0.3)
HIGHEST_RATES = {'vgg19': 1e-4}  # without normalisation it dies at the others'

Score = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainingContext:
  """What a method may learn from.

  Attributes:
    train, validation: reals and fakes of the families that are not held out.
    bench: the workdir, where generators and the classifier of labels are.
    folder: for the method's own checkpoints.
  """

  config: Config
  train: DetectorDataset
  validation: DetectorDataset
  bench: Path
  folder: Path
  seed: int


@dataclasses.dataclass(frozen=True)
class FittedMethod:
  """A method that has learnt.

  Attributes:
    score: f64[n] of images f32[n, h, w, 1].
    parameters: numbers fitted, where that means something.
    size: what its training was cut to, in words.
    logits: whether scores are log odds before any calibration.
    within_domain: whether what is unlike its own reals and fakes is left undecided, as by `detect`.
  """

  score: Score
  parameters: int | None
  size: str = ''
  logits: bool = False
  within_domain: bool = False


def network(name: str, context: TrainingContext) -> FittedMethod:
  """Real against fake by a network: the shipped detector's, or one of `registry.MODELS`."""
  c = context.config.detection
  if name == SHIPPED:
    model = registry.patch_net(c)
  else:
    model = registry.MODELS[name](num_classes=1)
    updates = context.config.bench.network_updates
    rate = min(c.learning_rate, HIGHEST_RATES.get(name, np.inf))
    c = dataclasses.replace(c, updates=updates, eval_every=updates, learning_rate=rate)
  config = dataclasses.replace(context.config, seed=context.seed, detection=c)
  variables, facts = training.train_network(
    config, model, context.train, context.validation, context.folder / 'network', name
  )
  if name == SHIPPED:
    variables, _ = discriminant.fit_discriminant(
      model, variables, context.train, context.validation, context.seed
    )

  def score(images):
    return training.predict(model, variables, images)[0].astype(np.float64)

  size = f'{c.updates} updates of {c.batch_size} at {config.data.image_size} px'
  shipped = name == SHIPPED
  return FittedMethod(score, facts['parameters'], size, logits=not shipped, within_domain=shipped)


def learner(features: Score, make: Callable[[int], Any], context: TrainingContext) -> FittedMethod:
  """A classical learner on features of the training images, each degraded at random once."""
  images, fake = degradations.at_random(context.train.images, context.seed), context.train.fake
  line = sklearn.pipeline.make_pipeline(
    sklearn.preprocessing.StandardScaler(), make(streams.seed(context.seed, 'learner'))
  ).fit(features(images), fake)

  def score(images):
    found = features(images)
    if hasattr(line, 'decision_function'):
      return line.decision_function(found)
    return line.predict_proba(found)[:, 1]

  return FittedMethod(score, None)


def reservoir(context: TrainingContext) -> FittedMethod:
  """Convolutional reservoirs: untrained random filters, several of them, and one linear reader.

  After MediFaked (Budhiraja et al. 2022), whose code and sizes are not public.
  """
  bank = [_random_filters(context.seed, i) for i in range(RESERVOIRS)]

  def features(images):
    echoes = [batching.map_batches(lambda f, _, batch: _echo(f, batch), f, images) for f in bank]
    return np.concatenate(echoes, 1)

  return learner(features, _logistic, context)


def _random_filters(seed: int, number: int) -> tuple[jax.Array, ...]:
  widths = (3, *RESERVOIR_WIDTHS)
  keys = jax.random.split(streams.key(seed, 'reservoir', number), len(RESERVOIR_WIDTHS))
  return tuple(
    RESERVOIR_SPREAD / np.sqrt(9 * c_in) * jax.random.normal(key, (3, 3, c_in, c_out))
    for key, c_in, c_out in zip(keys, widths[:-1], widths[1:])
  )


@jax.jit
def _echo(filters: tuple[jax.Array, ...], images: jax.Array) -> jax.Array:
  """Means and deviations f32[b, d] of every channel after each layer."""
  x, found = with_residuals(images), []
  for kernel in filters:
    x = jnp.tanh(conv(x, kernel, stride=2, padding=1))
    found += [x.mean((1, 2)), x.std((1, 2))]
  return jnp.concatenate(found, -1)


def by_labels(kind: str, context: TrainingContext) -> FittedMethod:
  """How unlike its training an image is to a classifier of the originals' labels."""
  trained = inference.load(context.bench / CLASSIFIER)
  if kind in ON_LOGITS:
    return FittedMethod(lambda images: ON_LOGITS[kind](outputs(trained, images)[0]), None)
  reals = context.train.of(REAL)
  fitted = ON_FEATURES[kind](outputs(trained, reals.images)[1], reals.labels)
  return FittedMethod(lambda images: fitted(outputs(trained, images)[1]), None)


def outputs(
  trained: inference.Trained, images: Float[np.ndarray, 'n h w 1']
) -> tuple[Float[np.ndarray, 'n c'], Float[np.ndarray, 'n d']]:
  """Logits f32[n, c] and features f32[n, d]."""
  return inference.logits_and_features(trained.model, trained.variables, images)


ON_LOGITS = {'max_softmax': ood_scores.max_softmax, 'energy': ood_scores.energy}
ON_FEATURES: dict[str, Callable[[np.ndarray, np.ndarray], Score]] = {
  'mahalanobis': ood_scores.MahalanobisScore.fit,
  'neighbours': lambda features, _: ood_scores.NeighboursScore.fit(features),
}


def diffusion_residual(context: TrainingContext) -> FittedMethod:
  """What a diffusion model of originals does not explain in one reverse step.

  The model is one of its own, without labels: none that makes fakes here. After Back-in-Time
  Diffusion (Grabovski et al. 2024, arXiv:2407.15169): the mean and largest residual at some times,
  and how far they are from those of the originals.
  """
  trained = sampling.load(context.bench / RESIDUAL)
  unet, variables = trained.sampler.generator.unet, trained.sampler.variables  # type: ignore[attr-defined]

  def features(images):
    return batching.map_batches(lambda v, _, batch: _residuals(unet, v, batch), variables, images)

  reals = features(context.train.of(REAL).images)
  fitted = ood_scores.MahalanobisScore.fit(reals, np.zeros(len(reals), int))
  return FittedMethod(lambda images: fitted(features(images)), None)


@functools.partial(jax.jit, static_argnums=0)
def _residuals(unet, variables: dict, images: jax.Array) -> jax.Array:
  found: list[jax.Array] = []
  for i, time in enumerate(RESIDUAL_TIMES):
    signal, noise = diffusion.signal_and_noise(jnp.asarray(time))
    x = signal * images + noise * jax.random.normal(streams.key(0, 'residual', i), images.shape)
    implied, _ = diffusion.implied(unet, variables, x, jnp.full(len(images), time), None)
    size = jnp.log(jnp.abs(implied - images) + 1e-3)
    found += [size.mean((1, 2, 3)), size.max((1, 2, 3))]
  return jnp.stack(found, -1)


def _logistic(seed: int):
  return sklearn.linear_model.LogisticRegression(
    C=0.1, max_iter=2000, class_weight='balanced', random_state=seed
  )


def _svm(seed: int):
  return sklearn.svm.SVC(class_weight='balanced', random_state=seed)


def _forest(seed: int):
  return sklearn.ensemble.RandomForestClassifier(
    300, class_weight='balanced', min_samples_leaf=2, random_state=seed
  )


def _tree(seed: int):
  return sklearn.tree.DecisionTreeClassifier(
    class_weight='balanced', min_samples_leaf=10, random_state=seed
  )


SHIPPED = 'detector'
CLASSIFIER = 'classifier'  # folder of the classifier of labels
RESIDUAL = 'diffusion_of_reals'  # folder of the model behind `diffusion_residual`
FALL = 'fall_of_50'  # judged by batches, see `run`
METHODS: dict[str, Callable[[TrainingContext], FittedMethod]] = {
  **{kind: functools.partial(by_labels, kind) for kind in (*ON_LOGITS, *ON_FEATURES)},
  'spectrum': functools.partial(learner, spectra, _logistic),
  'svm': functools.partial(learner, named_features, _svm),
  'random_forest': functools.partial(learner, named_features, _forest),
  'decision_tree': functools.partial(learner, named_features, _tree),
  'reservoir': reservoir,
  'diffusion_residual': diffusion_residual,
  **{name: functools.partial(network, name) for name in config_lib.MODELS},
  SHIPPED: functools.partial(network, SHIPPED),
}
