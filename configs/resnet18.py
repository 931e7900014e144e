"""Train and test ResNet18.

python launch.py --config=configs/resnet18.py --workdir=runs/resnet18
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'classifier'
  config.model.name = 'resnet18'
  return config
