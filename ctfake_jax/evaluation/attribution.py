"""Where in an image a network's answer comes from, and how far such a map can be trusted.

A map is f64[h, w], higher where the image speaks for the answer. `grad_cam` looks inside the
network, `lime` only at what it says where places are taken away; `faithfulness` takes away and
brings back those that a map calls important. Maps that do no better than `random_map` explain
nothing. How places are taken away is the model's own matter.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import skimage.segmentation
from jaxtyping import Array, Bool, Float, Float32, Float64, Int
from scipy import ndimage
from sklearn.linear_model import Ridge

from ctfake_jax.models.layers import PERTURBATIONS
from ctfake_jax.runtime import streams
from ctfake_jax.types import UserError

SMALLEST_STAGE = 4  # pixels; smaller maps say nothing of the place
SLIC_COMPACTNESS = 0.1
LIME_KERNEL_WIDTH = 0.25  # of the cosine distance
LIME_RIDGE = 1.0
CURVE_STEPS = 16
BLUR_SIDES = 1 / 8  # standard deviation of the blur that stands for "nothing there" by default
RANDOM_CELLS = 8
RANDOM_MAPS = 5  # whose mean areas stand beside those of a map

# From places kept of one image to answers.
PredictMasked = Callable[[Bool[np.ndarray, 'n h w']], Float[np.ndarray, ' n']]


def stages(
  model: nn.Module, variables: dict, images: Float32[np.ndarray, 'b h w c']
) -> dict[str, tuple[int, ...]]:
  """Names and shapes of the network's stages that have a height and a width."""
  features = jax.eval_shape(lambda x: model.apply(variables, x, train=False)[1], images)
  return {n: f.shape for n, f in features.items() if n.startswith('stage') and len(f.shape) == 4}


def pick_stage(shapes: dict[str, tuple[int, ...]], asked: str) -> str:
  """The stage asked for; '' takes the deepest of at least `SMALLEST_STAGE` pixels a side.

  Raises:
    UserError: there is no such stage.
  """
  if asked and asked not in shapes:
    raise UserError(f'config.explain.stage = {asked}: unknown; have: {", ".join(shapes)}')
  large = [name for name, shape in shapes.items() if min(shape[1:3]) >= SMALLEST_STAGE]
  return asked or (large or list(shapes))[-1]


def grad_cam(
  model: nn.Module,
  variables: dict,
  images: Float32[np.ndarray, 'b h w c'],
  targets: Int[np.ndarray, ' b'],
  stage: str,
) -> Float32[np.ndarray, 'b h w']:
  """Gradient-weighted class activation maps, at least 0, of images.

  Selvaraju et al. 2017, arXiv:1610.02391: the stage's channels, weighted by the mean gradient of
  the answer with respect to them; negative sums are cut off.

  `targets` are the logits to explain, not used by networks with one; `stage` is a name of `stages`.
  """
  shape = (len(images), *stages(model, variables, images)[stage][1:])
  return np.asarray(_grad_cam(model, stage, variables, images, targets, jnp.zeros(shape)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _grad_cam(model, stage, variables, images, targets, zeros):
  def answer(perturbation):
    perturbed = {**variables, PERTURBATIONS: {stage: perturbation}}
    logits, features = model.apply(perturbed, images, train=False)
    return chosen_logits(logits, targets).sum(), features[stage]

  gradient, activation = jax.grad(answer, has_aux=True)(zeros)
  weights = gradient.mean((1, 2), keepdims=True)
  maps = jax.nn.relu((weights * activation).sum(-1))
  return jax.image.resize(maps, (len(images), *images.shape[1:3]), 'linear')


def chosen_logits(
  logits: Float[Array, 'b c'] | Float[Array, ' b'], targets: Int[Array, ' b']
) -> Float[Array, ' b']:
  """Logits of several classes at targets; single ones as they are."""
  return logits if logits.ndim == 1 else jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]


def lime(
  judge: PredictMasked,
  image: Float32[np.ndarray, 'h w 1'],
  *,
  superpixels: int,
  samples: int,
  seed: int,
) -> Float64[np.ndarray, 'h w']:
  """Local linear explanation: the weight of each superpixel, of either sign.

  Ribeiro, Singh & Guestrin 2016, arXiv:1602.04938. Superpixels are SLIC's (Achanta et al. 2012).
  A ridge regression on which were kept in each sample, weighted by its cosine distance to the whole
  image, gives the weights. `judge` answers where parts of `image` are left.
  """
  segments = skimage.segmentation.slic(
    image[..., 0], n_segments=superpixels, compactness=SLIC_COMPACTNESS, channel_axis=None
  )
  _, segments = np.unique(segments, return_inverse=True)
  segments = segments.reshape(image.shape[:2])
  count = int(np.max(segments)) + 1
  kept = streams.generator(seed, 'superpixels kept').random((samples, count)) < 0.5
  kept[0] = True
  answers = judge(kept[:, segments])
  distance = 1 - np.sqrt(kept.mean(1))
  weights = np.exp(-((distance / LIME_KERNEL_WIDTH) ** 2))
  line = Ridge(alpha=LIME_RIDGE).fit(kept, answers, sample_weight=weights)
  return line.coef_[segments]


def random_map(shape: tuple[int, int], seed: int, number: int = 0) -> Float64[np.ndarray, 'h w']:
  """A map of smooth noise, for comparison."""
  cells = streams.generator(seed, 'random map', number).random((RANDOM_CELLS, RANDOM_CELLS))
  zoom = [length / RANDOM_CELLS for length in shape]
  return ndimage.zoom(cells, zoom, order=1, grid_mode=True, mode='nearest')


@dataclasses.dataclass(frozen=True)
class Faithfulness:
  """Answers while pixels leave the whole image, or come back where all had left.

  The most important go first, in k - 1 equal steps. A good map has a small mean in `deletion`
  and a large one in `insertion`.
  """

  deletion: Float64[np.ndarray, ' k']
  insertion: Float64[np.ndarray, ' k']

  def areas(self) -> dict[str, float]:
    """Areas under the two curves over the share of pixels, from 0 to 1."""
    return {
      name: float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))
      for name, curve in (('deletion', self.deletion), ('insertion', self.insertion))
    }


