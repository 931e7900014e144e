"""Train and test ResNet18.

python launch.py --config=configs/resnet18.py --workdir=runs/resnet18

Not yet measured at these sizes; a shorter training is a part of `study`.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'classifier'
  config.model.name = 'resnet18'
  return config
