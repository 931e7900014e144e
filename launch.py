"""The one door: python launch.py --config=configs/TASK.py --workdir=DIR [--config.key=value]."""

from ctfake_jax.command_line.main import start

if __name__ == '__main__':
  start()
