"""The resolved configuration: every key with its meaning and default, and its validation.

`defaults()` lists every key once. A file in `configs/` starts from it and overrides a few; the
command line overrides those (`--config.train.epochs=5`). `validate` runs before any work;
`check_record` is the part of it that a record of a finished run must satisfy, too.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
from ml_collections import config_dict

from ctfake_jax.types import UserError

# Ways to make a fake from a real image; those of EDITS need no trained generator.
EDITS = ('blended', 'inpainted', 'copied')
METHODS_ON_REALS = ('reconstructions', *EDITS)
GENERATORS = ('gan', 'vae', 'diffusion', 'autoencoder')
TASKS = (
  'classifier',
  *GENERATORS,
  'generate',
  'evaluate',
  'predict',
  'export',
  'study',
  'benchmark',
  'detector',
  'detect',
  'recalibrate',
  'explain',
  'detector_bench',
)
FAMILIES = (
  'dcgan',
  'resize_gan',
  'vae',
  'vae_reconstruction',
  'diffusion',
  'diffusion_reconstruction',
  'autoencoder_reconstruction',
  *EDITS,
)
# Those of the study, and all that can be trained.
CLASSIFIERS = ('cnn', 'resnet18', 'resnet50', 'mobilenetv2')
MODELS = (*CLASSIFIERS, 'resnet101', 'densenet121', 'densenet201', 'vgg19')
# Methods of the detector bench; the first is judged by batches of labelled images.
BENCH_METHODS = (
  *('fall_of_50', 'max_softmax', 'energy', 'mahalanobis', 'neighbours', 'spectrum', 'svm'),
  *('random_forest', 'decision_tree', 'reservoir', 'diffusion_residual', *MODELS, 'detector'),
)
# Keys that may change between a run and its continuation in the same workdir.
SAFE_TO_CHANGE = (
  'dry_run',
  'model.views',
  'train.epochs',
  'train.log_every',
  'train.keep_checkpoints',
  'gan.updates',
  *(f'{name}.keep_checkpoints' for name in GENERATORS),
  'study.retrain',
  'study.seeds',
  'detection.ignore_leaks',
  *(f'detection.{key}' for key in ('seconds_per_file', 'decoder_mib', 'workers')),
  *(f'explain.{key}' for key in ('count', 'stage', 'superpixels', 'lime_samples')),
  'bench.methods',
  'bench.winners_seeds',
  'distributed',
  'mesh.coordinator',
  'mesh.num_processes',
  'mesh.process_id',
)
# Length of a training -> its schedule: under a falling one, what is done had other rates than the
# steps of a straight run of the new length.
SCHEDULES = {'train.epochs': 'train.schedule', 'gan.updates': 'gan.schedule'}


def defaults() -> ml_collections.ConfigDict:
  """Every key with its default; sections in the order in which data flows."""
  c = ml_collections.ConfigDict()
  c.task = 'classifier'
  c.seed = 0  # of initialisation, batch order, augmentation and bootstrap
  c.distributed = 'auto'  # on: join the other processes; auto: where a cluster started several
  c.dry_run = False  # print counts, parameters, memory, time; then stop

  c.data = ml_collections.ConfigDict()
  c.data.source = 'phantom'  # phantom, folders, dicom or tfds
  c.data.path = ''  # root of the images; not used by the phantom
  c.data.labels_csv = ''  # dicom: SeriesInstanceUID or path -> label
  c.data.classes = ()  # folders, dicom: take these class folders only; () takes all
  c.data.patient_folders = False  # folders: class/<patient>/image; recalibrate: <patient>/image
  c.data.stream = False  # images stay on disk and are decoded when a step takes them
  c.data.synthetic_ok = False  # dicom: also take as originals what says that it is synthetic
  c.data.max_pixels = 2**26  # larger images are refused unread
  c.data.image_size = 32  # side of what a model sees, pixels
  c.data.window_center_hu = -600.0  # lung window
  c.data.window_width_hu = 1500.0
  # Stored values of pictures that become black and white: type (0 and the type's maximum), auto
  # (what the training set uses, then recorded) or LOW-HIGH/MAXIMUM, such as 0-4095/65535
  c.data.grey_range = 'type'
  c.data.aspect = 'crop'  # crop (centre), letterbox, or stretch (all of a slice, its aspect lost)

  c.phantom = ml_collections.ConfigDict()
  c.phantom.patients = 400
  c.phantom.slices_per_patient = 4
  c.phantom.size = 0  # reconstruction matrix, pixels; 0: data.image_size
  c.phantom.seed = 0  # of anatomy, lesions and noise
  c.phantom.scanners = ('A', 'B', 'C')

  c.split = ml_collections.ConfigDict()
  c.split.by = 'auto'  # patient, duplicates, slice; auto: patient where known, else duplicates
  c.split.duplicate_correlation = 0.95  # 32x32 mean-free pixels, linked above this
  c.split.folds = 0  # 0: one split; k >= 3: k-fold
  c.split.fold = 0  # which fold is the test part; -1, classifier task: each in turn, pooled
  c.split.val_fraction = 0.15  # of what is not tested; the nearest 1/k is taken
  c.split.test_fraction = 0.2  # of a single split; the nearest 1/k is taken
  c.split.seed = 0
  c.split.random_labels = False  # control: a random class for each patient or set of near-twins

  c.augment = ml_collections.ConfigDict()
  c.augment.shift = 0.06  # of the side, each way
  c.augment.scale = 0.1  # 1 +- this
  c.augment.rotate_degrees = 8.0
  c.augment.sharp = 0.0  # share of images that move by whole pixels only: resampling blurs
  c.augment.flip = False  # left-right; a chest is not symmetric
  c.augment.intensity = 0.1  # contrast 1 +- this, brightness +- this
  c.augment.mixup = 0.0  # Beta(a, a) of mixup (Zhang et al. 2018); 0: off

  c.model = ml_collections.ConfigDict()
  c.model.name = 'cnn'
  c.model.dtype = 'float32'  # compute dtype: float32 or bfloat16
  c.model.views = 1  # shifted views of a tested image that are averaged: 1, 5 or 9
  c.model.pretrained = ''  # .safetensors or .npz with torchvision's names
  c.model.cnn = ml_collections.ConfigDict()
  c.model.cnn.widths = (32, 64, 128, 256)
  c.model.cnn.convs = (1,)  # convolutions in each block; the last number holds for the rest
  c.model.cnn.stem_stride = 1  # of the first convolution; 2 for large images
  c.model.cnn.dropout = 0.3

  c.train = ml_collections.ConfigDict()
  c.train.batch_size = 32
  c.train.epochs = 30
  c.train.optimizer = 'adamw'  # adamw, adam or sgd
  c.train.learning_rate = 1e-3  # peak
  c.train.schedule = 'cosine'  # cosine or constant
  c.train.warmup_epochs = 1.0
  c.train.weight_decay = 1e-2
  c.train.label_smoothing = 0.05
  c.train.class_weights = True  # loss weighted by inverse class frequency
  c.train.ema_decay = 0.99  # moving average of parameters; 0: off
  c.train.eval_every_epochs = 1
  c.train.choose = 'loss'  # checkpoint: the least validation loss, or the last, for small val parts
  c.train.early_stop_evals = 0  # evaluations without progress; 0: off
  c.train.log_every = 20  # steps
  c.train.steps_at_once = 0  # in one dispatch; 0: 1 on a CPU, 10 elsewhere
  c.train.keep_checkpoints = 3

  c.gan = ml_collections.ConfigDict()
  c.gan.name = 'dcgan'  # dcgan or resize_gan
  c.gan.width = 64
  c.gan.latent = 100
  c.gan.conditional = True
  c.gan.label_loss = 0.3  # weight of the cross-entropy of reals' classes, if conditional; 0: off
  c.gan.batch_size = 64
  c.gan.updates = 6000
  c.gan.learning_rate_generator = 2e-4
  c.gan.learning_rate_discriminator = 2e-4
  c.gan.schedule = 'constant'  # or cosine: both rates fall to 0 over gan.updates
  c.gan.beta1 = 0.5
  c.gan.ema_decay = 0.995  # of the generator's parameters
  c.gan.augment = True  # differentiable augmentation of what the discriminator sees
  c.gan.eval_every = 500  # updates
  c.gan.quality_images = 500  # fakes and reals in the Frechet distance
  c.gan.keep_checkpoints = 3
  c.gan.dtype = 'float32'

  c.vae = ml_collections.ConfigDict()
  c.vae.width = 32  # channels next to the image, of encoder and decoder
  c.vae.latent = 128
  c.vae.conditional = True  # the decoder sees the label
  c.vae.beta = 1.0  # weight of the latents' divergence
  c.vae.batch_size = 32
  c.vae.updates = 4000
  c.vae.learning_rate = 1e-3  # falls to 0 by half a cosine
  c.vae.ema_decay = 0.995
  c.vae.eval_every = 500
  c.vae.quality_images = 500
  c.vae.keep_checkpoints = 3
  c.vae.dtype = 'float32'

  c.diffusion = ml_collections.ConfigDict()
  c.diffusion.width = 32  # channels at full resolution, a multiple of 8
  c.diffusion.conditional = True
  c.diffusion.batch_size = 32
  c.diffusion.updates = 6000
  c.diffusion.learning_rate = 1e-3  # peak; falls to 0 by half a cosine
  c.diffusion.warmup_updates = 200
  c.diffusion.ema_decay = 0.998
  c.diffusion.sample_steps = 25
  c.diffusion.eval_every = 1000
  c.diffusion.quality_images = 200
  c.diffusion.keep_checkpoints = 3
  c.diffusion.dtype = 'float32'

  c.autoencoder = ml_collections.ConfigDict()
  c.autoencoder.width = 24  # channels next to the image, of each member and the discriminator
  c.autoencoder.batch_size = 32
  c.autoencoder.updates = 3000
  c.autoencoder.learning_rate = 1e-3  # falls to 0 by half a cosine
  c.autoencoder.ema_decay = 0.99
  c.autoencoder.eval_every = 500
  c.autoencoder.quality_images = 500
  c.autoencoder.keep_checkpoints = 3
  c.autoencoder.dtype = 'float32'

  c.generate = ml_collections.ConfigDict()
  c.generate.checkpoint = ''  # workdir of a generator's training
  c.generate.method = 'samples'  # or reconstructions, blended, inpainted, copied: of config.data
  c.generate.count = 500  # in all, in the class mix of the images learnt from, or edited
  c.generate.dicom = False  # also CT DICOM files; generators trained on HU only
  c.generate.field_of_view_mm = 0.0  # of DICOM whose spacing the data do not tell; 0: unknown

  c.detection = ml_collections.ConfigDict()
  c.detection.families = FAMILIES  # of fakes to learn from
  c.detection.fakes_folder = ''  # of anybody's fakes, one more family
  c.detection.ignore_leaks = False  # go on though shortcuts tell real from fake
  c.detection.fakes_to_learn = 1000  # of each family, for the network
  c.detection.fakes_per_family = 300  # in each other part that needs some, at most one a real
  c.detection.width = 48  # channels next to the image, at half its resolution
  c.detection.batch_size = 32  # half of them fakes, each beside an original
  c.detection.updates = 2000
  c.detection.learning_rate = 3e-3
  c.detection.weight_decay = 1e-2
  c.detection.ema_decay = 0.99
  c.detection.eval_every = 250
  c.detection.keep_checkpoints = 3
  c.detection.dtype = 'float32'
  c.detection.false_alarm_rate = 0.0  # 0: 0.01 where a detector is made, elsewhere its own
  c.detection.seconds_per_file = 20.0  # detect: a file that takes longer is unreadable
  c.detection.decoder_mib = 2048  # detect: memory of each decoder process
  c.detection.workers = 0  # detect: decoder processes; 0: one for each core

  c.bench = ml_collections.ConfigDict()
  c.bench.methods = BENCH_METHODS
  c.bench.network_updates = 400  # of each network beside the shipped detector's
  c.bench.winners_seeds = 3  # trainings of the two best methods

  c.explain = ml_collections.ConfigDict()
  c.explain.count = 16  # images, the first of the input
  c.explain.stage = ''  # of Grad-CAM; '': the deepest of use
  c.explain.superpixels = 48  # of LIME
  c.explain.lime_samples = 512

  c.input = ''  # predict, detect, explain, recalibrate: image or folder
  c.detector = ''  # detect, explain, recalibrate: workdir of a detector
  c.prior_fake = 0.5  # detector, detect: share of fakes that p_fake assumes
  c.checkpoint = ''  # predict, evaluate, explain, export: workdir of the training

  c.study = ml_collections.ConfigDict()
  c.study.classifiers = CLASSIFIERS
  c.study.folds = 1  # how many of split.folds are run
  c.study.seeds = 1  # how often DCGAN and chosen network are trained: the fall of each, compared
  c.study.retrain = True  # train the best architecture on other deepfakes
  c.study.label_shuffles = 1  # control: fakes with random labels
  c.study.per_model = ml_collections.ConfigDict(
    {
      name: ml_collections.ConfigDict({'epochs': 0, 'learning_rate': 0.0, 'folds': 0})
      for name in CLASSIFIERS
    }
  )  # 0: as train.epochs, train.learning_rate, study.folds

  c.benchmark = ml_collections.ConfigDict()
  c.benchmark.models = ('dcgan', *CLASSIFIERS)
  c.benchmark.modes = ('train', 'infer')
  c.benchmark.steps = 5  # in a timed block
  c.benchmark.repeats = 3  # blocks; the median counts

  c.mesh = ml_collections.ConfigDict()
  c.mesh.coordinator = config_dict.placeholder(str)  # host:port; None: found by the cluster
  c.mesh.num_processes = config_dict.placeholder(int)
  c.mesh.process_id = config_dict.placeholder(int)
  return c


FEWEST_DEEPFAKES = 40
EVERY_FOLD = -1


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a value must satisfy, in words and in code."""

  allowed: str
  holds: Callable[[Any], bool]


