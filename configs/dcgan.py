"""Train a DCGAN to make fake chest-CT slices.

python launch.py --config=configs/dcgan.py --workdir=runs/dcgan

Not yet measured at these sizes; smaller ones are parts of `study` and `study_folders`.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'gan'
  config.gan.width = 64
  return config
