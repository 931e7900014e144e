"""The task `explain`: maps of where a detector's or a classifier's answer comes from.

For the first `explain.count` readable images of `config.input`: Grad-CAM, LIME, and a detector's
patch map, as pictures in `explanations/` and with their deletion and insertion areas beside those
of random maps in results.json.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import ml_collections

from ctfake_jax import attribution, figures, inference, progress
from ctfake_jax import workdir as workdir_lib
from ctfake_jax.attribution import Witness
from ctfake_jax.data.decode import Decoded, Limits, decode_all
from ctfake_jax.data.preprocess import Preprocess, from_uint8
from ctfake_jax.detector import directory
from ctfake_jax.types import UserError

LIKELY = 0.5  # an answer less probable has nothing that could be taken away


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
  """Explains the answers to `config.input`; leaves explanations/*.png and results.json."""
  workdir_lib.refuse_training_dir(workdir)
  workdir_lib.refuse_inside(workdir, Path(config.input))
  witness, view, unit = summon(config)
  c = config.explain
  stage = witness.stage(view.size, c.stage)
  options = {'superpixels': c.superpixels, 'samples': c.lime_samples, 'seed': config.seed}
  rows: list[dict] = []
  unreadable: list[dict] = []
  for decoded in progress.bar('explaining', _decoded(config, view, unit, unreadable)):
    image = from_uint8(decoded.pixels)[..., None]
    maps, row = attribution.explain(witness, image, stage, **options)
    rows.append({'path': decoded.path, 'picture': f'explanations/{len(rows):04d}.png', **row})
    title = f'{row["answer"]}, p {row["probability"]:.2f}'
    figures.save_maps(workdir / rows[-1]['picture'], image, maps, title)
  if not rows:
    reason = f'{unreadable[0]["path"]}: {unreadable[0]["reason"]}' if unreadable else 'it is empty'
    raise UserError(f'config.input = {config.input}: no readable image, {reason}')
  results = {
    'stage': stage,
    'images': rows,
    'unreadable': unreadable,
    'mean_areas': attribution.mean_areas(
      [row['areas'] for row in rows if row['probability'] >= LIKELY]
    ),
  }
  workdir_lib.write_json(workdir / 'results.json', results)
  return results


def summon(config: ml_collections.ConfigDict) -> tuple[Witness, Preprocess, str]:
  """The detector or the classifier that the config names, its view, and the unit it learnt from."""
  if bool(config.detector) == bool(config.checkpoint):
    raise UserError('explain: set one of --config.detector=DIR and --config.checkpoint=DIR')
  if config.detector:
    detector = directory.load(Path(config.detector))
    return detector.witness(config.prior_fake), detector.view, detector.unit
  trained = inference.load(Path(config.checkpoint))
  parts = (trained.network, trained.variables, trained.predict, trained.class_names)
  return Witness(*parts), trained.view, trained.unit


def _decoded(
  config: ml_collections.ConfigDict, view: Preprocess, unit: str, unreadable: list[dict]
) -> Iterator[Decoded]:
  """The first readable images; what cannot be read on the way is added to `unreadable`."""

  def readable():
    for decoded in decode_all(Path(config.input), view, Limits.from_config(config)):
      reason = decoded.reason
      if decoded.pixels is not None and decoded.unit != unit:
        reason = f'{decoded.unit} values, the network learnt from {unit} values'
      if reason:
        unreadable.append({'path': decoded.path, 'reason': reason})
      else:
        yield decoded

  return itertools.islice(readable(), config.explain.count)
