"""Where in an image the answer of a detector or a classifier comes from: Grad-CAM and LIME.

python launch.py --config=configs/explain.py --config.detector=runs/detector --config.input=PATH
python launch.py --config=configs/explain.py --config.checkpoint=runs/cnn --config.input=PATH

Not yet measured by itself; a detector's reasons are in docs/results.md.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'explain'
  return config
