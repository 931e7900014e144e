"""The whole experiment: four classifiers, deepfakes, and the fall in accuracy.

python launch.py --config=configs/study.py --workdir=runs/study

The default is the embedded phantom at 32 px: 300 simulated patients of 4 slices.

Measured: 4.9 minutes on 2 CPU cores (AMD EPYC), 2026-11-28: the CNN reached 97.1 % (89.5-99.7) on
60 unseen patients and 86.0 to 87.6 % on 500 deepfakes of three trainings; none shows a fall.
docs/results.md has the rest.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'study'
  config.phantom.patients = 300
  config.gan.width = 32
  config.gan.updates = 1500
  config.gan.learning_rate_generator = 6e-4
  config.gan.learning_rate_discriminator = 6e-4
  config.gan.batch_size = 16
  config.gan.augment = False
  config.gan.eval_every = 500
  config.augment.integer_shift_fraction = 0.5
  config.train.epochs = 14
  config.train.eval_every_epochs = 2
  config.study.seeds = 3
  config.study.per_model.cnn.learning_rate = 2e-3
  config.study.per_model.resnet18.epochs = 10
  config.study.per_model.resnet50.epochs = 7
  config.study.per_model.resnet50.learning_rate = 2e-3
  config.study.per_model.mobilenetv2.epochs = 12
  config.study.per_model.mobilenetv2.learning_rate = 5e-3
  return config
