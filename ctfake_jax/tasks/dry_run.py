"""What a run will cost, before it is paid: `--config.dry_run` prints this and stops.

Counts come from the source without decoding it, parameters and state from a fresh one, time from a
few real steps on empty images.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import Config
from ctfake_jax.data import dataset
from ctfake_jax.data.sources import walker
from ctfake_jax.data.sources.dicom.source import DicomSource
from ctfake_jax.detector import dataset as detector_dataset
from ctfake_jax.detector import training
from ctfake_jax.detector_bench import methods
from ctfake_jax.detector_bench import run as bench
from ctfake_jax.forensics import training as forensic_training
from ctfake_jax.forensics.pairs import CROP
from ctfake_jax.models import registry
from ctfake_jax.models.forensic_net import NEIGHBOURS, STRIDE
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.train import classifier, loop
from ctfake_jax.train.generator import FAMILIES

TIMED_STEPS = 3
MEBIBYTE = 2**20
_DETECTING = ('detector', 'detector_bench')
_FORENSICS = ('forensics', 'forensics_bench')


@dataclasses.dataclass(frozen=True)
class Job:
  """One network to be trained: how to make its state, its step, and how many steps there are.

  `empty(batch_size, side)` is a batch as its step takes it.
  """

  name: str
  init: Callable[[], Any]
  step: Callable[[Any, dict, jax.Array], tuple[Any, dict]]
  batch_size: int
  steps: int
  empty: Callable[[int, int], dict[str, np.ndarray]]

  def batch(self, side: int) -> dict[str, np.ndarray]:
    """What the step takes, of images of this side, all empty."""
    return self.empty(self.batch_size, side)


def empty_images(batch_size: int, side: int, channels: int = 1) -> dict[str, np.ndarray]:
  """Empty images and labels as most steps take them."""
  return {
    'image': np.zeros((batch_size, side, side, channels), np.float32),
    'label': np.zeros(batch_size, np.int32),
  }


def describe(config: Config) -> Iterator[str]:
  """Lines of text as they are known: the data, each network with memory and time, the sum."""
  if config.task in _FORENSICS:
    yield from _describe_forensics(config)
    return
  if config.task not in ('classifier', 'study', *FAMILIES, *_DETECTING):
    yield f'{config.task}: no training; nothing to estimate'
    return
  source = dataset.open_source(config)
  counts = collections.Counter(record.label for record in source.records)
  yield f'data: {len(source)} images, not opened yet; {len(source.unreadable)} left out'
  if words := walker.in_words(getattr(source, 'skipped', {})):
    yield words
  yield from (f'  {name}: {counts[label]}' for label, name in enumerate(source.class_names))
  dataset.check_classes(source.class_names)
  yield from dataset.alike_classes(source.class_names)
  parts = collections.Counter(record.split for record in source.records if record.split)
  if parts:
    yield 'parts as the source gives them: ' + ', '.join(f'{k} {n}' for k, n in parts.items())
  yield from _costs(config, jobs(config, len(source.class_names), len(source)))


def _describe_forensics(config: Config) -> Iterator[str]:
  c = config.phantom
  if config.data.path:
    path, limit = Path(config.data.path), config.data.max_pixels
    headers = DicomSource(path, labels_csv=None, max_pixels=limit, unlabelled_ok=True)
    patients = len({record.patient_id for record in headers.records})
    yield f'data: {len(headers)} slices of {patients} patients, {len(headers.unreadable)} left out'
  yield f'phantoms: {c.patients} of {c.slices_per_patient} slices, to be scanned'
  yield from _costs(config, jobs(config, classes=0, images=0))


def _costs(config: Config, found: Iterable[Job]) -> Iterator[str]:
  total = 0.0
  for job in found:
    line, seconds = _cost(job, config.data.image_size)
    yield line
    total += seconds
  yield f'training in all: {total / 60:.1f} minutes on {jax.device_count()} device(s)'


def jobs(config: Config, classes: int, images: int) -> Iterator[Job]:
  """The networks that the config's task trains on so many images; none for other tasks."""
  held_out = 1 / config.split.folds if config.split.folds else config.split.test_fraction
  train_images = round(images * (1 - held_out) * (1 - config.split.val_fraction))
  if config.task == 'classifier':
    loop.check_batch_size('train.batch_size', config.train.batch_size, train_images)
    every = config.split.fold == config_lib.EVERY_FOLD
    yield _classifier_job(config, classes, train_images, config.split.folds if every else 1)
  if config.task == 'study':
    for name in config.study.classifiers:
      folds = config.study.per_model.of(name).folds or config.study.folds
      own = classifier.for_network(config, name, config.seed)
      yield _classifier_job(own, classes, train_images, folds)
  if config.task == 'study':
    # The network chosen is trained again with each, too.
    for _ in range(config.study.seeds):
      yield _generator_job(config_lib.for_stage(config, 'gan', 'gan'), classes)
  if config.task in FAMILIES:
    batch_size = config.generator.batch_size
    loop.check_batch_size(f'{config.task}.batch_size', batch_size, train_images)
    yield _generator_job(config, classes)
  if config.task in _DETECTING:
    for name in detector_dataset.networks(config):
      yield _generator_job(detector_dataset.generator_config(config, name), classes)
  if config.task == 'detector':
    yield _detector_job(config, 'detector', registry.patch_net(config.detection), 1)
  if config.task == 'detector_bench':
    yield from _bench_jobs(config, classes, images)
  if config.task in _FORENSICS:
    yield _forensic_job(config)


