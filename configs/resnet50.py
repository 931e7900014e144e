"""Train and test ResNet50.

python launch.py --config=configs/resnet50.py --workdir=runs/resnet50

Not yet measured at these sizes; a shorter training is a part of `study`.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'classifier'
  config.model.name = 'resnet50'
  return config
