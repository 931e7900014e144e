"""Train autoencoders of several kinds, which rebuild real slices and leave their traces in them.

python launch.py --config=configs/autoencoder.py --workdir=runs/autoencoder

Not yet measured by itself; as a part of `detector_folders` it is in docs/results.md.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'autoencoder'
  return config
