"""The task `detector_bench`: every method on every generator that it has not seen.

One generator at a time is held out: the methods learn on the others' fakes of the parts `train` and
`validation`, `calibration` maps their scores to probabilities, the originals of `conformal` set the
threshold, and the originals and the held-out fakes of `test` judge them. Parts are groups of
patients or near-duplicates. Each cell of the table has a folder and is not measured again.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import sklearn.linear_model
import sklearn.metrics

from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import Config
from ctfake_jax.data.preprocess import Preprocess, from_uint8
from ctfake_jax.detector import calibration, domain
from ctfake_jax.detector import dataset as detector_dataset
from ctfake_jax.detector.dataset import REAL, DetectorDataset
from ctfake_jax.detector_bench import comparison
from ctfake_jax.detector_bench.methods import (
  CLASSIFIER,
  FALL,
  METHODS,
  ON_FEATURES,
  ON_LOGITS,
  RESIDUAL,
  FittedMethod,
  TrainingContext,
  outputs,
)
from ctfake_jax.evaluation import baselines, metrics
from ctfake_jax.inference import classifier as inference
from ctfake_jax.report import bench as bench_page
from ctfake_jax.runtime import progress_bar, streams
from ctfake_jax.train import classifier, generator
from ctfake_jax.types import UserError
from ctfake_jax.workdir import files as workdir_lib

# What is held out at once: a generator with all that it makes, or one kind of local edit.
HELD_OUT = {
  'dcgan': ('dcgan',),
  'resize_gan': ('resize_gan',),
  'vae': ('vae', 'vae_reconstruction'),
  'diffusion': ('diffusion', 'diffusion_reconstruction'),
  'autoencoder_reconstruction': ('autoencoder_reconstruction',),
  **{edit: (edit,) for edit in config_lib.EDITS},
}
BATCH, BATCHES = 50, 400


def run(config: Config, workdir: Path) -> dict:
  """Fills the table; writes results.json and report.html after every method."""
  units = held_out_units(config)
  if len(units) < 2:
    raise UserError(
      f'config.detection.families = {tuple(config.detection.families)}: one generator is held out '
      'at a time, so the bench needs families of at least two'
    )
  reals, shown, config = detector_dataset.build_parts(config, workdir)
  if {FALL, *ON_LOGITS, *ON_FEATURES} & set(config.bench.methods):
    progress_bar.stage('classifier of labels')
    _train_classifier(config, reals, workdir)
  if 'diffusion_residual' in config.bench.methods:
    progress_bar.stage('diffusion model of the originals')
    _train_residual(config, reals, workdir)
  results: dict[str, Any] = {
    'data': baselines.describe(reals.images),
    'units': units,
    'rows': {},
    'false_alarm_rate': calibration.asked_rate(config),
  }
  for name in config.bench.methods:
    progress_bar.stage(name)
    measure = functools.partial(_cell, config, shown, workdir, name)
    results['rows'][name] = _row({unit: measure(unit, config.seed) for unit in units})
    workdir_lib.write_results(workdir, results)
    bench_page.write(workdir)
  results['winners'] = _winners(config, shown, workdir, results)
  workdir_lib.write_results(workdir, results)
  bench_page.write(workdir)
  return results


def held_out_units(config: Config) -> list[str]:
  """The keys of `HELD_OUT` that `detection.families` make fakes of."""
  asked = set(config.detection.families)
  return [unit for unit, families in HELD_OUT.items() if asked & set(families)]


def _train_classifier(config: Config, reals: detector_dataset.SplitImages, workdir: Path) -> None:
  own = config_lib.for_stage(config, 'classifier', 'augment', 'model', 'train')
  own = dataclasses.replace(own, seed=streams.seed(config.seed, 'classifier of labels'))
  folder = workdir / CLASSIFIER
  fit = functools.partial(classifier.train_classifier, own, reals.images, reals.split(), folder)
  workdir_lib.run_stage_once(folder, own, fit)


def _train_residual(config: Config, reals: detector_dataset.SplitImages, workdir: Path) -> None:
  own = detector_dataset.generator_config(config, 'diffusion')
  own = dataclasses.replace(
    own,
    diffusion=dataclasses.replace(own.diffusion, conditional=False),
    seed=streams.seed(config.seed, 'diffusion of reals'),
  )
  folder = workdir / RESIDUAL
  fit = functools.partial(generator.train_generator, own, reals.images, reals.split(), folder)
  workdir_lib.run_stage_once(folder, own, fit)


def _cell(
  config: Config,
  shown: dict[str, DetectorDataset],
  workdir: Path,
  name: str,
  unit: str,
  seed: int,
) -> dict:
  """One method on one held-out unit with one seed; kept in its folder."""
  folder = workdir / 'cells' / name / unit / f'seed{seed}'
  # A cell depends on neither the other methods nor on how many seeds winners get.
  bench = dataclasses.replace(config.bench, methods=(name,), top_two_seeds=1)
  own = dataclasses.replace(config, bench=bench)
  return workdir_lib.run_stage_once(
    folder, own, lambda: _measure_cell(own, shown, workdir, folder, name, unit, seed)
  )


def _measure_cell(
  config: Config, shown, workdir: Path, folder: Path, name: str, unit: str, seed: int
):
  workdir_lib.record_config(folder, config, {})
  test = shown['test'].of(REAL, *HELD_OUT[unit])
  if name == FALL:
    result = _fall(workdir, test, config.seed)
  else:
    seen = {part: own.take(~np.isin(own.families, HELD_OUT[unit])) for part, own in shown.items()}
    context = TrainingContext(config, seen['train'], seen['validation'], workdir, folder, seed)
    result = _judge(config, METHODS[name](context), seen, test, folder)
  workdir_lib.write_results(folder, result)
  return result


def _judge(
  config: Config,
  scorer: FittedMethod,
  seen: dict[str, DetectorDataset],
  test: DetectorDataset,
  folder: Path,
) -> dict:
  """The figures of one cell; leaves the test scores in scores.npz."""
  scaling = calibration.fit_scaling(
    scorer.score(seen['calibration'].images), seen['calibration'].fake
  )
  reals = seen['conformal'].of(REAL)
  one = calibration.one_per_group(np.arange(len(reals)), reals.groups, config.seed)
  rate = calibration.asked_rate(config)
  threshold = calibration.conformal_threshold(scorer.score(reals.images)[one], rate)
  begun = time.perf_counter()
  scores = scorer.score(test.images)
  seconds = time.perf_counter() - begun
  decoded = test.decoded(Preprocess.from_config(config.data), unit='')
  views = from_uint8(np.stack([d.views[1:] for d in decoded]))[..., None]
  re_encoded = np.stack([scorer.score(views[:, i]) for i in range(views.shape[1])], 1)
  judged, _ = calibration.verdicts(
    scores, re_encoded, scaling, threshold.value, config.fake_prevalence
  )
  fake, alarm, verdicts, kept = test.fake, scores > threshold.value, judged, None
  if scorer.within_domain:
    known = domain.fit_domain(seen['train'], seen['validation'], reals.images[one], config.seed)
    outside = known.scores(domain.features_of(test.images)) > known.limit
    verdicts = np.where(outside, calibration.UNSURE, judged)
    kept = _kept(judged[fake], outside[fake])
  probability = scaling.p_fake(scores, config.fake_prevalence)
  folder.mkdir(parents=True, exist_ok=True)
  np.savez(folder / 'scores.npz', allow_pickle=False, scores=scores, fake=fake, groups=test.groups)
  found = metrics.found_at(rate, scores[fake], scores[~fake])
  return {
    'n': len(test),
    'auroc': metrics.auroc(scores[fake], scores[~fake]),
    'average_precision': float(sklearn.metrics.average_precision_score(fake, scores)),
    **metrics.share_row('detection', found, test.groups[fake]),
    'accuracy_at_threshold': float(0.5 * (alarm[fake].mean() + (~alarm[~fake]).mean())),
    'false_alarms': float(alarm[~fake].mean()),
    'called_fake': float((verdicts == calibration.FAKE)[fake].mean()),
    'kept': kept,
    'unsure': float((verdicts == calibration.UNSURE).mean()),
    'calibration_error_before': calibration.calibration_error(
      calibration.UNSCALED.p_fake(scores, config.fake_prevalence),
      fake,
      config.fake_prevalence,
      test.groups,
    )
    if scorer.logits
    else None,
    'calibration_error': calibration.calibration_error(
      probability, fake, config.fake_prevalence, test.groups
    ),
    'ms_per_image': 1e3 * seconds / len(test),
    'parameters': scorer.parameters,
    'size': scorer.size,
  }


def _kept(judged: np.ndarray, outside: np.ndarray) -> float | None:
  """Share of those called fake among fakes [n] that the domain leaves so; None where none is."""
  called = judged == calibration.FAKE
  return float((~outside[called]).mean()) if called.any() else None


def _fall(workdir: Path, test: DetectorDataset, seed: int) -> dict:
  """The paper's sign: the share of wrong answers in batches of 50, of fakes against of reals."""
  trained = inference.load(workdir / CLASSIFIER)
  wrong = outputs(trained, test.images)[0].argmax(1) != test.labels
  rng = streams.generator(seed, 'batches of fifty')
  fakes, reals = (
    wrong[kind][rng.integers(kind.sum(), size=(BATCHES, BATCH))].mean(1)
    for kind in (test.fake, ~test.fake)
  )
  return {
    'n': len(test),
    'auroc': metrics.auroc(fakes, reals),
    'detection': metrics.detection_at(0.01, fakes, reals),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(trained.variables['params'])),
    'size': f'batches of {BATCH} with labels',
  }


