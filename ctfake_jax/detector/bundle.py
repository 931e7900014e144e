"""A detector at rest: the workdir of its making, every file of it under a digest.

`detector.json` (scaling, threshold, figures), `reference.npz` (discriminant, domain, features of
reals), `config.json` and the manifest of the network's checkpoint, which lists its files, stand
with their SHA-256 in `digests.json`.
"""

import dataclasses
import functools
import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import Config
from ctfake_jax.data.preprocess import ONE_VALUE, TWO_VALUES, USES_LITTLE, Preprocess
from ctfake_jax.data.sources.image_folder import IN_COLOUR
from ctfake_jax.data.sources.sandboxed import Decoded
from ctfake_jax.detector import calibration, training
from ctfake_jax.detector.calibration import Scaling, Threshold
from ctfake_jax.detector.discriminant import ClassStatistics, with_discriminant
from ctfake_jax.detector.domain import Domain, coarse_features
from ctfake_jax.evaluation.attribution import ExplainableModel
from ctfake_jax.models import registry
from ctfake_jax.models.patch_net import DISCRIMINANT, LAST_COMMON_STAGE, scores_of_parts
from ctfake_jax.runtime import batching
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.types import Unit, UserError
from ctfake_jax.workdir import checkpoints
from ctfake_jax.workdir import files as workdir_lib

FACTS, REFERENCE, CONFIG, DIGESTS = 'detector.json', 'reference.npz', 'config.json', 'digests.json'
# Remarks on a picture that is hardly a CT slice.
NO_CT = (TWO_VALUES, USES_LITTLE, IN_COLOUR)
NETWORK = 'network'  # folder of the network's training
FORENSIC_NETWORK = 'network.safetensors'  # what a detector of another kind has
VERSION = 4  # grows where the same files would mean something else; 4 knows its domain
# What a recalibration may have found, by name.
ALARMS = {
  'drift': 'the images it was recalibrated on differ from those that the detector was trained on; '
  'what was measured there does not hold for them',
  'outliers': 'some of the images it was recalibrated on lie apart from the rest on the side of '
  'fakes; look at `outliers`',
  'rate': 'more of the images it was recalibrated on lie above the threshold than were promised: '
  'fakes are among them (look at `outliers`), or they vary more than those of its making; the '
  'false-alarm rate may be higher',
}


@dataclasses.dataclass(frozen=True)
class Detector:
  """A calibrated network.

  Attributes:
    unit: of the originals, 'HU' or 'grey'.
    variables: with the discriminant, so that the model's answer is the score.
    scaling: from scores to log odds.
    reference: features f32[m, d] of one real of each group that set the first threshold.
    differences: of held-out fakes of each family from held-out reals, f32[k, d].
    learnt: what a site's directions are made of.
    domain: what images it was calibrated on.
  """

  model: nn.Module
  variables: dict
  config: Config
  unit: Unit
  scaling: Scaling
  threshold: Threshold
  reference: Float[np.ndarray, 'm d']
  differences: Float[np.ndarray, 'k d']
  class_statistics: ClassStatistics
  domain: Domain

  @property
  def view(self) -> Preprocess:
    """What the network sees of a slice."""
    return Preprocess.from_config(self.config.data)

  def obstacles(self, decoded: Decoded) -> list[str]:
    """Why no score could decide on this image."""
    found = decoded.wrong_unit(self.unit, 'detector')
    if self.view.shows_few(decoded.native_size):
      found.append(self.view.too_few)
    pixels = decoded.pixels
    if pixels is not None and pixels.min() == pixels.max():
      found.append(ONE_VALUE)
    return found + [remark for remark in decoded.remarks if remark in NO_CT]

  def examine(self, seen: Sequence[Decoded], prior: float) -> dict[str, np.ndarray]:
    """What is said of n decoded images, the only place where verdicts are made.

    Returns:
      score, p_fake, alarm, flips, domain (its score), outside, features, patches; verdict 'real',
      'fake' or 'unsure', and reasons, a tuple of texts each.
    """
    views = np.stack([d.views for d in seen])
    scores, features, patches, coarse = batching.map_batches(
      lambda variables, _, batch: examine(self.model, variables, batch), self.variables, views
    )
    scaling, limit = self.scaling, self.threshold.value
    judged, flips = calibration.verdicts(scores[:, 0], scores[:, 1:], scaling, limit, prior)
    domain = self.domain.scores(coarse)
    found = {
      'score': scores[:, 0],
      'p_fake': scaling.p_fake(scores[:, 0], prior),
      'alarm': scores[:, 0] > limit,
      'flips': flips,
      'domain': domain,
      'outside': domain > self.domain.limit,
    }
    rows = [dict(zip(found, values)) for values in zip(*found.values())]
    obstacles = [[*self.obstacles(d), *self._outside(row)] for d, row in zip(seen, rows)]
    verdicts = [decide(*each) for each in zip(judged, obstacles, (d.synthetic for d in seen))]
    reasons = np.empty(len(seen), object)
    reasons[:] = [
      tuple(dict.fromkeys((*d.remarks, *own, *_reasons(row))))
      for own, d, row in zip(obstacles, seen, rows)
    ]
    return {
      **found,
      'features': features,
      'patches': patches,
      'verdict': np.array(verdicts, object),
      'reasons': reasons,
    }

  def _outside(self, row: dict) -> list[str]:
    if not row['outside']:
      return []
    return [
      f'unlike the images that the detector was calibrated on ({row["domain"]:.1f} deviations, up '
      f'to {self.domain.limit:.1f} are usual): recalibrate on originals like it'
    ]

  def explainable(self, prior: float) -> ExplainableModel:
    """The detector as one that can be asked for reasons; its one answer is `fake`."""

    def judge(images):
      scores = training.predict(self.model, self.variables, images)[0]
      return self.scaling.p_fake(scores, prior)[:, None]

    def patch_map(images):
      return training.predict(self.model, self.variables, images)[2]

    def predict_masked(image, kept):
      def judged(constants, _, part):
        return scores_of_parts(self.model, *constants, part)

      scores = batching.map_batches(judged, (self.variables, image), kept)
      return self.scaling.p_fake(scores, prior)[:, None]

    return ExplainableModel(
      self.model,
      self.variables,
      judge,
      ('fake',),
      patch_map,
      predict_masked,
      usual_stage=LAST_COMMON_STAGE,
    )


