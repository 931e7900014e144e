"""Train autoencoders of several kinds, which rebuild real slices and leave their traces in them.

python launch.py --config=configs/autoencoder.py --workdir=runs/autoencoder
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'autoencoder'
  return config
