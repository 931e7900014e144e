"""Judge images by a detector: real, fake or unsure.

python launch.py --config=configs/detect.py --config.detector=runs/detector --config.input=PATH

Measured: 75 pictures a second on 2 CPU cores (AMD EPYC with AVX-512), 2026-11-28, docs/results.md.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'detect'
  return config
