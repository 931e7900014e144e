"""The task `study`: the paper's experiment from data to report, every stage resumable.

classifiers and GAN -> best by validation -> deepfakes and their quality -> the fall with its
controls -> results.json and report.html. Trainings that do not wait for each other run side by
side. A stage that has left its results is not run again; one that was interrupted goes on from its
newest checkpoint.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import Config
from ctfake_jax.data import dataset, image_grids, splits
from ctfake_jax.data.class_mix import class_counts, labels_in_mix
from ctfake_jax.data.fingerprints import fingerprint
from ctfake_jax.data.splits import Split
from ctfake_jax.data.transforms import controls
from ctfake_jax.evaluation import baselines
from ctfake_jax.evaluation.sample_quality import measure as sample_quality
from ctfake_jax.evaluation.sample_quality.reference_extractor import phantom_extractor
from ctfake_jax.fakes import generation
from ctfake_jax.inference import classifier as inference
from ctfake_jax.inference import generator as sampling
from ctfake_jax.report import study as study_page
from ctfake_jax.runtime import concurrent_jobs, progress_bar, streams
from ctfake_jax.tasks.study import experiment
from ctfake_jax.tasks.study.experiment import GeneratedTestSet
from ctfake_jax.train import classifier, generator
from ctfake_jax.types import GroupedImages, Images, ImageSet
from ctfake_jax.workdir import files as workdir_lib

ROUNDING = 1e-9  # of accuracies
FEWEST_HELD_OUT = 20  # patients: with fewer, nothing but a collapse shows
UNDECIDED = 'undecided'  # of repetitions with other seeds that do not agree


def run(config: Config, workdir: Path) -> dict:
  """Runs or resumes all stages; returns what results.json holds."""
  begun = time.perf_counter()
  progress_bar.stage('data')
  images, config = dataset.load(config)
  facts = {'class_names': list(images.class_names), 'data': fingerprint(images)}
  workdir_lib.record_config(workdir, config, facts)
  folds = [splits.split(images, config.split, fold) for fold in range(config.study.folds)]
  workdir_lib.write_json(workdir / 'split.json', [parts.as_json(images) for parts in folds])
  if remark := too_few_held_out(folds[0]):
    print(remark, flush=True)
  results: dict[str, Any] = {
    'data': baselines.describe(images),
    'baselines': baselines.measure(
      images, folds, config.split, config.seed, dataset.root_of_files(config.data)
    ),
  }
  progress_bar.stage('classifiers and DCGAN')
  trained = concurrent_jobs.run_jobs(
    {
      'dcgan': functools.partial(_gan, config, images, folds[0], workdir),
      **{
        name: functools.partial(_classifier, config, name, images, folds, workdir)
        for name in config.study.classifiers
      },
    }
  )
  dcgan = trained.pop('dcgan')
  results['classifiers'] = trained
  results['best'] = best_classifier(trained, [len(parts.val) for parts in folds])
  progress_bar.stage('deepfakes')
  generated = _generated(config, images, folds[0], workdir)
  results['dcgan'] = {**dcgan, **_quality(config, generated)}
  progress_bar.stage(f'the fall of {results["best"]}')
  best = inference.load(_classifier_dir(workdir, results['best'], 0))
  results |= experiment.measure_fall(best, generated, config)
  _repeat(config, results, images, folds[0], workdir)
  if config.study.retrain:
    results['deepfakes']['retrained'] = _retrain(config, results['best'], generated, workdir)
  results['seconds_of_last_call'] = time.perf_counter() - begun
  workdir_lib.write_results(workdir, results)
  progress_bar.stage('report')
  _figures(config, generated, workdir)
  study_page.write(workdir)
  return results


def _repeat(
  config: Config,
  results: dict,
  images: ImageSet,
  parts: Split,
  workdir: Path,
) -> None:
  """The DCGAN and the best network again with other seeds; one verdict on the falls of all.

  Adds `repetitions`, the first of which is the study's own, to the results. Where their verdicts
  differ, that of the fall becomes 'undecided'.
  """
  name = results['best']
  own = {
    number: dataclasses.replace(config, seed=streams.seed(config.seed, 'repetition', number))
    for number in range(1, config.study.seeds)
  }
  jobs: dict[str, Callable[[], dict]] = {}
  for number, again in own.items():
    folder = _repetition_dir(workdir, number)
    jobs[f'dcgan {number}'] = functools.partial(_gan, again, images, parts, folder)
    jobs[f'{name} {number}'] = functools.partial(_classifier, again, name, images, [parts], folder)
  if jobs:
    progress_bar.stage(f'{name} and DCGAN with other seeds')
  concurrent_jobs.run_jobs(jobs)
  rows = [_repetition(config.seed, results)]
  for number, again in own.items():
    folder = _repetition_dir(workdir, number)
    generated = _generated(again, images, parts, folder)
    best = inference.load(_classifier_dir(folder, name, 0))
    rows.append(_repetition(again.seed, experiment.measure_fall(best, generated, again)))
  results['repetitions'] = rows
  results['fall']['verdict'] = agreed([row['verdict'] for row in rows])


def too_few_held_out(parts: Split) -> str:
  """A remark where patients of the test part are too few for a fall to show; '' else."""
  count = len(np.unique(parts.groups[parts.test]))
  if count >= FEWEST_HELD_OUT:
    return ''
  what = 'patients' if parts.by == 'patient' else 'independent groups'
  return (
    f'careful: only {count} {what} are held out, so that hardly any fall of accuracy can be told '
    f'from chance; {FEWEST_HELD_OUT} or more let one show'
  )


def agreed(verdicts: Sequence[str]) -> str:
  """The verdict of all repetitions, or that they do not agree."""
  return verdicts[0] if len(set(verdicts)) == 1 else UNDECIDED


def _repetition(seed: int, measured: dict) -> dict:
  fall = measured['fall']
  return {
    'seed': seed,
    'originals': measured['originals']['accuracy'],
    'deepfakes': measured['deepfakes']['accuracy'],
    **{key: fall[key] for key in ('points', 'ci99', 'p_value', 'verdict')},
  }


def _repetition_dir(workdir: Path, number: int) -> Path:
  return workdir / 'repetitions' / str(number)


def best_classifier(rows: dict[str, dict], images: Sequence[int]) -> str:
  """Highest validation accuracy; among networks within one image of it, the smallest.

  A lead of one image is luck. Networks are compared on the folds that all of them were trained on:
  one fold is easier than another. The test part has no say.

  Args:
    rows: of results.json, with `validation_accuracy_by_fold` and `parameters`.
    images: of the validation part of each fold.
  """
  shared = min(len(row['validation_accuracy_by_fold']) for row in rows.values())
  accuracy = {
    name: np.mean(row['validation_accuracy_by_fold'][:shared]) for name, row in rows.items()
  }
  least = max(accuracy.values()) - 1 / sum(images[:shared]) - ROUNDING
  close = [name for name, value in accuracy.items() if value >= least]
  return min(close, key=lambda name: rows[name]['parameters'])


def _classifier_dir(workdir: Path, name: str, fold: int) -> Path:
  return workdir / 'classifiers' / name / f'fold{fold}'


def _classifier(
  config: Config, name: str, images: ImageSet, folds: list[Split], workdir: Path
) -> dict:
  own = classifier.for_network(config, name, streams.seed(config.seed, 'classifier', name))
  count = config.study.per_model.of(name).folds or config.study.folds
  return classifier.cross_validate(own, images, folds[:count], workdir / 'classifiers' / name)


def _gan(config: Config, images: ImageSet, parts: Split, workdir: Path) -> dict:
  own, folder = config_lib.for_stage(config, 'gan', 'gan'), workdir / 'dcgan'
  own = dataclasses.replace(own, seed=streams.seed(config.seed, 'dcgan'))
  return workdir_lib.run_stage_once(
    folder, own, functools.partial(generator.train_generator, own, images, parts, folder)
  )


def _generated(config: Config, images: ImageSet, parts: Split, workdir: Path) -> GeneratedTestSet:
  """The deepfakes on trial, in the class mix of the originals that they stand against."""
  generate = dataclasses.replace(config.generate, checkpoint=str(workdir / 'dcgan'))
  seed = streams.seed(config.seed, 'deepfakes')
  own = dataclasses.replace(config, task='generate', generate=generate, seed=seed)
  mix = class_counts(images.labels[parts.test], len(images.class_names))
  generation.run(own, workdir / 'deepfakes', mix)
  deepfakes = _draw_fakes(workdir, config.generate.count, mix, own.seed)
  return GeneratedTestSet(deepfakes, images, parts)


def _draw_fakes(workdir: Path, count: int, mix: np.ndarray, seed: int) -> Images:
  trained = sampling.load(workdir / 'dcgan')
  labels = labels_in_mix(mix, count)
  return Images(controls.through_png(trained.sampler.sample(labels, seed)), labels)


def _quality(config: Config, generated: GeneratedTestSet) -> dict:
  """The deepfakes against every real that the GAN was not trained on.

  The validation part chose among its checkpoints, a handful, and is a third of the reference:
  more reals sharpen the distances by more than that choice can flatter them.
  """
  images, parts = generated.originals, generated.parts

  def reals(rows: Int[np.ndarray, ' m']) -> GroupedImages:
    return GroupedImages(
      controls.through_png(images.images[rows]), images.labels[rows], parts.groups[rows]
    )

  return sample_quality.measure(
    phantom_extractor(config.data.image_size),
    generated.deepfakes,
    reals=reals(np.concatenate([parts.test, parts.val])),
    train=reals(parts.train),
    seed=config.seed,
  )


def _retrain(config: Config, name: str, generated: GeneratedTestSet, workdir: Path) -> dict:
  """The best architecture trained on other deepfakes, tested on the deepfakes and the originals.

  With as many as there are deepfakes (the paper's 500), and under `as_many_as_originals` with as
  many as it had originals; fakes that choose the checkpoint come on top.
  """
  counts = {
    'as_many_as_suspects': len(generated.deepfakes),
    'as_many_as_originals': len(generated.parts.train),
  }
  rows = concurrent_jobs.run_jobs(
    {
      label: functools.partial(_train_on_fakes, config, name, generated, workdir, count, label)
      for label, count in counts.items()
    }
  )
  return {**rows['as_many_as_suspects'], 'as_many_as_originals': rows['as_many_as_originals']}


def _train_on_fakes(
  config: Config, name, generated: GeneratedTestSet, workdir, count: int, label: str
) -> dict:
  held_back = max(1, round(config.split.val_fraction * count))
  seed, originals = streams.seed(config.seed, 'retrained', label), generated.originals
  mix = class_counts(originals.labels[generated.parts.train], len(originals.class_names))
  fakes = _draw_fakes(workdir, count + held_back, mix, seed)
  together, parts = _stack(fakes, generated, held_back, seed)
  folder = workdir / 'retrained' / label
  own = classifier.for_network(config, name, seed)
  workdir_lib.run_stage_once(
    folder, own, functools.partial(classifier.train_classifier, own, together, parts, folder)
  )
  with np.load(folder / 'predictions.npz', allow_pickle=False) as file:
    predictions = dict(file)
  fake = np.arange(len(parts.test)) < len(generated.deepfakes)
  on = {
    kind: classifier.report({k: v[mask] for k, v in predictions.items()}, together.class_names)
    for kind, mask in (('deepfakes', fake), ('originals', ~fake))
  }
  return {
    'train_images': len(parts.train),
    'accuracy_on_deepfakes': on['deepfakes']['accuracy'],
    'ci95_on_deepfakes': on['deepfakes']['ci95'],
    'accuracy_on_originals': on['originals']['accuracy'],
    'ci95_on_originals': on['originals']['ci95'],
  }


def _stack(
  fakes: Images, generated: GeneratedTestSet, held_back: int, seed: int
) -> tuple[ImageSet, Split]:
  """Training fakes, the deepfakes under test, then the held-out originals, as one image set."""
  together = generated.test
  groups = [generated.test_groups]
  for made, kind in ((generated.deepfakes, 'deepfake'), (fakes, 'training fake')):
    groups.insert(0, np.arange(len(made)) + 1 + max(g.max() for g in groups))
    together = together.preceded_by(made, kind)
  rows = np.arange(len(together))
  order = streams.generator(seed, 'held back').permutation(len(fakes))
  train, val = np.sort(order[held_back:]), np.sort(order[:held_back])
  return together, Split(train, val, rows[len(fakes) :], np.concatenate(groups), 'fakes')


def _figures(config: Config, generated: GeneratedTestSet, workdir: Path) -> None:
  """Real and fake side by side, eight of each class."""
  real, deepfakes = generated.test, generated.deepfakes
  for label in range(len(real.class_names)):
    rows = np.nonzero(real.labels == label)[0]
    chosen = streams.generator(config.seed, 'figures', label).permutation(rows)[:8]
    fakes = np.nonzero(deepfakes.labels == label)[0][:8]
    image_grids.save_grid(workdir / 'figures' / f'real_{label}.png', real.images[chosen], 8)
    image_grids.save_grid(
      workdir / 'figures' / f'fake_{label}.png', generated.deepfakes.images[fakes], 8
    )
