"""Fit a detector's threshold to another site's own real images; warns where they differ.

python launch.py --config=configs/recalibrate.py --config.detector=runs/detector \
  --config.input=REALS --workdir=runs/detector_here

Measured: 120 pictures of another collection, 2026-11-28, docs/results.md.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'recalibrate'
  return config