def _one_of(*names: str) -> Rule:
  return Rule('one of ' + ', '.join(names), lambda v: v in names)


def _some_of(*names: str) -> Rule:
  return Rule(
    'one or more of ' + ', '.join(names) + ', each once',
    lambda v: len(v) > 0 and len(set(v)) == len(v) and set(v) <= set(names),
  )


def _between(low: float, high: float) -> Rule:
  return Rule(f'a number from {low:g} to {high:g}', lambda v: math.isfinite(v) and low <= v <= high)


def _at_least(low: float) -> Rule:
  return Rule(f'a number of at least {low:g}', lambda v: math.isfinite(v) and v >= low)


def _is_grey_range(value: str) -> bool:
  return value in ('type', 'auto') or bool(parse_grey_range(value))


def parse_grey_range(text: str) -> tuple[float, float, int] | None:
  """Low, high and maximum of `data.grey_range`; None where they are not in it, or make no range."""
  found = re.fullmatch(r'(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)/(\d+)', text)
  if not found:
    return None
  low, high, most = float(found[1]), float(found[2]), int(found[3])
  return (low, high, most) if low < high <= most else None


_POWER_OF_TWO = Rule('a power of two from 32 to 256', lambda v: 32 <= v <= 256 and v & (v - 1) == 0)
_MULTIPLE_OF_4 = Rule('a multiple of 4', lambda v: v > 0 and v % 4 == 0)
_SIDES = {
  **dict.fromkeys(('gan', 'vae', 'study', 'detector', 'detector_bench'), _POWER_OF_TWO),
  **dict.fromkeys(('diffusion', 'autoencoder'), _MULTIPLE_OF_4),
}

