"""The task `explain`: maps of where a detector's or a classifier's answer comes from.

For the first `explain.count` readable images of `config.input`: Grad-CAM, LIME, and a detector's
patch map, as pictures in `explanations/` and with their deletion and insertion areas beside those
of random maps in results.json.
"""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import ml_collections
import numpy as np

from ctfake_jax import attribution, figures, inference, progress
from ctfake_jax import workdir as workdir_lib
from ctfake_jax.data.decode import Decoded, Limits, decode_all
from ctfake_jax.data.preprocess import Preprocess, from_uint8
from ctfake_jax.detector import calibration, directory, training
from ctfake_jax.types import UserError

RANDOM_MAPS = 5


@dataclasses.dataclass(frozen=True)
class Witness:
  """A trained network that answers with a probability and can be asked where it comes from.

  Attributes:
    judge: probabilities f[n, k] of the k answers to images f32[n, h, w, 1].
    answers: names of the k answers; their logits are those of `network`.
    patch_map: f[n, h', w'] of images, None where the network has none.
  """

  network: nn.Module
  variables: dict
  view: Preprocess
  unit: str
  judge: Callable[[np.ndarray], np.ndarray]
  answers: tuple[str, ...]
  patch_map: Callable[[np.ndarray], np.ndarray] | None = None


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
  """Explains the answers to `config.input`; leaves explanations/*.png and results.json."""
  workdir_lib.refuse_training_dir(workdir)
  witness = summon(config)
  shapes = attribution.stages(witness.network, witness.variables, blank(witness))
  stage = attribution.pick_stage(shapes, config.explain.stage)
  rows: list[dict] = []
  unreadable: list[dict] = []
  for decoded in progress.bar('explaining', _decoded(config, witness, unreadable)):
    image = from_uint8(decoded.pixels)[..., None]
    maps, row = explain(witness, image, stage, config)
    rows.append({'path': decoded.path, 'picture': f'explanations/{len(rows):04d}.png', **row})
    figures.save_maps(workdir / rows[-1]['picture'], image, maps, title=row['answer'])
  if not rows:
    reason = f'{unreadable[0]["path"]}: {unreadable[0]["reason"]}' if unreadable else 'it is empty'
    raise UserError(f'config.input = {config.input}: no readable image, {reason}')
  results = {
    'stage': stage,
    'images': rows,
    'unreadable': unreadable,
    'mean_areas': mean_areas([row['areas'] for row in rows]),
  }
  workdir_lib.write_json(workdir / 'results.json', results)
  return results


def summon(config: ml_collections.ConfigDict) -> Witness:
  """The detector or the classifier that the config names."""
  if bool(config.detector) == bool(config.checkpoint):
    raise UserError('explain: set one of --config.detector=DIR and --config.checkpoint=DIR')
  if config.detector:
    return of_detector(directory.load(Path(config.detector)), config.prior_fake)
  trained = inference.load(Path(config.checkpoint))
  return Witness(
    trained.network,
    trained.variables,
    trained.view,
    trained.unit,
    trained.predict,
    trained.class_names,
  )


def of_detector(detector: directory.Detector, prior: float) -> Witness:
  """Its one answer is `fake`."""

  def judge(images):
    scores = training.judge(detector.model, detector.variables, images)[0]
    return calibration.p_fake(scores, detector.temperature, prior)[:, None]

  def patch_map(images):
    return training.judge(detector.model, detector.variables, images)[2]

  parts = (detector.model, detector.variables, detector.view, detector.unit)
  return Witness(*parts, judge, ('fake',), patch_map)


def blank(witness: Witness) -> np.ndarray:
  """One black image of the witness's size."""
  return np.full((1, witness.view.size, witness.view.size, 1), -1, np.float32)


def explain(
  witness: Witness, image: np.ndarray, stage: str, config: ml_collections.ConfigDict
) -> tuple[dict[str, np.ndarray], dict]:
  """Maps f[h, w] of f32[h, w, 1] by method, and {answer, probability, areas by method}."""
  probabilities = witness.judge(image[None])[0]
  target = int(probabilities.argmax())

  def judge(images):
    return witness.judge(images)[:, target]

  c = config.explain
  parts = (witness.network, witness.variables, image[None], np.array([target]), stage)
  maps = {
    'Grad-CAM': attribution.grad_cam(*parts)[0],
    'LIME': attribution.lime(
      judge, image, superpixels=c.superpixels, samples=c.lime_samples, seed=config.seed
    ),
  }
  if witness.patch_map:
    patches = witness.patch_map(image[None])[0]
    repeat = image.shape[0] // patches.shape[0]
    maps['patch map'] = np.kron(patches, np.ones((repeat, repeat)))
  areas = {
    name: attribution.faithfulness(judge, image, shown).areas() for name, shown in maps.items()
  }
  areas['random'] = mean_areas([{'random': found} for found in _random(judge, image, config)])[
    'random'
  ]
  row = {
    'answer': witness.answers[target],
    'probability': float(probabilities[target]),
    'areas': areas,
  }
  return maps, row


def _random(judge, image: np.ndarray, config: ml_collections.ConfigDict) -> list[dict[str, float]]:
  shape = (image.shape[0], image.shape[1])
  maps = [attribution.random_map(shape, config.seed + i) for i in range(RANDOM_MAPS)]
  return [attribution.faithfulness(judge, image, shown).areas() for shown in maps]


def mean_areas(rows: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
  """Means over images of each area of each method."""
  return {
    method: {
      curve: float(np.mean([row[method][curve] for row in rows])) for curve in rows[0][method]
    }
    for method in rows[0]
  }


def _decoded(config: ml_collections.ConfigDict, witness: Witness, unreadable: list[dict]):
  """The first readable images; what cannot be read on the way is added to `unreadable`."""

  def readable():
    for decoded in decode_all(Path(config.input), witness.view, Limits.from_config(config)):
      reason = _refusal(decoded, witness)
      if reason:
        unreadable.append({'path': decoded.path, 'reason': reason})
      else:
        yield decoded

  return itertools.islice(readable(), config.explain.count)


def _refusal(decoded: Decoded, witness: Witness) -> str:
  if decoded.pixels is None:
    return decoded.reason
  if decoded.unit != witness.unit:
    return f'{decoded.unit} values, the network learnt from {witness.unit} values'
  return ''
