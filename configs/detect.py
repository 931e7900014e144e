"""Judge images by a detector: real, fake or unsure.

python launch.py --config=configs/detect.py --config.detector=runs/detector --config.input=PATH
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'detect'
  return config