RULES: dict[str, Rule] = {
  'task': _one_of(*TASKS),
  'seed': _between(0, 2**31 - 1),
  'distributed': _one_of('auto', 'on', 'off'),
  'data.source': _one_of('phantom', 'folders', 'dicom', 'tfds'),
  'data.image_size': _between(16, 1024),
  'data.max_pixels': _at_least(1),
  'data.window_width_hu': _between(1, 65536),
  'data.window_center_hu': _between(-2048, 65536),
  'data.grey_range': Rule(
    'type, auto, or LOW-HIGH/MAXIMUM in stored values, such as 0-4095/65535', _is_grey_range
  ),
  'data.aspect': _one_of('crop', 'letterbox', 'stretch'),
  'phantom.patients': _at_least(8),
  'phantom.slices_per_patient': _between(1, 64),
  'phantom.size': Rule('0 or from 16 to 512', lambda v: v == 0 or 16 <= v <= 512),
  'phantom.seed': _between(0, 2**31 - 1),
  'split.by': _one_of('auto', 'patient', 'duplicates', 'slice'),
  'split.duplicate_correlation': _between(0.5, 1),
  'split.folds': Rule('0 or from 3 to 100', lambda v: v == 0 or 3 <= v <= 100),
  'split.fold': Rule('-1 or a whole number of at least 0', lambda v: v >= EVERY_FOLD),
  'split.val_fraction': _between(0.01, 0.5),
  'split.test_fraction': _between(0.01, 0.5),
  'augment.shift': _between(0, 0.5),
  'augment.scale': _between(0, 0.5),
  'augment.rotate_degrees': _between(0, 180),
  'augment.sharp': _between(0, 1),
  'augment.intensity': _between(0, 0.9),
  'augment.mixup': _between(0, 10),
  'model.name': _one_of(*MODELS),
  'model.dtype': _one_of('float32', 'bfloat16'),
  'model.views': Rule('1, 5 or 9', lambda v: v in (1, 5, 9)),
  'model.cnn.widths': Rule(
    'one or more positive whole numbers',
    lambda v: len(v) > 0 and all(isinstance(w, int) and w > 0 for w in v),
  ),
  'model.cnn.convs': Rule(
    'one or more whole numbers from 1 to 8',
    lambda v: len(v) > 0 and all(isinstance(n, int) and 1 <= n <= 8 for n in v),
  ),
  'model.cnn.stem_stride': _between(1, 4),
  'model.cnn.dropout': _between(0, 0.95),
  'train.batch_size': _at_least(2),
  'train.epochs': _at_least(1),
  'train.optimizer': _one_of('adamw', 'adam', 'sgd'),
  'train.learning_rate': _between(1e-8, 10),
  'train.schedule': _one_of('cosine', 'constant'),
  'train.warmup_epochs': _at_least(0),
  'train.weight_decay': _between(0, 1),
  'train.label_smoothing': _between(0, 0.9),
  'train.ema_decay': _between(0, 0.99999),
  'train.eval_every_epochs': _at_least(1),
  'train.choose': _one_of('loss', 'last'),
  'train.early_stop_evals': _at_least(0),
  'train.log_every': _at_least(1),
  'train.steps_at_once': _at_least(0),
  'train.keep_checkpoints': _at_least(1),
  'gan.name': _one_of('dcgan', 'resize_gan'),
  'gan.width': _between(1, 512),
  'gan.latent': _between(1, 4096),
  'gan.label_loss': _between(0, 100),
  'gan.learning_rate_generator': _between(1e-8, 1),
  'gan.learning_rate_discriminator': _between(1e-8, 1),
  'gan.schedule': _one_of('cosine', 'constant'),
  'gan.beta1': _between(0, 0.999),
  'vae.width': _between(1, 512),
  'vae.latent': _between(1, 4096),
  'vae.beta': _between(0, 1000),
  'vae.learning_rate': _between(1e-8, 1),
  'diffusion.width': Rule('a multiple of 8', lambda v: v > 0 and v % 8 == 0),
  'diffusion.learning_rate': _between(1e-8, 1),
  'diffusion.warmup_updates': _at_least(0),
  'diffusion.sample_steps': _between(1, 1000),
  'autoencoder.width': _between(1, 512),
  'autoencoder.learning_rate': _between(1e-8, 1),
  'generate.method': _one_of('samples', *METHODS_ON_REALS),
  'generate.count': _between(1, 10**7),
  'generate.field_of_view_mm': Rule(
    '0 or a number from 50 to 1000', lambda v: v == 0 or 50 <= v <= 1000
  ),
  'study.classifiers': _some_of(*CLASSIFIERS),
  'benchmark.models': _some_of('dcgan', *CLASSIFIERS),
  'benchmark.modes': _some_of('train', 'infer'),
  'benchmark.steps': _at_least(1),
  'benchmark.repeats': _at_least(1),
  'detection.families': _some_of(*FAMILIES),
  'detection.fakes_to_learn': _at_least(8),
  'detection.fakes_per_family': _at_least(8),
  'detection.width': _between(1, 512),
  'detection.batch_size': Rule('an even number of at least 4', lambda v: v >= 4 and v % 2 == 0),
  'detection.updates': _at_least(1),
  'detection.learning_rate': _between(1e-8, 1),
  'detection.weight_decay': _between(0, 1),
  'detection.ema_decay': _between(0, 0.99999),
  'detection.eval_every': _at_least(1),
  'detection.keep_checkpoints': _at_least(1),
  'detection.dtype': _one_of('float32', 'bfloat16'),
  'detection.seconds_per_file': _between(0.1, 3600),
  'detection.decoder_mib': _at_least(256),
  'detection.workers': _between(0, 256),
  'detection.false_alarm_rate': Rule(
    '0 or a number from 1e-05 to 0.5', lambda v: v == 0 or 1e-5 <= v <= 0.5
  ),
  'prior_fake': _between(1e-6, 1 - 1e-6),
  'bench.methods': _some_of(*BENCH_METHODS),
  'bench.network_updates': _at_least(1),
  'bench.winners_seeds': _at_least(1),
  'explain.count': _at_least(1),
  'explain.superpixels': _between(2, 10000),
  'explain.lime_samples': _between(16, 10**6),
  'study.folds': _at_least(1),
  'study.seeds': _between(1, 100),
  'study.label_shuffles': _at_least(0),
}
for _name in GENERATORS:
  RULES |= {
    f'{_name}.batch_size': _at_least(2),
    f'{_name}.updates': _at_least(1),
    f'{_name}.ema_decay': _between(0, 0.99999),
    f'{_name}.eval_every': _at_least(1),
    f'{_name}.quality_images': _at_least(8),
    f'{_name}.keep_checkpoints': _at_least(1),
    f'{_name}.dtype': _one_of('float32', 'bfloat16'),
  }
