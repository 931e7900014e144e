"""Train a variational autoencoder: smooth samples, and reconstructions of real slices.

python launch.py --config=configs/vae.py --workdir=runs/vae
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'vae'
  return config
