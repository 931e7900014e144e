"""Judge images by a detector: real, fake or unsure.

python launch.py --config=configs/detect.py --config.detector=runs/detector --config.input=PATH

Without a detector, CT in HU is judged by the one that comes with the package.

Measured: 75 pictures a second on 2 CPU cores (AMD EPYC with AVX-512), 2026-11-28, docs/results.md;
10 slices of CT a second, docs/forensics.md.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'detect'
  return config
