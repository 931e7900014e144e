"""Test a trained classifier on a labelled data set.

python launch.py --config=configs/evaluate.py --config.checkpoint=runs/cnn \
  --config.data.source=folders --config.data.path=FOLDER
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'evaluate'
  return config