@functools.partial(jax.jit, static_argnums=0)
def examine(
  model: nn.Module, variables: dict, views: UInt8[Array, 'b k h w']
) -> tuple[Float[Array, 'b k'], Float[Array, 'b d'], Float[Array, 'b p q'], Float[Array, 'b e']]:
  """All that verdicts hang on, in one program.

  Args:
    model: the network with its discriminant.
    variables: its own.
    views: each image and its re-encodings, the image first.

  Returns:
    Scores of all; of the images alone features, patch logits and coarse features.
  """
  images = (views.astype(jnp.float32) / 127.5 - 1)[..., None]
  everything = images.reshape(-1, *images.shape[2:])
  scores, features, patches = training.forward(model, variables, everything)
  step = views.shape[1]
  coarse = coarse_features(images[:, 0])
  return scores.reshape(-1, step), features[::step], patches[::step], coarse


def decide(judged: str, obstacles: Sequence[str], synthetic: bool) -> str:
  """The verdict on an image that its scores call `judged`.

  It is unsure where something keeps scores from deciding; and what says itself that it is synthetic
  is never called real.
  """
  doubtful = bool(obstacles) or (synthetic and judged == calibration.REAL)
  return calibration.UNSURE if doubtful else judged


def _reasons(row: dict) -> Iterator[str]:
  """Why the scores say what they say."""
  yield f'score {"above" if row["alarm"] else "not above"} the threshold'
  if row['flips']:
    yield 'JPEG re-encoding changes the verdict'
  if row['alarm'] != (row['p_fake'] >= 0.5):
    yield f'yet p_fake is {row["p_fake"]:.2f}'


def save(detector: Detector, workdir: Path, figures: dict) -> None:
  """Writes all but the checkpoint and the config, which lie in the workdir since training."""
  facts = {
    'version': VERSION,
    'unit': detector.unit,
    'scaling': dataclasses.asdict(detector.scaling),
    'threshold': dataclasses.asdict(detector.threshold),
    'figures': figures,
  }
  workdir_lib.write_json(workdir / FACTS, facts)
  np.savez(
    workdir / REFERENCE,
    allow_pickle=False,
    features=detector.reference,
    differences=detector.differences,
    apart=detector.class_statistics.mean_differences,  # names of arrays stay what they were
    covariance=detector.class_statistics.covariance,
    **detector.variables[DISCRIMINANT],
    **{f'domain_{name}': value for name, value in vars(detector.domain).items()},
  )
  names = (FACTS, REFERENCE, CONFIG, _manifest(figures['best_step']))
  digests = {name: _digest(workdir / name) for name in names}
  workdir_lib.write_json(workdir / DIGESTS, digests)


