"""A detector of edits in CT at native resolution: --config.data.path=FOLDER of untouched series.

python launch.py --config=configs/forensics.py --workdir=runs/forensics --config.data.path=FOLDER

Without a folder it learns from the phantom alone.

Measured: in two parts on 2 CPU cores (AMD EPYC), 2026-11-28, with 28 patients and 116 phantoms:
training 38 minutes, beside other work; reading, scanning, calibrating and trying 10 minutes.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'forensics'
  config.data.source = 'dicom'
  config.phantom.patients = 116
  config.phantom.slices_per_patient = 16
  config.phantom.size = 512
  return config
