"""Every key with its meaning and default; a file in `configs/` overrides a few."""

from collections.abc import Iterator
from typing import Any

import ml_collections
from ml_collections import config_dict

from ctfake_jax.config.names import BENCH_METHODS, CLASSIFIERS, FAMILIES


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


def leaves(tree: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Dotted keys and values of a nested dict or ConfigDict."""
  for key, value in tree.items():
    if isinstance(value, dict | ml_collections.ConfigDict):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value
