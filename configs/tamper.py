"""Put lesions into whole CT series, take them out, or copy parts: DICOM in, DICOM and masks out.

python launch.py --config=configs/tamper.py --workdir=runs/tampered
python launch.py --config=configs/tamper.py --workdir=runs/tampered --config.data.source=dicom \
  --config.data.path=FOLDER --config.tamper.action=remove

Measured: 19 seconds for 64 slices of the phantom with two lesions, 16 for 133 slices of a real
series (one removed), start included, on 2 CPU cores (AMD EPYC), 2026-11-28.
"""

from ctfake_jax.config import files


def get_config():
  config = files.get_config('phantom_series')
  config.task = 'tamper'
  return config
