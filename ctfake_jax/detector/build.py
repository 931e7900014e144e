"""The task `detector`: from originals alone to a calibrated detector with a model card.

Generators -> parts -> network -> discriminant -> scaling -> threshold -> test -> reasons.
Every training resumes; the rest is repeated from seeds.
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ctfake_jax.config.keys import Config
from ctfake_jax.data import image_grids
from ctfake_jax.detector import (
  audit,
  bundle,
  calibration,
  card,
  discriminant,
  domain,
  robustness,
  training,
)
from ctfake_jax.detector import dataset as detector_dataset
from ctfake_jax.detector.bundle import Detector
from ctfake_jax.detector.dataset import FOLDER, REAL, DetectorDataset
from ctfake_jax.evaluation import attribution, baselines, metrics
from ctfake_jax.fakes import families as fakes
from ctfake_jax.models import registry
from ctfake_jax.report import detector as detector_page
from ctfake_jax.runtime import progress_bar, streams
from ctfake_jax.types import ImageSet
from ctfake_jax.workdir import files as workdir_lib

SHOWN = 2  # images of each family whose verdict is explained


def run(config: Config, workdir: Path) -> dict:
  """Makes the detector directory; returns what results.json holds."""
  reals, shown, config = detector_dataset.build_parts(config, workdir)
  images = reals.images
  progress_bar.stage('audit')
  found = audit.audit(shown['train'], config.seed)
  workdir_lib.write_json(workdir / 'audit.json', found)
  audit.refuse_leaks(found, config.detection.ignore_leaks)
  for remark in audit.remarks(found):
    print(remark, flush=True)
  progress_bar.stage('network')
  model, folder = registry.patch_net(config.detection), workdir / bundle.NETWORK
  variables, facts = training.train_network(
    config, model, shown['train'], shown['validation'], folder, 'detector'
  )
  progress_bar.stage('calibration and test')
  detector = calibrate(config, images, model, variables, shown)
  results = {
    'data': baselines.describe(images),
    'audit': found,
    'parts': {part: _counts(own) for part, own in shown.items()},
    'network': facts,
    **test(detector, shown['test'], config),
  }
  progress_bar.stage('robustness and reasons')
  results['robustness'] = robustness.sweep(detector, shown['test'], config.seed)
  results['reasons'] = reasons(detector, shown['test'], config, workdir)
  bundle.save(detector, workdir, {**results, 'best_step': facts['best_step']})
  workdir_lib.write_results(workdir, results)
  card.write(config, results, workdir)
  detector_page.write(workdir)
  return results


def calibrate(
  config: Config,
  images: ImageSet,
  model: nn.Module,
  variables: dict,
  shown: dict[str, DetectorDataset],
) -> Detector:
  """Score from `train` and `validation`, p_fake from `calibration`, threshold from `conformal`."""
  train, validation = shown['train'], shown['validation']
  variables, class_statistics = discriminant.fit_discriminant(
    model, variables, train, validation, config.seed
  )
  scale = shown['calibration']
  scores, features, _ = training.predict(model, variables, scale.images)
  scaling = calibration.fit_scaling(scores, scale.fake)
  differences = discriminant.differences(features, scale.families)
  reals = shown['conformal'].of(REAL)
  scores, features, _ = training.predict(model, variables, reals.images)
  one = calibration.one_per_group(np.arange(len(reals)), reals.groups, config.seed)
  threshold = calibration.conformal_threshold(scores[one], calibration.asked_rate(config))
  known = domain.fit_domain(train, validation, reals.images[one], config.seed)
  return Detector(
    model,
    variables,
    config,
    images.unit,
    scaling,
    threshold,
    features[one],
    differences,
    class_statistics,
    known,
  )


def test(detector: Detector, shown: DetectorDataset, config: Config) -> dict:
  """Figures on images that nothing was fitted to, judged as `detect` judges them."""
  found = detector.examine(shown.decoded(detector.view, detector.unit), config.fake_prevalence)
  scores, fake = found['score'], shown.fake
  probability, prior = found['p_fake'], config.fake_prevalence
  error = {
    'value': calibration.calibration_error(probability, fake, prior, shown.groups),
    'ci95': calibration.calibration_interval(probability, fake, shown.groups, prior),
  }
  return {
    'auroc': metrics.auroc(scores[fake], scores[~fake]),
    'threshold': vars(detector.threshold),
    'scaling': vars(detector.scaling),
    'reals': _verdict_shares(found['verdict'], ~fake, shown.groups),
    'fakes': _verdict_shares(found['verdict'], fake, shown.groups),
    'calibration_error': error,
    'domain': _domain_shares(detector, found, shown, config.seed),
    'families': {
      family: {
        'auroc': metrics.auroc(scores[shown.families == family], scores[~fake]),
        **_detection(scores, shown, family),
        'patch_auroc': _patch_auroc(found['patches'], shown, family),
        **_verdict_shares(found['verdict'], shown.families == family, shown.groups),
      }
      for family in sorted(set(shown.families) - {REAL})
    },
  }


def _detection(scores: np.ndarray, shown: DetectorDataset, family: str) -> dict:
  """Share of a family found at 1 % false alarms of the reals at hand, with its interval."""
  own = shown.families == family
  found = metrics.found_at(0.01, scores[own], scores[~shown.fake])
  return {
    'detection_at_1_percent': float(found.mean()),
    'detection_ci95': metrics.accuracy_interval(found, shown.groups[own]),
  }


def _domain_shares(detector: Detector, found: dict, shown: DetectorDataset, seed: int) -> dict:
  """Shares that lie outside of the domain; of reals also as other sites show them."""
  elsewhere = domain.domain_randomized(shown.of(REAL).images, streams.seed(seed, 'test of domain'))
  foreign = detector.domain.scores(domain.features_of(elsewhere)) > detector.domain.limit
  reals, fakes = (found['outside'][shown.fake == fake] for fake in (False, True))
  return {
    'limit': detector.domain.limit,
    'reals': float(reals.mean()),
    'fakes': float(fakes.mean()),
    'domain_randomized': float(foreign.mean()),
    **domain.batch_rates(reals, fakes, foreign, seed),
  }


def _patch_auroc(patches: np.ndarray, shown: DetectorDataset, family: str) -> float | None:
  """How well the patch map tells the synthetic part of a local edit from the rest, pooled."""
  if family == FOLDER or not fakes.FAMILIES[family].local:
    return None
  own = shown.families == family
  synthetic = np.asarray(training.shares(jnp.asarray(shown.masks[own]))) > 0.5
  return metrics.auroc(patches[own][synthetic], patches[own][~synthetic])


def reasons(detector: Detector, shown: DetectorDataset, config: Config, workdir: Path) -> dict:
  """Explains images of each family; leaves pictures in explanations/ and says how true they are."""
  c, explainable = config.explain, detector.explainable(config.fake_prevalence)
  rows: list[dict] = []
  stage = explainable.stage(config.data.image_size, c.stage)
  options = {'superpixels': c.superpixels, 'samples': c.lime_samples, 'seed': config.seed}
  families = sorted(set(shown.families), key=lambda family: (family != REAL, family))
  chosen = [i for f in families for i in np.nonzero(shown.families == f)[0][:SHOWN]]
  for i in progress_bar.bar('reasons', chosen):
    maps, row = attribution.explain(explainable, shown.images[i], stage, **options)
    picture = f'explanations/{len(rows):04d}.png'
    title, mask = f'p_fake {row["probability"]:.2f}', shown.masks[i]
    image_grids.save_maps(workdir / picture, shown.images[i], maps, title, mask)
    rows.append({'family': str(shown.families[i]), 'picture': picture, **row})
  found = [row['areas'] for row in rows if row['family'] != REAL and row['probability'] >= 0.5]
  return {'stage': stage, 'images': rows, 'mean_areas_of_fakes': attribution.mean_areas(found)}


def _verdict_shares(verdicts: np.ndarray, rows: np.ndarray, groups: np.ndarray) -> dict:
  """Share of each verdict among the images at `rows`, with its interval."""
  own = verdicts[rows]
  result: dict[str, Any] = {'n': len(own)}
  for name in ('real', 'fake', 'unsure'):
    result |= metrics.share_row(name, own == name, groups[rows])
  return result


def _counts(shown: DetectorDataset) -> dict:
  names, counts = np.unique(shown.families.astype(str), return_counts=True)
  return dict(zip(names.tolist(), counts.tolist()))
