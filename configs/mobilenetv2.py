"""Train and test MobileNetV2.

python launch.py --config=configs/mobilenetv2.py --workdir=runs/mobilenetv2

Not yet measured at these sizes; a shorter training is a part of `study`.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'classifier'
  config.model.name = 'mobilenetv2'
  config.train.learning_rate = 5e-3
  return config