def figures(workdir: Path) -> dict:
  """What is known of how well it works."""
  return workdir_lib.read_json(workdir / FACTS)['figures']


def digest(workdir: Path) -> str:
  """12 hexadecimal digits that name a detector: of the digests of all its files."""
  path = workdir / DIGESTS
  if not path.is_file():
    raise UserError(f'{path} is missing: is this the workdir of a detector?')
  return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def load(workdir: Path | str) -> Detector:
  """The detector of a workdir; UserError where something is missing, or is not what was saved."""
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise UserError(f'config.detector = {workdir}: no such folder')
  if (workdir / FORENSIC_NETWORK).is_file():
    raise UserError(f'{workdir} is a detector of edits in CT: detect and recalibrate take it alone')
  if not any((workdir / name).is_file() for name in (FACTS, DIGESTS)):
    raise UserError(f'{workdir} holds no finished detector: name the workdir of such a run')
  digests = workdir_lib.read_json(workdir / DIGESTS)
  _check(workdir, digests, FACTS)
  facts = workdir_lib.read_json(workdir / FACTS)
  if facts.get('version') != VERSION:
    raise UserError(f'{workdir}: a detector of another version of this package; make it anew')
  try:
    step = int(facts['figures']['best_step'])
    for name in (REFERENCE, CONFIG, _manifest(step)):
      _check(workdir, digests, name)
    return _from_files(workdir, facts, step)
  except UserError:
    raise
  except (KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
    raise UserError(
      f'{workdir}: no whole detector ({type(error).__name__}: {error}); restore it from a copy'
    ) from error


def _from_files(workdir: Path, facts: dict, step: int) -> Detector:
  config = config_lib.from_dict(workdir_lib.read_json(workdir / CONFIG)['config'])
  with np.load(workdir / REFERENCE, allow_pickle=False) as file:
    arrays = dict(file)
  scaling, threshold = Scaling(**facts['scaling']), Threshold(**facts['threshold'])
  numbers = (scaling.slope, scaling.intercept, threshold.value, *arrays.values())
  if not all(np.isfinite(values).all() for values in numbers):
    raise ValueError('a number is not finite')
  network = checkpoints.restore_part(workdir / NETWORK, step, 'ema')
  return Detector(
    model=registry.patch_net(config.detection),
    variables=mesh_lib.replicate(
      with_discriminant(network, arrays['centre'], arrays['directions'])
    ),
    config=config,
    unit=facts['unit'],
    scaling=scaling,
    threshold=threshold,
    reference=arrays['features'],
    differences=arrays['differences'],
    class_statistics=ClassStatistics(arrays['apart'], arrays['covariance']),
    domain=_domain(arrays),
  )


def _domain(arrays: dict[str, np.ndarray]) -> Domain:
  centre, scale, weights = (arrays[f'domain_{name}'] for name in ('centre', 'scale', 'weights'))
  return Domain(centre, scale, weights, float(arrays['domain_bias']), float(arrays['domain_limit']))


def warnings(workdir: Path) -> list[str]:
  """What whoever reads a verdict of this detector should know."""
  found = []
  if workdir_lib.read_json(workdir / CONFIG)['config']['data']['source'] == 'phantom':
    found.append('this detector was trained on a simulated scanner: not for real CT')
  alarms = figures(workdir).get('recalibration', {}).get('alarms', {})
  return found + [
    f'{name}: {says}' for name, says in ALARMS.items() if name in alarms and alarms[name]['raised']
  ]


def _manifest(step: int) -> str:
  return f'{NETWORK}/checkpoints/{step}/{checkpoints.MANIFEST}'


def _check(workdir: Path, digests: dict, name: str) -> None:
  if not (workdir / name).is_file():
    raise UserError(f'{workdir / name} is missing: restore the detector from a whole copy')
  if _digest(workdir / name) != digests.get(name):
    raise UserError(f'{workdir / name} was altered: restore the detector from a whole copy')


def _digest(path: Path) -> str:
  with open(path, 'rb') as handle:
    return hashlib.file_digest(handle, 'sha256').hexdigest()
