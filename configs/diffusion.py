"""Train a small denoising diffusion model with a fast sampler.

python launch.py --config=configs/diffusion.py --workdir=runs/diffusion
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'diffusion'
  return config
