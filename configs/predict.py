"""Class probabilities for one image or a folder, as CSV.

python launch.py --config=configs/predict.py --config.checkpoint=runs/cnn --config.input=PATH

Not yet measured.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'predict'
  return config
