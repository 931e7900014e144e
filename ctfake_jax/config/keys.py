"""Every key of the configuration, one row each: type, default, rule, meaning, may it change.

Each section is a frozen dataclass, for the room that reads it; `Config` holds them all. A file in
`configs/` overrides a few (`config.config_dict`), and the command line overrides those.
"""

import dataclasses
from typing import Any

from ctfake_jax.config.names import (
  BENCH_METHODS,
  CLASSIFIERS,
  EDIT_KINDS,
  EVERY_FOLD,
  FAMILIES,
  METHODS_ON_REALS,
  MODELS,
  SCANNERS,
  TAMPERING,
  TASKS,
)
from ctfake_jax.config.value_rules import (
  EITHER,
  MULTIPLE_OF_8,
  TEXT,
  TEXTS,
  Rule,
  at_least,
  between,
  is_grey_range,
  one_of,
  some_of,
  unset_or,
)


def key(default: Any, rule: Rule, meaning: str, *, may_change: bool = False) -> Any:
  """A row: a dataclass field with what its value means, in words with the unit, and may be.

  Where it `may_change`, it may differ when a run goes on in its workdir.
  """
  metadata = {'rule': rule, 'meaning': meaning, 'may_change': may_change}
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read, and how it becomes what a model sees."""

  source: str = key(
    'phantom',
    one_of('phantom', 'folders', 'dicom', 'tfds', 'volumes'),
    'phantom, folders, dicom or tfds; volumes (NIfTI, MetaImage): tamper alone',
  )
  path: str = key('', TEXT, 'root of the images; not used by the phantom')
  labels_csv: str = key('', TEXT, 'dicom: SeriesInstanceUID or path -> label')
  classes: tuple[str, ...] = key(
    (), TEXTS, 'folders, dicom: take these class folders only; () takes all'
  )
  patient_folders: bool = key(
    False, EITHER, 'folders: class/<patient>/image; recalibrate: <patient>/image'
  )
  stream: bool = key(False, EITHER, 'images stay on disk and are decoded when a step takes them')
  synthetic_ok: bool = key(
    False, EITHER, 'dicom: also take as originals what says that it is synthetic'
  )
  max_pixels: int = key(2**26, at_least(1), 'larger images are refused unread')
  image_size: int = key(32, between(16, 1024), 'side of what a model sees, pixels')
  window_center_hu: float = key(-600.0, between(-2048, 65536), 'lung window')
  window_width_hu: float = key(1500.0, between(1, 65536), 'of the window')
  grey_range: str = key(
    'type',
    Rule('type, auto, or LOW-HIGH/MAXIMUM in stored values, such as 0-4095/65535', is_grey_range),
    "stored values that become black and white: type (0 and the type's maximum), auto (what the "
    'training set uses, then recorded) or LOW-HIGH/MAXIMUM',
  )
  aspect: str = key(
    'crop',
    one_of('crop', 'letterbox', 'stretch'),
    'crop (centre), letterbox, or stretch (all of a slice, its aspect lost)',
  )


@dataclasses.dataclass(frozen=True)
class PhantomConfig:
  """The simulated patients."""

  patients: int = key(400, at_least(1), 'simulated')
  slices_per_patient: int = key(4, between(1, 400), 'of each')
  size: int = key(
    0,
    Rule('0 or from 16 to 512', lambda v: v == 0 or 16 <= v <= 512),
    'reconstruction matrix, pixels; 0: data.image_size',
  )
  seed: int = key(0, between(0, 2**31 - 1), 'of anatomy, lesions and noise')
  scanners: tuple[str, ...] = key(
    ('A', 'B', 'C'), some_of(*SCANNERS), 'whose kernels and doses are mixed'
  )
  thickness_mm: float = key(2.5, between(0.5, 10), 'of slices in a series, and the step of each')


@dataclasses.dataclass(frozen=True)
class SplitConfig:
  """Training, validation and test parts."""

  by: str = key(
    'auto',
    one_of('auto', 'patient', 'duplicates', 'slice'),
    'patient, duplicates, slice; auto: patient where known, else duplicates',
  )
  duplicate_correlation: float = key(
    0.95, between(0.5, 1), '32x32 mean-free pixels, linked above this'
  )
  folds: int = key(
    0, Rule('0 or from 3 to 100', lambda v: v == 0 or 3 <= v <= 100), '0: one split; k >= 3: k-fold'
  )
  fold: int = key(
    0,
    Rule('-1 or a whole number of at least 0', lambda v: v >= EVERY_FOLD),
    'which fold is the test part; -1, classifier task: each in turn, pooled',
  )
  val_fraction: float = key(
    0.15, between(0.01, 0.5), 'of what is not tested; the nearest 1/k is taken'
  )
  test_fraction: float = key(0.2, between(0.01, 0.5), 'of a single split; the nearest 1/k is taken')
  seed: int = key(0, between(0, 2**31 - 1), 'of parts and folds')
  random_labels: bool = key(
    False, EITHER, 'control: a random class for each patient or set of near-twins'
  )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """What is done to training images."""

  shift: float = key(0.06, between(0, 0.5), 'of the side, each way')
  scale: float = key(0.1, between(0, 0.5), '1 +- this')
  rotate_degrees: float = key(8.0, between(0, 180), 'each way')
  integer_shift_fraction: float = key(
    0.0, between(0, 1), 'share of images that move by whole pixels only: resampling blurs'
  )
  flip: bool = key(False, EITHER, 'left-right; a chest is not symmetric')
  intensity: float = key(0.1, between(0, 0.9), 'contrast 1 +- this, brightness +- this')
  mixup: float = key(0.0, between(0, 10), 'Beta(a, a) of mixup (Zhang et al. 2018); 0: off')


@dataclasses.dataclass(frozen=True)
class CnnConfig:
  """The custom CNN."""

  widths: tuple[int, ...] = key(
    (32, 64, 128, 256),
    Rule(
      'one or more positive whole numbers',
      lambda v: len(v) > 0 and all(isinstance(w, int) and w > 0 for w in v),
    ),
    'channels of each block',
  )
  convs: tuple[int, ...] = key(
    (1,),
    Rule(
      'one or more whole numbers from 1 to 8',
      lambda v: len(v) > 0 and all(isinstance(n, int) and 1 <= n <= 8 for n in v),
    ),
    'convolutions in each block; the last number holds for the rest',
  )
  stem_stride: int = key(1, between(1, 4), 'of the first convolution; 2 for large images')
  dropout: float = key(0.3, between(0, 0.95), 'rate before the last layer')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The classifier."""

  name: str = key('cnn', one_of(*MODELS), 'of a classifier')
  dtype: str = key('float32', one_of('float32', 'bfloat16'), 'compute dtype: float32 or bfloat16')
  views: int = key(
    1,
    Rule('1, 5 or 9', lambda v: v in (1, 5, 9)),
    'shifted views of a tested image that are averaged: 1, 5 or 9',
    may_change=True,
  )
  pretrained: str = key('', TEXT, ".safetensors or .npz with torchvision's names")
  cnn: CnnConfig = CnnConfig()


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """A classifier's training; `log_every` and `steps_at_once` hold for every loop."""

  batch_size: int = key(32, at_least(2), 'images of a step, of all devices together')
  epochs: int = key(30, at_least(1), 'passes over the training part')
  optimizer: str = key('adamw', one_of('adamw', 'adam', 'sgd'), 'adamw, adam or sgd')
  learning_rate: float = key(1e-3, between(1e-8, 10), 'peak')
  schedule: str = key('cosine', one_of('cosine', 'constant'), 'cosine or constant')
  warmup_epochs: float = key(1.0, at_least(0), 'in which the rate rises')
  weight_decay: float = key(1e-2, between(0, 1), 'of kernels')
  label_smoothing: float = key(0.05, between(0, 0.9), 'share of the target given to all classes')
  class_weights: bool = key(True, EITHER, 'loss weighted by inverse class frequency')
  ema_decay: float = key(0.99, between(0, 0.99999), 'moving average of parameters; 0: off')
  eval_every_epochs: int = key(1, at_least(1), 'between two looks at the validation part')
  select_checkpoint: str = key(
    'loss',
    one_of('loss', 'last'),
    'checkpoint: the least validation loss, or the last, for small val parts',
  )
  early_stop_evals: int = key(0, at_least(0), 'evaluations without progress; 0: off')
  log_every: int = key(20, at_least(1), 'steps', may_change=True)
  steps_at_once: int = key(0, at_least(0), 'in one dispatch; 0: 1 on a CPU, 10 elsewhere')
  keep_checkpoints: int = key(
    3, at_least(1), 'the newest so many, beside the best', may_change=True
  )


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
  """What the trainings of all generators share; defaults here are the GAN's."""

  width: int = key(64, between(1, 512), 'channels next to the image')
  batch_size: int = key(64, at_least(2), 'images of a step')
  updates: int = key(6000, at_least(1), 'steps of the training')
  ema_decay: float = key(0.995, between(0, 0.99999), "of the parameters' moving average")
  eval_every: int = key(500, at_least(1), 'updates between two looks at its images')
  quality_images: int = key(
    500, at_least(8), 'fakes and reals in the texture Frechet distance (not FID)'
  )
  keep_checkpoints: int = key(
    3, at_least(1), 'the newest so many, beside the best', may_change=True
  )
  dtype: str = key('float32', one_of('float32', 'bfloat16'), 'compute dtype')


