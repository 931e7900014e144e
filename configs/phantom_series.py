"""Whole chest CT series of simulated patients at 512 x 512, as DICOM.

python launch.py --config=configs/phantom_series.py --workdir=runs/phantom

Measured: one patient in 12 seconds, start included, on 2 CPU cores (AMD EPYC), 2026-11-28: 64
slices, 33 MB.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'phantom_series'
  config.phantom.patients = 1
  config.phantom.slices_per_patient = 64
  config.phantom.size = 512
  return config
