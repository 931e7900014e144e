"""Train a small denoising diffusion model with a fast sampler.

python launch.py --config=configs/diffusion.py --workdir=runs/diffusion

Not yet measured by itself; as a part of `detector_folders` it is in docs/results.md.
"""

from ctfake_jax import config as config_lib


def get_config():
  config = config_lib.defaults()
  config.task = 'diffusion'
  return config