@dataclasses.dataclass(frozen=True)
class GanConfig(GeneratorConfig):
  """DCGAN and resize GAN."""

  name: str = key('dcgan', one_of('dcgan', 'resize_gan'), 'dcgan or resize_gan')
  latent: int = key(100, between(1, 4096), 'numbers that an image is made from')
  conditional: bool = key(True, EITHER, 'both networks see the label')
  aux_classifier_weight: float = key(
    0.3, between(0, 100), "weight of the cross-entropy of reals' classes, if conditional; 0: off"
  )
  learning_rate_generator: float = key(2e-4, between(1e-8, 1), 'peak')
  learning_rate_discriminator: float = key(2e-4, between(1e-8, 1), 'peak')
  schedule: str = key(
    'constant', one_of('cosine', 'constant'), 'or cosine: both rates fall to 0 over gan.updates'
  )
  beta1: float = key(0.5, between(0, 0.999), 'of Adam')
  augment: bool = key(True, EITHER, 'differentiable augmentation of what the discriminator sees')


@dataclasses.dataclass(frozen=True)
class VaeConfig(GeneratorConfig):
  """The variational autoencoder."""

  width: int = key(32, between(1, 512), 'channels next to the image, of encoder and decoder')
  latent: int = key(128, between(1, 4096), 'numbers that an image is made from')
  conditional: bool = key(True, EITHER, 'the decoder sees the label')
  beta: float = key(1.0, between(0, 1000), "weight of the latents' divergence")
  learning_rate: float = key(1e-3, between(1e-8, 1), 'falls to 0 by half a cosine')


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(GeneratorConfig):
  """The diffusion model."""

  width: int = key(32, MULTIPLE_OF_8, 'channels at full resolution, a multiple of 8')
  conditional: bool = key(True, EITHER, 'the network sees the label')
  learning_rate: float = key(1e-3, between(1e-8, 1), 'peak; falls to 0 by half a cosine')
  warmup_updates: int = key(200, at_least(0), 'in which the rate rises')
  sample_steps: int = key(25, between(1, 1000), 'of denoising')


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig(GeneratorConfig):
  """Autoencoders whose reconstructions are fakes."""

  batch_size: int = key(32, MULTIPLE_OF_8, 'images of a step')
  width: int = key(
    24, between(1, 512), 'channels next to the image, of each member and the discriminator'
  )
  learning_rate: float = key(1e-3, between(1e-8, 1), 'falls to 0 by half a cosine')


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
  """Fakes that are written as files."""

  checkpoint: str = key('', TEXT, "workdir of a generator's training")
  method: str = key(
    'samples',
    one_of('samples', *METHODS_ON_REALS),
    'or reconstructions, blended, inpainted, copied: of config.data',
  )
  count: int = key(
    500, between(1, 10**7), 'in all, in the class mix of the training images, or edited'
  )
  dicom: bool = key(False, EITHER, 'also CT DICOM files; generators trained on HU only')
  field_of_view_mm: float = key(
    0.0,
    Rule('0 or a number from 50 to 1000', lambda v: v == 0 or 50 <= v <= 1000),
    'of DICOM whose spacing the data do not tell; 0: unknown',
  )


