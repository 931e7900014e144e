"""Train a GAN that enlarges by repeating pixels: other traces than DCGAN's.

python launch.py --config=configs/resize_gan.py --workdir=runs/resize_gan
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'gan'
  config.gan.name = 'resize_gan'
  return config