def faithfulness(judge: PredictMasked, importance: Float[np.ndarray, 'h w']) -> Faithfulness:
  """Deletion and insertion (Petsiuk, Das & Saenko 2018, arXiv:1806.07421) of a map."""
  # Places of equal importance go in random order: a constant map must not mean "from the top".
  order = np.lexsort(
    (streams.generator(0, 'order of ties').random(importance.size), -importance.ravel())
  )
  rank = np.empty(order.size, int)
  rank[order] = np.arange(order.size)
  ends = np.round(np.linspace(0, order.size, CURVE_STEPS + 1))
  entered = rank.reshape(importance.shape)[None] < ends[:, None, None]
  answers = judge(np.concatenate([~entered, entered]))
  return Faithfulness(*np.split(np.asarray(answers, np.float64), 2))


def mixed(
  image: Float32[np.ndarray, 'h w 1'], kept: Bool[np.ndarray, 'n h w']
) -> Float32[np.ndarray, 'n h w 1']:
  """The image where kept, a strong blur of it elsewhere."""
  sigma = BLUR_SIDES * min(image.shape[:2])
  blurred = ndimage.gaussian_filter(image, (sigma, sigma, 0))
  return np.where(kept[..., None], image, blurred).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ExplainableModel:
  """A trained network that answers with a probability and can be asked where it comes from.

  Attributes:
    predict_proba: probabilities of the k answers to images.
    answers: names of the k answers; their logits are those of `network`.
    patch_map: map of each image, in patches; None where the network has none.
    predict_masked: probabilities where places of an image are left; None: of the image with the
      others blurred away.
    usual_stage: the last that all of the answer passes through; '' where the deepest is that.
  """

  network: nn.Module
  variables: dict
  predict_proba: Callable[[Float32[np.ndarray, 'n h w 1']], Float[np.ndarray, 'n k']]
  answers: tuple[str, ...]
  patch_map: (
    Callable[[Float32[np.ndarray, 'n h w 1']], Float[np.ndarray, 'n rows columns']] | None
  ) = None
  predict_masked: (
    Callable[[Float32[np.ndarray, 'h w 1'], Bool[np.ndarray, 'm h w']], Float[np.ndarray, 'm k']]
    | None
  ) = None
  usual_stage: str = ''

  def stage(self, size: int, asked: str) -> str:
    """The stage of Grad-CAM for images of side `size`, as `pick_stage`."""
    black = np.full((1, size, size, 1), -1, np.float32)
    return pick_stage(stages(self.network, self.variables, black), asked or self.usual_stage)


def explain(
  explainable: ExplainableModel,
  image: Float32[np.ndarray, 'h w 1'],
  stage: str,
  *,
  superpixels: int,
  samples: int,
  seed: int,
) -> tuple[dict[str, Float[np.ndarray, 'h w']], dict]:
  """Maps of an image by method, and {class_explained, probability, areas by method}."""
  probabilities = explainable.predict_proba(image[None])[0]
  target = int(probabilities.argmax())

  def judge(kept):
    if explainable.predict_masked:
      return explainable.predict_masked(image, kept)[:, target]
    return explainable.predict_proba(mixed(image, kept))[:, target]

  parts = (explainable.network, explainable.variables, image[None], np.array([target]), stage)
  maps = {
    'Grad-CAM': grad_cam(*parts)[0],
    'LIME': lime(judge, image, superpixels=superpixels, samples=samples, seed=seed),
  }
  if explainable.patch_map:
    patches = explainable.patch_map(image[None])[0]
    maps['patch map'] = np.kron(patches, np.ones((image.shape[0] // patches.shape[0],) * 2))
  shape = (image.shape[0], image.shape[1])
  noise = [random_map(shape, seed, i) for i in range(RANDOM_MAPS)]
  areas = {name: faithfulness(judge, shown).areas() for name, shown in maps.items()}
  areas |= mean_areas([{'random': faithfulness(judge, shown).areas()} for shown in noise])
  answer, probability = explainable.answers[target], float(probabilities[target])
  return maps, {'class_explained': answer, 'probability': probability, 'areas': areas}


def mean_areas(rows: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
  """Means over images of each area of each method; {} of none."""
  if not rows:
    return {}
  return {
    method: {
      curve: float(np.mean([row[method][curve] for row in rows])) for curve in rows[0][method]
    }
    for method in rows[0]
  }