@dataclasses.dataclass(frozen=True)
class DetectionConfig:
  """The detector of single images."""

  families: tuple[str, ...] = key(FAMILIES, some_of(*FAMILIES), 'of fakes to learn from')
  fakes_folder: str = key('', TEXT, "of anybody's fakes, one more family")
  ignore_leaks: bool = key(
    False, EITHER, 'go on though shortcuts tell real from fake', may_change=True
  )
  train_fakes_per_family: int = key(1000, at_least(8), 'of each family, for the network')
  eval_fakes_per_family: int = key(
    300, at_least(8), 'in each other part that needs some, at most one a real'
  )
  width: int = key(48, between(1, 512), 'channels next to the image, at half its resolution')
  batch_size: int = key(
    32,
    Rule('an even number of at least 4', lambda v: v >= 4 and v % 2 == 0),
    'half of them fakes, each beside an original',
  )
  updates: int = key(2000, at_least(1), 'of the network')
  learning_rate: float = key(3e-3, between(1e-8, 1), 'peak')
  weight_decay: float = key(1e-2, between(0, 1), 'of kernels')
  ema_decay: float = key(0.99, between(0, 0.99999), 'of the parameters')
  eval_every: int = key(250, at_least(1), 'updates')
  keep_checkpoints: int = key(3, at_least(1), 'the newest so many, beside the best')
  dtype: str = key('float32', one_of('float32', 'bfloat16'), 'compute dtype')
  false_alarm_rate: float = key(
    0.0,
    Rule('0 or a number from 1e-05 to 0.5', lambda v: v == 0 or 1e-5 <= v <= 0.5),
    '0: 0.01 where a detector is made, elsewhere its own',
  )
  maps: bool = key(False, EITHER, 'detect: also maps of CT in HU, as arrays and as pictures')
  seconds_per_file: float = key(
    20.0,
    between(0.1, 3600),
    'of a file to be decoded: one that takes longer is unreadable',
    may_change=True,
  )
  decoder_mib: int = key(2048, at_least(256), 'memory of each decoder process', may_change=True)
  workers: int = key(0, between(0, 256), 'decoder processes; 0: one for each core', may_change=True)


