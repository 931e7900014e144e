"""Every key of the configuration, one row each: default, rule, meaning, and whether it may change.

A file in `configs/` starts from `defaults()` and overrides a few; the command line overrides those.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
from ml_collections import config_dict

from ctfake_jax.config.names import (
  BENCH_METHODS,
  CLASSIFIERS,
  EVERY_FOLD,
  FAMILIES,
  METHODS_ON_REALS,
  MODELS,
  SCANNERS,
  TASKS,
)


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a value must satisfy, in words and in code."""

  allowed: str
  holds: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Key:
  """A row of the configuration.

  Attributes:
    default: its value where nobody gives one; its type is the value's.
    rule: what a value must satisfy.
    meaning: in words, with the unit.
    may_change: whether it may differ when a run goes on in its workdir.
  """

  default: Any
  rule: Rule
  meaning: str
  may_change: bool = False


EITHER = Rule('True or False', lambda v: isinstance(v, bool))
TEXT = Rule('a text', lambda v: isinstance(v, str))
TEXTS = Rule('texts', lambda v: all(isinstance(text, str) for text in v))
MULTIPLE_OF_8 = Rule('a multiple of 8', lambda v: v > 0 and v % 8 == 0)


def one_of(*names: str) -> Rule:
  """One of these names."""
  return Rule('one of ' + ', '.join(names), lambda v: v in names)


def some_of(*names: str) -> Rule:
  """One or more of these names, each once."""
  return Rule(
    'one or more of ' + ', '.join(names) + ', each once',
    lambda v: len(v) > 0 and len(set(v)) == len(v) and set(v) <= set(names),
  )


def between(low: float, high: float) -> Rule:
  """A finite number of [low, high]."""
  return Rule(f'a number from {low:g} to {high:g}', lambda v: math.isfinite(v) and low <= v <= high)


def at_least(low: float) -> Rule:
  """A finite number of at least `low`."""
  return Rule(f'a number of at least {low:g}', lambda v: math.isfinite(v) and v >= low)


def unset_or(rule: Rule) -> Rule:
  """None, or what the rule allows."""
  return Rule(f'unset or {rule.allowed}', lambda v: v is None or rule.holds(v))


def _is_grey_range(value: str) -> bool:
  return value in ('type', 'auto') or bool(parse_grey_range(value))


def parse_grey_range(text: str) -> tuple[float, float, int] | None:
  """Low, high and maximum of `data.grey_range`; None where they are not in it, or make no range."""
  found = re.fullmatch(r'(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)/(\d+)', text)
  if not found:
    return None
  low, high, most = float(found[1]), float(found[2]), int(found[3])
  return (low, high, most) if low < high <= most else None


def _training(
  name: str,
  *,
  batch_size: int,
  updates: int,
  ema_decay: float,
  eval_every: int,
  quality_images: int,
  batch_rule: Rule = at_least(2),  # noqa: B008
) -> dict[str, Key]:
  """Rows of every generator's training."""
  own = {
    'batch_size': Key(batch_size, batch_rule, 'images of a step'),
    'updates': Key(updates, at_least(1), 'steps of the training'),
    'ema_decay': Key(ema_decay, between(0, 0.99999), "of the parameters' moving average"),
    'eval_every': Key(eval_every, at_least(1), 'updates between two looks at its images'),
    'quality_images': Key(
      quality_images, at_least(8), 'fakes and reals in the texture Frechet distance (not FID)'
    ),
    'keep_checkpoints': Key(3, at_least(1), 'the newest so many, beside the best', may_change=True),
    'dtype': Key('float32', one_of('float32', 'bfloat16'), 'compute dtype'),
  }
  return {f'{name}.{key}': row for key, row in own.items()}


def _per_model(key: str, default: Any, rule: Rule, meaning: str) -> dict[str, Key]:
  """A row for each classifier of the study."""
  row = Key(default, rule, f'0: {meaning}')
  return {f'study.per_model.{name}.{key}': row for name in CLASSIFIERS}


