"""Train a GAN that enlarges by repeating pixels: other traces than DCGAN's.

python launch.py --config=configs/resize_gan.py --workdir=runs/resize_gan

Not yet measured by itself; as a part of `detector_folders` it is in docs/results.md.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'gan'
  config.gan.name = 'resize_gan'
  return config