def _bench_jobs(config: Config, classes: int, images: int) -> Iterator[Job]:
  """What the bench trains beside the generators; more seeds of the winners come on top."""
  asked, cells = set(config.bench.methods), len(bench.held_out_units(config))
  if asked & {methods.FALL, *methods.ON_LOGITS, *methods.ON_FEATURES}:
    yield _classifier_job(config, classes, round(images * detector_dataset.PARTS['train']), 1)
  if 'diffusion_residual' in asked:
    yield _generator_job(detector_dataset.generator_config(config, 'diffusion'), classes)
  for name in (name for name in config.bench.methods if name in config_lib.MODELS):
    detection = dataclasses.replace(config.detection, updates=config.bench.network_updates)
    own = dataclasses.replace(config, detection=detection)
    yield _detector_job(own, name, registry.MODELS[name](num_classes=1), cells)
  if methods.SHIPPED in asked:
    yield _detector_job(config, methods.SHIPPED, registry.patch_net(config.detection), cells)


def _detector_job(config: Config, name: str, model: nn.Module, times: int) -> Job:
  c, tx = config.detection, training.make_optimizer(config.detection)
  return Job(
    name=name,
    init=lambda: classifier.init_state(model, tx, config.data.image_size, config.seed),
    step=training.make_train_step(model, tx, config),
    batch_size=c.batch_size // 2,
    steps=times * c.updates,
    empty=functools.partial(empty_images, channels=3),
  )


def _forensic_job(config: Config) -> Job:
  c, bench_c = config.forensics, config.forensics_bench
  model, tx = registry.forensic_net(c), forensic_training.make_optimizer(c)
  trainings = bench_c.seeds * min(bench_c.kind_folds, len(c.kinds))
  alone = config.task == 'forensics'
  return Job(
    name=forensic_training.NETWORK,
    init=lambda: forensic_training.init_state(model, tx, config.seed),
    step=forensic_training.make_train_step(model, tx, c.ema_decay),
    batch_size=c.pairs,
    steps=c.updates if alone else trainings * bench_c.updates,
    empty=_empty_pairs,
  )


def _empty_pairs(pairs: int, side: int) -> dict[str, np.ndarray]:
  del side  # crops have their own
  squares = CROP // STRIDE
  return {
    'hu': np.zeros((2 * pairs, NEIGHBOURS, CROP, CROP), np.float32),
    'present': np.ones((2 * pairs, NEIGHBOURS), bool),
    'shares': np.zeros((2 * pairs, squares, squares), np.float32),
  }


def _classifier_job(config: Config, classes: int, train_images: int, folds: int) -> Job:
  per_epoch = max(1, train_images // config.train.batch_size)
  model, tx = classifier.build(config, classes), classifier.make_optimizer(config, per_epoch)
  return Job(
    name=config.model.name,
    init=lambda: classifier.init_state(model, tx, config.data.image_size, config.seed),
    step=classifier.make_train_step(model, tx, config, np.ones(classes, np.float32)),
    batch_size=config.train.batch_size,
    steps=folds * config.train.epochs * per_epoch,
    empty=empty_images,
  )


def _generator_job(config: Config, classes: int) -> Job:
  family, section = FAMILIES[config.task], config.generator
  networks = family.build(config, classes)
  return Job(
    name=config.generator_name,
    init=lambda: family.init_state(networks, config.data.image_size, config.seed),
    step=family.make_train_step(networks, config),
    batch_size=section.batch_size,
    steps=section.updates,
    empty=empty_images,
  )


def _cost(job: Job, size: int) -> tuple[str, float]:
  """A line of text and the seconds of all steps, compilation left out."""
  state = mesh_lib.put_everywhere(job.init())
  state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  batch = job.batch(size)
  step = jax.jit(job.step, donate_argnums=0)
  key = jax.random.key(0)
  state, _ = jax.block_until_ready(step(state, batch, key))
  begun = time.perf_counter()
  for _ in range(TIMED_STEPS):
    state, _ = step(state, batch, key)
  jax.block_until_ready(state)
  seconds = (time.perf_counter() - begun) / TIMED_STEPS
  line = (
    f'{job.name}: {state.parameter_count():,} parameters, '
    f'{state_bytes / MEBIBYTE:.0f} MiB of state, {job.steps} steps of {seconds * 1e3:.0f} ms, '
    f'{job.steps * seconds / 60:.1f} minutes'
  )
  return line, job.steps * seconds