def _row(cells: dict[str, dict]) -> dict:
  """A method's cells with means over whole-image generators and over local edits."""

  def mean(key: str, units: list[str]) -> float | None:
    return float(np.mean([cells[u][key] for u in units])) if units else None

  whole = [unit for unit in cells if unit not in config_lib.EDITS]
  kept = [cells[unit]['kept'] for unit in whole if cells[unit].get('kept') is not None]
  edits = [unit for unit in cells if unit in config_lib.EDITS]
  return {
    'cells': cells,
    'mean_auroc_all': mean('auroc', list(cells)),
    'mean_auroc': mean('auroc', whole),
    'lowest_auroc': min((cells[unit]['auroc'] for unit in whole), default=None),
    'mean_detection': mean('detection', whole),
    'mean_auroc_edits': mean('auroc', edits),
    'mean_kept': float(np.mean(kept)) if kept else None,
    'lowest_kept': min(kept, default=None),
  }


def _winners(config: Config, shown, workdir: Path, results: dict) -> dict | None:
  """The two best methods of single images by mean AUROC: compared, and with more seeds."""
  single = {name: row for name, row in results['rows'].items() if name != FALL}
  best = sorted(single, key=lambda name: single[name]['mean_auroc_all'], reverse=True)[:2]
  if len(best) < 2:
    return None
  a, b = (_scores(workdir, name, results['units'], config.seed) for name in best)
  by_seed = {
    name: [
      _row({unit: _cell(config, shown, workdir, name, unit, seed) for unit in results['units']})
      for seed in range(config.seed, config.seed + config.bench.top_two_seeds)
    ]
    for name in best
  }
  return {
    'names': best,
    'difference': comparison.mean_auroc_difference(a, b, config.seed),
    'delong_p': {
      unit: comparison.delong(a[unit].scores, b[unit].scores, a[unit].fake) for unit in a
    },
    'mean_auroc_by_seed': {n: [r['mean_auroc_all'] for r in rows] for n, rows in by_seed.items()},
  }


def _scores(workdir: Path, name: str, units: list[str], seed: int) -> dict[str, comparison.Scores]:
  """What a method said of the test images of each cell."""
  found = {}
  for unit in units:
    path = workdir / 'cells' / name / unit / f'seed{seed}' / 'scores.npz'
    with np.load(path, allow_pickle=False) as file:
      found[unit] = comparison.Scores(**file)
  return found