# Each of eight members takes its turns.
RULES['autoencoder.batch_size'] = Rule('a multiple of 8', lambda v: v > 0 and v % 8 == 0)


def check_record(config: ml_collections.ConfigDict) -> None:
  """Raises UserError naming a key that is unknown, or whose type or range is wrong.

  What a record of a finished run must satisfy: its paths may be gone, or left out on purpose.
  """
  values = dict(_leaves(config))
  _check_keys_and_types(values)
  for key, rule in RULES.items():
    if not _holds(rule, values[key]):
      raise UserError(f'config.{key} = {values[key]!r}: must be {rule.allowed}')


def validate(config: ml_collections.ConfigDict) -> None:
  """Raises UserError naming what keeps the config's task from running: `check_record` and more."""
  check_record(config)
  values = dict(_leaves(config))
  for needs, keys in _REQUIRED_PATHS.items():
    if needs == config.task:
      for key in keys:
        if not values[key] and not (needs == 'generate' and values['generate.method'] in EDITS):
          raise UserError(f'config.{key} is empty: {needs} needs it, set --config.{key}=PATH')
  if config.data.source != 'phantom' and not config.data.path and config.task not in _READ_NO_DATA:
    raise UserError(
      f'config.data.path is empty: source {config.data.source!r} needs --config.data.path=FOLDER'
    )
  if config.data.source == 'phantom' and config.data.path and config.task not in _READ_NO_DATA:
    raise UserError(
      f'config.data.path = {config.data.path!r}: the phantom reads no files; say what these are '
      'with --config.data.source=folders, dicom or tfds'
    )
  if config.split.folds and config.split.fold >= config.split.folds:
    raise UserError(
      f'config.split.fold = {config.split.fold}: must be below split.folds = {config.split.folds}'
    )
  if config.split.fold == EVERY_FOLD and not (config.split.folds and config.task == 'classifier'):
    raise UserError(
      'config.split.fold = -1: every fold in turn, so the task must be classifier and split.folds '
      'say how many'
    )
  if config.split.random_labels and config.task != 'classifier':
    raise UserError('config.split.random_labels = True: a control of single classifiers only')
  if config.task == 'detector_bench' and config.detection.fakes_folder:
    raise UserError('config.detection.fakes_folder: the bench makes its own fakes; leave it empty')
  if config.train.choose == 'last' and config.train.early_stop_evals:
    raise UserError(
      f'config.train.early_stop_evals = {config.train.early_stop_evals}: the last checkpoint is '
      'asked for; set train.choose=loss, or early_stop_evals=0'
    )
  if config.task == 'study':
    _check_study(config)
  _check_mesh(config.mesh)
  times_a_gan = config.task == 'benchmark' and 'dcgan' in config.benchmark.models
  side = _POWER_OF_TWO if times_a_gan else _SIDES.get(config.task)
  if side and not side.holds(config.data.image_size):
    raise UserError(
      f'config.data.image_size = {config.data.image_size}: the generator needs {side.allowed}'
    )


