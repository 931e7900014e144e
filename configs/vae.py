"""Train a variational autoencoder: smooth samples, and reconstructions of real slices.

python launch.py --config=configs/vae.py --workdir=runs/vae

Not yet measured by itself; as a part of `detector_folders` it is in docs/results.md.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'vae'
  return config
