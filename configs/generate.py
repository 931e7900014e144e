"""Make deepfakes with a trained DCGAN, as PNG and DICOM.

python launch.py --config=configs/generate.py --config.generate.checkpoint=runs/dcgan

Not yet measured.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'generate'
  return config