def _check_mesh(mesh: ml_collections.ConfigDict) -> None:
  """Addresses that JAX would refuse without naming the key, or pass over."""
  count, own = mesh.num_processes, mesh.process_id
  if mesh.coordinator is None:
    for key, value in {'num_processes': count, 'process_id': own}.items():
      if value is not None:
        raise UserError(f'config.mesh.{key} = {value}: set mesh.coordinator=HOST:PORT beside it')
    return
  host, _, port = mesh.coordinator.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise UserError(
      f'config.mesh.coordinator = {mesh.coordinator!r}: must be HOST:PORT, the port below 65536'
    )
  if count is not None and count < 1:
    raise UserError(f'config.mesh.num_processes = {count}: must be at least 1')
  if count is not None and own is not None and not 0 <= own < count:
    raise UserError(f'config.mesh.process_id = {own}: must be from 0 to {count - 1}')


def _check_study(config: ml_collections.ConfigDict) -> None:
  """What would otherwise fail after hours."""
  folds = max(config.split.folds, 1)
  per_model = {f'study.per_model.{n}.folds': config.study.per_model[n].folds for n in CLASSIFIERS}
  for key, value in {'study.folds': config.study.folds, **per_model}.items():
    most = folds if key == 'study.folds' else config.study.folds
    if value > most:
      raise UserError(f'config.{key} = {value}: must be at most {most}')
  if config.generate.count < FEWEST_DEEPFAKES:
    raise UserError(
      f'config.generate.count = {config.generate.count}: a study needs at least '
      f'{FEWEST_DEEPFAKES} deepfakes to measure their quality'
    )


