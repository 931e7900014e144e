"""Train and test the custom CNN.

python launch.py --config=configs/cnn.py --workdir=runs/cnn
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'classifier'
  config.model.name = 'cnn'
  return config
