"""Every method of telling fakes in one table, each on generators that it never saw.

python launch.py --config=configs/detector_bench.py --workdir=runs/bench

The default is the phantom at 32 px with small generators; the four largest networks are left out:
--config.bench.methods names what is run. On your own images: --config.data.source=folders
--config.data.path=FOLDER.

Not yet measured: the whole table on the code of today.
"""

from ctfake_jax import config as config_lib

LARGE = ('resnet101', 'densenet121', 'densenet201', 'vgg19')


def get_config():
  config = config_lib.get_config('detector')
  config.task = 'detector_bench'
  config.bench.methods = tuple(m for m in config_lib.BENCH_METHODS if m not in LARGE)
  config.phantom.patients = 500
  config.phantom.slices_per_patient = 2
  config.detection.train_fakes_per_family = config.detection.eval_fakes_per_family = 150
  config.detection.updates = 600
  config.detection.eval_every = 300
  return config
