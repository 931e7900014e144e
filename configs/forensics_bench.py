"""The network of edits in CT on kinds of edits and patients left out, beside statistics by hand.

python launch.py --config=configs/forensics_bench.py --workdir=runs/forensics_bench \
  --config.data.path=FOLDER

Not yet measured.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'forensics_bench'
  config.data.source = 'dicom'
  config.phantom.patients = 24
  config.phantom.slices_per_patient = 12
  config.phantom.size = 512
  config.forensics.phantoms_to_learn = 12
  return config
