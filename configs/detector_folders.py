"""A calibrated detector from your own originals, at 64 px, with trainings long enough for real CT.

python launch.py --config=configs/detector_folders.py --workdir=runs/mine --config.data.path=FOLDER

The files may be pictures or, with --config.data.source=dicom, DICOM. About four hours on two
cores; --config.detection.updates=12000 --config.detection.eval_every=2000 takes half of it.

Measured: 2 h 9 min on 2 CPU cores (AMD EPYC with AVX-512) with 12,000 updates on SARS-COV-2 CT,
2026-11-28: 0.9 % (0.1-3.3) of unseen originals called fake, docs/results.md.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'detector'
  config.data.source = 'folders'
  config.data.image_size = 64
  config.gan.width = 32
  config.gan.batch_size = 32
  config.gan.updates = 2000
  config.gan.eval_every = 1000
  config.gan.augment = True
  config.gan.schedule = 'cosine'
  config.gan.aux_classifier_weight = 0.0
  config.vae.width = 32
  config.vae.updates = 2000
  config.vae.eval_every = 1000
  config.diffusion.width = 16
  config.diffusion.batch_size = 16
  config.diffusion.updates = 1500
  config.diffusion.eval_every = 750
  config.autoencoder.width = 16
  config.autoencoder.updates = 1500
  config.autoencoder.eval_every = 500
  config.detection.updates = 48000
  config.detection.eval_every = 6000
  return config
