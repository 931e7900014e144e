"""Make a calibrated detector of fakes from originals alone.

python launch.py --config=configs/detector.py --workdir=runs/detector

It learns from the embedded phantom, in a quarter of an hour on a core, and is not for real CT;
`detector_folders` is for your own.

Not yet measured on the code of today.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'detector'
  config.phantom.patients = 1000
  config.phantom.slices_per_patient = 1
  config.gan.width = 16
  config.gan.batch_size = 32
  config.gan.updates = 800
  config.gan.eval_every = 400
  config.gan.augment = False
  config.vae.width = 16
  config.vae.updates = 600
  config.vae.eval_every = 300
  config.diffusion.width = 16
  config.diffusion.batch_size = 16
  config.diffusion.updates = 600
  config.diffusion.eval_every = 300
  config.autoencoder.width = 16
  config.autoencoder.updates = 600
  config.autoencoder.eval_every = 300
  config.detection.updates = 8000
  config.detection.eval_every = 1000
  return config