KEYS: dict[str, Key] = {
  'task': Key('classifier', one_of(*TASKS), 'what is run'),
  'seed': Key(
    0, between(0, 2**31 - 1), 'of initialisation, batch order, augmentation and bootstrap'
  ),
  'distributed': Key(
    'auto',
    one_of('auto', 'on', 'off'),
    'on: join the other processes; auto: where a cluster started several',
    may_change=True,
  ),
  'dry_run': Key(
    False, EITHER, 'print counts, parameters, memory, time; then stop', may_change=True
  ),
  'data.source': Key(
    'phantom', one_of('phantom', 'folders', 'dicom', 'tfds'), 'phantom, folders, dicom or tfds'
  ),
  'data.path': Key('', TEXT, 'root of the images; not used by the phantom'),
  'data.labels_csv': Key('', TEXT, 'dicom: SeriesInstanceUID or path -> label'),
  'data.classes': Key((), TEXTS, 'folders, dicom: take these class folders only; () takes all'),
  'data.patient_folders': Key(
    False, EITHER, 'folders: class/<patient>/image; recalibrate: <patient>/image'
  ),
  'data.stream': Key(False, EITHER, 'images stay on disk and are decoded when a step takes them'),
  'data.synthetic_ok': Key(
    False, EITHER, 'dicom: also take as originals what says that it is synthetic'
  ),
  'data.max_pixels': Key(2**26, at_least(1), 'larger images are refused unread'),
  'data.image_size': Key(32, between(16, 1024), 'side of what a model sees, pixels'),
  'data.window_center_hu': Key(-600.0, between(-2048, 65536), 'lung window'),
  'data.window_width_hu': Key(1500.0, between(1, 65536), 'of the window'),
  'data.grey_range': Key(
    'type',
    Rule('type, auto, or LOW-HIGH/MAXIMUM in stored values, such as 0-4095/65535', _is_grey_range),
    "stored values that become black and white: type (0 and the type's maximum), auto (what the "
    'training set uses, then recorded) or LOW-HIGH/MAXIMUM',
  ),
  'data.aspect': Key(
    'crop',
    one_of('crop', 'letterbox', 'stretch'),
    'crop (centre), letterbox, or stretch (all of a slice, its aspect lost)',
  ),
  'phantom.patients': Key(400, at_least(8), 'simulated'),
  'phantom.slices_per_patient': Key(4, between(1, 64), 'of each'),
  'phantom.size': Key(
    0,
    Rule('0 or from 16 to 512', lambda v: v == 0 or 16 <= v <= 512),
    'reconstruction matrix, pixels; 0: data.image_size',
  ),
  'phantom.seed': Key(0, between(0, 2**31 - 1), 'of anatomy, lesions and noise'),
  'phantom.scanners': Key(('A', 'B', 'C'), some_of(*SCANNERS), 'whose kernels and doses are mixed'),
  'split.by': Key(
    'auto',
    one_of('auto', 'patient', 'duplicates', 'slice'),
    'patient, duplicates, slice; auto: patient where known, else duplicates',
  ),
  'split.duplicate_correlation': Key(
    0.95, between(0.5, 1), '32x32 mean-free pixels, linked above this'
  ),
  'split.folds': Key(
    0, Rule('0 or from 3 to 100', lambda v: v == 0 or 3 <= v <= 100), '0: one split; k >= 3: k-fold'
  ),
  'split.fold': Key(
    0,
    Rule('-1 or a whole number of at least 0', lambda v: v >= EVERY_FOLD),
    'which fold is the test part; -1, classifier task: each in turn, pooled',
  ),
  'split.val_fraction': Key(
    0.15, between(0.01, 0.5), 'of what is not tested; the nearest 1/k is taken'
  ),
  'split.test_fraction': Key(
    0.2, between(0.01, 0.5), 'of a single split; the nearest 1/k is taken'
  ),
  'split.seed': Key(0, between(0, 2**31 - 1), 'of parts and folds'),
  'split.random_labels': Key(
    False, EITHER, 'control: a random class for each patient or set of near-twins'
  ),
  'augment.shift': Key(0.06, between(0, 0.5), 'of the side, each way'),
  'augment.scale': Key(0.1, between(0, 0.5), '1 +- this'),
  'augment.rotate_degrees': Key(8.0, between(0, 180), 'each way'),
  'augment.integer_shift_fraction': Key(
    0.0, between(0, 1), 'share of images that move by whole pixels only: resampling blurs'
  ),
  'augment.flip': Key(False, EITHER, 'left-right; a chest is not symmetric'),
  'augment.intensity': Key(0.1, between(0, 0.9), 'contrast 1 +- this, brightness +- this'),
  'augment.mixup': Key(0.0, between(0, 10), 'Beta(a, a) of mixup (Zhang et al. 2018); 0: off'),
  'model.name': Key('cnn', one_of(*MODELS), 'of a classifier'),
  'model.dtype': Key(
    'float32', one_of('float32', 'bfloat16'), 'compute dtype: float32 or bfloat16'
  ),
  'model.views': Key(
    1,
    Rule('1, 5 or 9', lambda v: v in (1, 5, 9)),
    'shifted views of a tested image that are averaged: 1, 5 or 9',
    may_change=True,
  ),
  'model.pretrained': Key('', TEXT, ".safetensors or .npz with torchvision's names"),
  'model.cnn.widths': Key(
    (32, 64, 128, 256),
    Rule(
      'one or more positive whole numbers',
      lambda v: len(v) > 0 and all(isinstance(w, int) and w > 0 for w in v),
    ),
    'channels of each block',
  ),
  'model.cnn.convs': Key(
    (1,),
    Rule(
      'one or more whole numbers from 1 to 8',
      lambda v: len(v) > 0 and all(isinstance(n, int) and 1 <= n <= 8 for n in v),
    ),
    'convolutions in each block; the last number holds for the rest',
  ),
  'model.cnn.stem_stride': Key(1, between(1, 4), 'of the first convolution; 2 for large images'),
  'model.cnn.dropout': Key(0.3, between(0, 0.95), 'rate before the last layer'),
  'train.batch_size': Key(32, at_least(2), 'images of a step, of all devices together'),
  'train.epochs': Key(30, at_least(1), 'passes over the training part'),
  'train.optimizer': Key('adamw', one_of('adamw', 'adam', 'sgd'), 'adamw, adam or sgd'),
  'train.learning_rate': Key(1e-3, between(1e-8, 10), 'peak'),
  'train.schedule': Key('cosine', one_of('cosine', 'constant'), 'cosine or constant'),
  'train.warmup_epochs': Key(1.0, at_least(0), 'in which the rate rises'),
  'train.weight_decay': Key(1e-2, between(0, 1), 'of kernels'),
  'train.label_smoothing': Key(0.05, between(0, 0.9), 'share of the target given to all classes'),
  'train.class_weights': Key(True, EITHER, 'loss weighted by inverse class frequency'),
  'train.ema_decay': Key(0.99, between(0, 0.99999), 'moving average of parameters; 0: off'),
  'train.eval_every_epochs': Key(1, at_least(1), 'between two looks at the validation part'),
  'train.select_checkpoint': Key(
    'loss',
    one_of('loss', 'last'),
    'checkpoint: the least validation loss, or the last, for small val parts',
  ),
  'train.early_stop_evals': Key(0, at_least(0), 'evaluations without progress; 0: off'),
  'train.log_every': Key(20, at_least(1), 'steps', may_change=True),
  'train.steps_at_once': Key(0, at_least(0), 'in one dispatch; 0: 1 on a CPU, 10 elsewhere'),
  'train.keep_checkpoints': Key(
    3, at_least(1), 'the newest so many, beside the best', may_change=True
  ),
  'gan.name': Key('dcgan', one_of('dcgan', 'resize_gan'), 'dcgan or resize_gan'),
  'gan.width': Key(64, between(1, 512), 'channels next to the image'),
  'gan.latent': Key(100, between(1, 4096), 'numbers that an image is made from'),
  'gan.conditional': Key(True, EITHER, 'both networks see the label'),
  'gan.aux_classifier_weight': Key(
    0.3, between(0, 100), "weight of the cross-entropy of reals' classes, if conditional; 0: off"
  ),
  'gan.learning_rate_generator': Key(2e-4, between(1e-8, 1), 'peak'),
  'gan.learning_rate_discriminator': Key(2e-4, between(1e-8, 1), 'peak'),
  'gan.schedule': Key(
    'constant', one_of('cosine', 'constant'), 'or cosine: both rates fall to 0 over gan.updates'
  ),
  'gan.beta1': Key(0.5, between(0, 0.999), 'of Adam'),
  'gan.augment': Key(True, EITHER, 'differentiable augmentation of what the discriminator sees'),
  **_training(
    'gan', batch_size=64, updates=6000, ema_decay=0.995, eval_every=500, quality_images=500
  ),
  'vae.width': Key(32, between(1, 512), 'channels next to the image, of encoder and decoder'),
  'vae.latent': Key(128, between(1, 4096), 'numbers that an image is made from'),
  'vae.conditional': Key(True, EITHER, 'the decoder sees the label'),
  'vae.beta': Key(1.0, between(0, 1000), "weight of the latents' divergence"),
  'vae.learning_rate': Key(1e-3, between(1e-8, 1), 'falls to 0 by half a cosine'),
  **_training(
    'vae', batch_size=32, updates=4000, ema_decay=0.995, eval_every=500, quality_images=500
  ),
  'diffusion.width': Key(
    32,
    Rule('a multiple of 8', lambda v: v > 0 and v % 8 == 0),
    'channels at full resolution, a multiple of 8',
  ),
  'diffusion.conditional': Key(True, EITHER, 'the network sees the label'),
  'diffusion.learning_rate': Key(1e-3, between(1e-8, 1), 'peak; falls to 0 by half a cosine'),
  'diffusion.warmup_updates': Key(200, at_least(0), 'in which the rate rises'),
  'diffusion.sample_steps': Key(25, between(1, 1000), 'of denoising'),
  **_training(
    'diffusion', batch_size=32, updates=6000, ema_decay=0.998, eval_every=1000, quality_images=200
  ),
  'autoencoder.width': Key(
    24, between(1, 512), 'channels next to the image, of each member and the discriminator'
  ),
  'autoencoder.learning_rate': Key(1e-3, between(1e-8, 1), 'falls to 0 by half a cosine'),
  **_training(
    'autoencoder',
    batch_size=32,
    updates=3000,
    ema_decay=0.99,
    eval_every=500,
    quality_images=500,
    batch_rule=MULTIPLE_OF_8,
  ),
  'generate.checkpoint': Key('', TEXT, "workdir of a generator's training"),
  'generate.method': Key(
    'samples',
    one_of('samples', *METHODS_ON_REALS),
    'or reconstructions, blended, inpainted, copied: of config.data',
  ),
  'generate.count': Key(
    500, between(1, 10**7), 'in all, in the class mix of the images learnt from, or edited'
  ),
  'generate.dicom': Key(False, EITHER, 'also CT DICOM files; generators trained on HU only'),
  'generate.field_of_view_mm': Key(
    0.0,
    Rule('0 or a number from 50 to 1000', lambda v: v == 0 or 50 <= v <= 1000),
    'of DICOM whose spacing the data do not tell; 0: unknown',
  ),
  'detection.families': Key(FAMILIES, some_of(*FAMILIES), 'of fakes to learn from'),
  'detection.fakes_folder': Key('', TEXT, "of anybody's fakes, one more family"),
  'detection.ignore_leaks': Key(
    False, EITHER, 'go on though shortcuts tell real from fake', may_change=True
  ),
  'detection.train_fakes_per_family': Key(1000, at_least(8), 'of each family, for the network'),
  'detection.eval_fakes_per_family': Key(
    300, at_least(8), 'in each other part that needs some, at most one a real'
  ),
  'detection.width': Key(48, between(1, 512), 'channels next to the image, at half its resolution'),
  'detection.batch_size': Key(
    32,
    Rule('an even number of at least 4', lambda v: v >= 4 and v % 2 == 0),
    'half of them fakes, each beside an original',
  ),
  'detection.updates': Key(2000, at_least(1), 'of the network'),
  'detection.learning_rate': Key(3e-3, between(1e-8, 1), 'peak'),
  'detection.weight_decay': Key(1e-2, between(0, 1), 'of kernels'),
  'detection.ema_decay': Key(0.99, between(0, 0.99999), 'of the parameters'),
  'detection.eval_every': Key(250, at_least(1), 'updates'),
  'detection.keep_checkpoints': Key(3, at_least(1), 'the newest so many, beside the best'),
  'detection.dtype': Key('float32', one_of('float32', 'bfloat16'), 'compute dtype'),
  'detection.false_alarm_rate': Key(
    0.0,
    Rule('0 or a number from 1e-05 to 0.5', lambda v: v == 0 or 1e-5 <= v <= 0.5),
    '0: 0.01 where a detector is made, elsewhere its own',
  ),
  'detection.seconds_per_file': Key(
    20.0,
    between(0.1, 3600),
    'of a file to be decoded: one that takes longer is unreadable',
    may_change=True,
  ),
  'detection.decoder_mib': Key(
    2048, at_least(256), 'memory of each decoder process', may_change=True
  ),
  'detection.workers': Key(
    0, between(0, 256), 'decoder processes; 0: one for each core', may_change=True
  ),
  'bench.methods': Key(
    BENCH_METHODS, some_of(*BENCH_METHODS), 'columns of the table', may_change=True
  ),
  'bench.network_updates': Key(400, at_least(1), "of each network beside the shipped detector's"),
  'bench.top_two_seeds': Key(3, at_least(1), 'trainings of the two best methods', may_change=True),
  'explain.count': Key(16, at_least(1), 'images, the first of the input', may_change=True),
  'explain.stage': Key('', TEXT, "of Grad-CAM; '': the deepest of use", may_change=True),
  'explain.superpixels': Key(48, between(2, 10000), 'of LIME', may_change=True),
  'explain.lime_samples': Key(
    512, between(16, 10**6), 'masked copies of an image', may_change=True
  ),
  'input': Key('', TEXT, 'predict, detect, explain, recalibrate: image or folder'),
  'detector': Key('', TEXT, 'detect, explain, recalibrate: workdir of a detector'),
  'fake_prevalence': Key(
    0.5, between(1e-6, 1 - 1e-6), 'detector, detect: share of fakes that p_fake assumes'
  ),
  'checkpoint': Key('', TEXT, 'predict, evaluate, explain, export: workdir of the training'),
  'study.classifiers': Key(CLASSIFIERS, some_of(*CLASSIFIERS), 'trained and compared'),
  'study.folds': Key(1, at_least(1), 'how many of split.folds are run'),
  'study.seeds': Key(
    1,
    between(1, 100),
    'how often DCGAN and chosen network are trained: the fall of each, compared',
    may_change=True,
  ),
  'study.retrain': Key(
    True, EITHER, 'train the best architecture on other deepfakes', may_change=True
  ),
  'study.label_shuffles': Key(1, at_least(0), 'control: fakes with random labels'),
  **_per_model('epochs', 0, at_least(0), 'as train.epochs'),
  **_per_model('learning_rate', 0.0, between(0, 10), 'as train.learning_rate'),
  **_per_model('folds', 0, at_least(0), 'as study.folds'),
  'benchmark.models': Key(
    ('dcgan', *CLASSIFIERS), some_of('dcgan', *CLASSIFIERS), 'networks timed'
  ),
  'benchmark.modes': Key(('train', 'infer'), some_of('train', 'infer'), 'passes timed'),
  'benchmark.steps': Key(5, at_least(1), 'in a timed block'),
  'benchmark.repeats': Key(3, at_least(1), 'blocks; the median counts'),
  'runtime.reference_ops': Key(
    False, EITHER, 'plain forms of all operations alone (XLA, Flax, Optax), to compare with'
  ),
  'mesh.coordinator': Key(
    str, unset_or(TEXT), 'host:port; None: found by the cluster', may_change=True
  ),
  'mesh.num_processes': Key(int, unset_or(at_least(1)), 'of the job', may_change=True),
  'mesh.process_id': Key(int, unset_or(at_least(0)), 'of this one, from 0', may_change=True),
}


def defaults() -> ml_collections.ConfigDict:
  """Every key with its default."""
  config = ml_collections.ConfigDict()
  for key, row in KEYS.items():
    *sections, name = key.split('.')
    place = config
    for section in sections:
      if section not in place:
        place[section] = ml_collections.ConfigDict()
      place = place[section]
    placeholder = isinstance(row.default, type)
    place[name] = config_dict.placeholder(row.default) if placeholder else row.default
  return config


def leaves(tree: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Dotted keys and values of a nested dict or ConfigDict."""
  for key, value in tree.items():
    if isinstance(value, dict | ml_collections.ConfigDict):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value
