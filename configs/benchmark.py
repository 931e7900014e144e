"""Time training and inference of the five networks: W/benchmark.json.

python launch.py --config=configs/benchmark.py --workdir=runs/benchmark

The networks and steps are the shipped ones, unconditional and without the discriminator's
augmentation in the GAN, so that PyTorch's plain DCGAN does the same work.

Measured: docs/performance.md, with hardware and dates.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'benchmark'
  config.data.image_size = 64
  config.train.batch_size = 32
  config.gan.conditional = False
  config.gan.augment = False
  return config