@dataclasses.dataclass(frozen=True)
class BenchConfig:
  """The detector beside other methods."""

  methods: tuple[str, ...] = key(
    BENCH_METHODS, some_of(*BENCH_METHODS), 'columns of the table', may_change=True
  )
  network_updates: int = key(400, at_least(1), "of each network beside the shipped detector's")
  top_two_seeds: int = key(3, at_least(1), 'trainings of the two best methods', may_change=True)


@dataclasses.dataclass(frozen=True)
class TamperConfig:
  """Changes of whole CT series."""

  action: str = key('inject', one_of(*TAMPERING), 'inject, remove or copy_move')
  method: str = key(
    '',
    one_of('', *dict.fromkeys(m for ways in TAMPERING.values() for m in ways)),
    "how; '': the action's usual one",
  )
  sites_csv: str = key('', TEXT, "table of places; '': automatic, by the seed")
  count: int = key(1, between(1, 100), 'automatic places in a series')
  smallest_mm: float = key(8.0, between(3, 60), 'diameter of lesions at automatic places')
  largest_mm: float = key(20.0, between(3, 60), 'diameter of lesions at automatic places')


@dataclasses.dataclass(frozen=True)
class ForensicsConfig:
  """The detector of edits at native resolution."""

  kinds: tuple[str, ...] = key(EDIT_KINDS, some_of(*EDIT_KINDS), 'of edits to learn from')
  leave_out: tuple[str, ...] = key(
    (), TEXTS, 'files and folders below data.path that are not to be read'
  )
  data_terms: str = key('', TEXT, 'licence of the series, for the model card')
  phantoms_to_learn: int = key(16, at_least(1), 'of phantom.patients; the rest calibrate')
  width: int = key(32, between(4, 512), 'channels at half the resolution')
  pairs: int = key(12, at_least(1), 'edited and untouched crops of a step')
  updates: int = key(4500, at_least(1), 'of the network')
  learning_rate: float = key(2e-3, between(1e-8, 1), 'peak')
  weight_decay: float = key(1e-3, between(0, 1), 'of kernels')
  ema_decay: float = key(0.995, between(0, 0.99999), 'of the parameters')
  eval_every: int = key(500, at_least(1), 'updates between two checkpoints')
  keep_checkpoints: int = key(2, at_least(1), 'the newest so many', may_change=True)
  dtype: str = key('float32', one_of('float32', 'bfloat16'), 'compute dtype')