def _holds(rule: Rule, value: Any) -> bool:
  try:
    return bool(rule.holds(value))
  except (TypeError, ValueError):
    return False


_REQUIRED_PATHS = {
  'generate': ('generate.checkpoint',),
  'predict': ('checkpoint', 'input'),
  'evaluate': ('checkpoint',),
  'export': ('checkpoint',),
  'detect': ('detector', 'input'),
  'recalibrate': ('detector', 'input'),
  'explain': ('input',),
}
_DATA_SECTIONS = ('data', 'phantom', 'split', 'mesh')
_READ_NO_DATA = ('generate', 'predict', 'export', 'benchmark', 'detect', 'recalibrate', 'explain')


def differing_keys(old: dict, new: dict) -> list[str]:
  """Dotted keys whose values differ between two resolved configs.

  A key that was unknown when a config was saved had its default.
  """
  a, b = ({**dict(_leaves(defaults())), **dict(_leaves(config))} for config in (old, new))
  return sorted(k for k in a.keys() | b.keys() if _plain(a.get(k)) != _plain(b.get(k)))


def changed_keys(old: dict, new: dict) -> list[str]:
  """Those of the `differing_keys` that may not change while a run is resumed."""
  return [key for key in differing_keys(old, new) if not _may_change(key, old, new)]


