"""The task `explain`: maps of where a detector's or a classifier's answer comes from.

For the first `explain.count` images of `config.input` that can be judged: Grad-CAM, LIME, and a
detector's patch map, as pictures in `explanations/` and with their deletion and insertion areas
beside those of random maps in results.json.
"""

import collections
import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ctfake_jax.config.keys import Config
from ctfake_jax.data import image_grids
from ctfake_jax.data.preprocess import Preprocess, from_uint8, to_uint8
from ctfake_jax.data.sources import walker
from ctfake_jax.data.sources.sandboxed import Decoded, Limits, decode_all, judgeable
from ctfake_jax.detector import bundle
from ctfake_jax.evaluation import attribution
from ctfake_jax.evaluation.attribution import ExplainableModel
from ctfake_jax.inference import classifier as inference
from ctfake_jax.runtime import progress_bar
from ctfake_jax.types import UnreadableImageError, UserError
from ctfake_jax.workdir import files as workdir_lib

PICTURES = 'explanations'
LIKELY = 0.5  # an answer less probable has nothing that could be taken away


@dataclasses.dataclass(frozen=True)
class Explained:
  """The detector or classifier that is asked.

  Attributes:
    view: what it sees of a slice.
    eight_bit: whether it was trained on images stored in 8 bits, as detectors are.
    obstacles: why it cannot judge an image.
    verdict: what `detect` says of an image; '' of a classifier, whose likeliest class is explained.
    warnings: what whoever reads its answers should know.
  """

  explainable: ExplainableModel
  view: Preprocess
  eight_bit: bool
  obstacles: Callable[[Decoded], list[str]]
  verdict: Callable[[Decoded], str]
  warnings: list[str]

  def seen(self, decoded: Decoded) -> Float[np.ndarray, 'h w 1']:
    """What the network sees of an image that can be judged."""
    assert decoded.image is not None
    image = from_uint8(to_uint8(decoded.image)) if self.eight_bit else decoded.image
    return image[..., None]


def run(config: Config, workdir: Path) -> dict:
  """Explains the answers to `config.input`; leaves explanations/*.png and results.json."""
  workdir_lib.check_same_command(workdir, config)
  asked = load_model(config)
  explainable, c = asked.explainable, config.explain
  for warning in asked.warnings:
    print(f'WARNING: {warning}', flush=True)
  stage = explainable.stage(asked.view.size, c.stage)
  options = {'superpixels': c.superpixels, 'samples': c.lime_samples, 'seed': config.seed}
  rows: list[dict] = []
  left_out: list[UnreadableImageError] = []
  skipped: collections.Counter = collections.Counter()
  for decoded in progress_bar.bar('explaining', _decoded(config, asked, left_out, skipped)):
    if not rows:
      workdir_lib.record_command(workdir, config)
      shutil.rmtree(workdir / PICTURES, ignore_errors=True)  # there may have been more
    image = asked.seen(decoded)
    maps, row = attribution.explain(explainable, image, stage, **options)
    place = {'path': decoded.path, 'picture': f'{PICTURES}/{len(rows):04d}.png'}
    verdict = asked.verdict(decoded)
    rows.append({**place, **({'verdict': verdict} if verdict else {}), **row})
    title = f'p({row["class_explained"]}) = {row["probability"]:.2f}'
    if verdict:
      title += f', verdict: {verdict}'
    image_grids.save_maps(workdir / rows[-1]['picture'], image, maps, title)
  walker.say(skipped)
  if not rows:
    reason = left_out[0] if left_out else 'it is empty'
    raise UserError(f'config.input = {config.input}: no image can be explained; {reason}')
  results = {
    'stage': stage,
    'images': rows,
    'left_out': [{'path': error.path, 'reason': error.reason} for error in left_out],
    'skipped': dict(skipped),
    'warnings': asked.warnings,
    'mean_areas': attribution.mean_areas(
      [row['areas'] for row in rows if row['probability'] >= LIKELY]
    ),
  }
  workdir_lib.write_results(workdir, results)
  return results


def load_model(config: Config) -> Explained:
  """The detector or the classifier that the config names."""
  if bool(config.detector) == bool(config.checkpoint):
    raise UserError('explain: set one of --config.detector=DIR and --config.checkpoint=DIR')
  if config.detector:
    folder = Path(config.detector)
    detector = bundle.load(folder)
    explainable = detector.explainable(config.fake_prevalence)

    def verdict(decoded: Decoded) -> str:
      return str(detector.examine([decoded], config.fake_prevalence)['verdict'][0])

    warnings = bundle.warnings(folder)
    return Explained(explainable, detector.view, True, detector.obstacles, verdict, warnings)
  trained = inference.load(Path(config.checkpoint))

  def obstacles(decoded: Decoded) -> list[str]:
    return decoded.wrong_unit(trained.unit, 'network')

  parts = (trained.network, trained.variables, trained.predict, trained.class_names)
  return Explained(ExplainableModel(*parts), trained.view, False, obstacles, lambda _: '', [])


def _decoded(
  config: Config,
  asked: Explained,
  left_out: list[UnreadableImageError],
  skipped: collections.Counter | None = None,
) -> Iterator[Decoded]:
  """The first images that can be judged; others on the way are added to `left_out`."""
  limits = Limits.from_config(config)
  images = decode_all(Path(config.input), asked.view, limits, skipped=skipped)
  return itertools.islice(judgeable(images, asked.obstacles, left_out), config.explain.count)