@dataclasses.dataclass(frozen=True)
class ForensicsBenchConfig:
  """The detector of edits on kinds and patients that it never saw."""

  kind_folds: int = key(4, between(2, 20), 'groups of kinds, each left out in turn')
  seeds: int = key(1, at_least(1), 'trainings for each group')
  updates: int = key(1200, at_least(1), 'of each network')
  slices_of_each: int = key(4, at_least(1), 'of each series and kind')


@dataclasses.dataclass(frozen=True)
class ExplainConfig:
  """Attribution maps."""

  count: int = key(16, at_least(1), 'images, the first of the input', may_change=True)
  stage: str = key('', TEXT, "of Grad-CAM; '': the deepest of use", may_change=True)
  superpixels: int = key(48, between(2, 10000), 'of LIME', may_change=True)
  lime_samples: int = key(512, between(16, 10**6), 'masked copies of an image', may_change=True)


@dataclasses.dataclass(frozen=True)
class OverridesConfig:
  """One classifier of a study; 0: as for the others."""

  epochs: int = key(0, at_least(0), '0: as train.epochs')
  learning_rate: float = key(0.0, between(0, 10), '0: as train.learning_rate')
  folds: int = key(0, at_least(0), '0: as study.folds')


@dataclasses.dataclass(frozen=True)
class PerModelConfig:
  """Each classifier of a study."""

  cnn: OverridesConfig = OverridesConfig()
  resnet18: OverridesConfig = OverridesConfig()
  resnet50: OverridesConfig = OverridesConfig()
  mobilenetv2: OverridesConfig = OverridesConfig()

  def of(self, name: str) -> OverridesConfig:
    """Those of a classifier by its name in `CLASSIFIERS`."""
    return getattr(self, name)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
  """The paper's experiment."""

  classifiers: tuple[str, ...] = key(CLASSIFIERS, some_of(*CLASSIFIERS), 'trained and compared')
  folds: int = key(1, at_least(1), 'how many of split.folds are run')
  seeds: int = key(
    1,
    between(1, 100),
    'how often DCGAN and chosen network are trained: the fall of each, compared',
    may_change=True,
  )
  retrain: bool = key(
    True, EITHER, 'train the best architecture on other deepfakes', may_change=True
  )
  label_shuffles: int = key(1, at_least(0), 'control: fakes with random labels')
  per_model: PerModelConfig = PerModelConfig()


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
  """Speed."""

  models: tuple[str, ...] = key(
    ('dcgan', *CLASSIFIERS), some_of('dcgan', *CLASSIFIERS), 'networks timed'
  )
  modes: tuple[str, ...] = key(('train', 'infer'), some_of('train', 'infer'), 'passes timed')
  steps: int = key(5, at_least(1), 'in a timed block')
  repeats: int = key(3, at_least(1), 'blocks; the median counts')


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
  """How operations are carried out."""

  reference_ops: bool = key(
    False, EITHER, 'plain forms of all operations alone (XLA, Flax, Optax), to compare with'
  )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Processes of one job."""

  coordinator: str | None = key(
    None, unset_or(TEXT), 'host:port; None: found by the cluster', may_change=True
  )
  num_processes: int | None = key(None, unset_or(at_least(1)), 'of the job', may_change=True)
  process_id: int | None = key(None, unset_or(at_least(0)), 'of this one, from 0', may_change=True)


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that a command is told."""

  task: str = key('classifier', one_of(*TASKS), 'what is run')
  seed: int = key(
    0, between(0, 2**31 - 1), 'of initialisation, batch order, augmentation and bootstrap'
  )
  distributed: str = key(
    'auto',
    one_of('auto', 'on', 'off'),
    'on: join the other processes; auto: where a cluster started several',
    may_change=True,
  )
  dry_run: bool = key(
    False, EITHER, 'print counts, parameters, memory, time; then stop', may_change=True
  )
  data: DataConfig = DataConfig()
  phantom: PhantomConfig = PhantomConfig()
  split: SplitConfig = SplitConfig()
  augment: AugmentConfig = AugmentConfig()
  model: ModelConfig = ModelConfig()
  train: TrainConfig = TrainConfig()
  gan: GanConfig = GanConfig()
  vae: VaeConfig = VaeConfig(batch_size=32, updates=4000)
  diffusion: DiffusionConfig = DiffusionConfig(
    batch_size=32, ema_decay=0.998, eval_every=1000, quality_images=200
  )
  autoencoder: AutoencoderConfig = AutoencoderConfig(updates=3000, ema_decay=0.99)
  generate: GenerateConfig = GenerateConfig()
  detection: DetectionConfig = DetectionConfig()
  bench: BenchConfig = BenchConfig()
  tamper: TamperConfig = TamperConfig()
  forensics: ForensicsConfig = ForensicsConfig()
  forensics_bench: ForensicsBenchConfig = ForensicsBenchConfig()
  explain: ExplainConfig = ExplainConfig()
  input: str = key('', TEXT, 'predict, detect, explain, recalibrate: image or folder')
  detector: str = key(
    '', TEXT, "workdir of a detector; '' in detect and recalibrate: the package's own, of CT"
  )
  fake_prevalence: float = key(
    0.5, between(1e-6, 1 - 1e-6), 'detector, detect: share of fakes that p_fake assumes'
  )
  checkpoint: str = key('', TEXT, 'predict, evaluate, explain, export: workdir of the training')
  study: StudyConfig = StudyConfig()
  benchmark: BenchmarkConfig = BenchmarkConfig()
  runtime: RuntimeConfig = RuntimeConfig()
  mesh: MeshConfig = MeshConfig()

  @property
  def generator(self) -> GeneratorConfig:
    """The section of the generator that the task trains; its name is the task's."""
    found = getattr(self, self.task)
    assert isinstance(found, GeneratorConfig), self.task
    return found

  @property
  def generator_name(self) -> str:
    """The task's, but for `gan`, which trains several."""
    return self.gan.name if self.task == 'gan' else self.task