def _may_change(key: str, old: dict, new: dict) -> bool:
  if key not in SCHEDULES:
    return key in SAFE_TO_CHANGE
  configs = [{**dict(_leaves(defaults())), **dict(_leaves(config))} for config in (old, new)]
  constant = all(values[SCHEDULES[key]] == 'constant' for values in configs)
  # A warmup is cut to half of a short training.
  whole = key != 'train.epochs' or all(2 * v['train.warmup_epochs'] <= v[key] for v in configs)
  return constant and whole


def for_stage(config: ml_collections.ConfigDict, task: str, *sections: str):
  """A copy for the stage `task` of a study: sections that it does not read are at their defaults.

  A stage is then finished or resumable whatever is changed for the others.
  """
  own = ml_collections.ConfigDict(config.to_dict())
  for name, default in defaults().items():
    if isinstance(default, ml_collections.ConfigDict) and name not in (*_DATA_SECTIONS, *sections):
      own[name] = default
  own.task = task
  return own


def as_dict(config: ml_collections.ConfigDict) -> dict:
  """Nested plain dict, ready for JSON."""
  return {
    k: as_dict(v) if isinstance(v, ml_collections.ConfigDict) else _plain(v)
    for k, v in config.items()
  }


def from_dict(saved: dict) -> ml_collections.ConfigDict:
  """The config that `as_dict` wrote, on top of today's defaults; raises as `check_record`."""
  config, known = defaults(), dict(_leaves(defaults()))
  values = {k: tuple(v) if isinstance(v, list) else v for k, v in _leaves(saved) if v is not None}
  if unknown := sorted(values.keys() - known.keys()):
    raise UserError(
      f'a recorded config has keys that this version does not know ({", ".join(unknown)}): use the '
      'version that wrote it, or run its command again'
    )
  for key, value in values.items():
    _check_type(key, value, known[key])
  config.update_from_flattened_dict(values)
  check_record(config)
  return config


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value


def _leaves(tree: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, dict | ml_collections.ConfigDict):
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _check_keys_and_types(values: dict[str, Any]) -> None:
  known = dict(_leaves(defaults()))
  for key, value in values.items():
    if key not in known:
      raise UserError(f'config.{key}: unknown key; have: {", ".join(sorted(known))}')
    _check_type(key, value, known[key])
  for key in known.keys() - values.keys():
    raise UserError(f'config.{key} is missing: start from ctfake_jax.config.defaults()')


def _check_type(key: str, value: Any, default: Any) -> None:
  number = isinstance(default, float) and type(value) is int
  if None not in (value, default) and type(value) is not type(default) and not number:
    raise UserError(
      f'config.{key} = {value!r}: must be {type(default).__name__}, not {type(value).__name__}'
    )
