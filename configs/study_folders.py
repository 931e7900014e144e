"""The whole experiment on your own class folders, at 64 px with the full-width DCGAN.

python launch.py --config=configs/study_folders.py --workdir=runs/mine --config.data.path=FOLDER

Real slices without patient ids are grouped by near-duplicates. Many hours on two cores.

Measured: one fold on SARS-COV-2 CT, 1 h 53 min on 2 CPU cores (AMD EPYC with AVX-512), 2026-11-28:
CNN 92.8 % (75.1-99.2), docs/results.md. All five folds: not yet measured.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'study'
  config.data.source = 'folders'
  config.data.image_size = 64
  config.data.aspect = 'stretch'
  config.split.folds = 5
  config.split.val_fraction = 0.1
  config.augment.shift = 0.03
  config.augment.scale = 0.05
  config.augment.rotate_degrees = 4.0
  config.augment.intensity = 0.05
  config.augment.integer_shift_fraction = 0.5
  config.gan.width = 64
  config.gan.batch_size = 16
  config.gan.updates = 6000
  config.gan.ema_decay = 0.999
  config.gan.aux_classifier_weight = (
    0.0  # at 0.3 labels are clearer, but the images lie farther from reals
  )
  config.gan.eval_every = 500
  config.study.per_model.mobilenetv2.learning_rate = 5e-3
  config.study.per_model.resnet50.folds = 1
  return config
