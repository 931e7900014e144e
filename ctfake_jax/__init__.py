"""Make and detect deepfake chest-CT images with JAX and Flax.

What stands in `__all__` is for use from Python; `docs/tour.ipynb` shows it at work.
"""

import importlib
from typing import Any

__version__ = '0.2.0'
__all__ = [
  'Detector',
  'ImageSet',
  'UserError',
  'Verdict',
  'detect',
  'get_config',
  'load_classifier',
  'load_detector',
  'load_generator',
  'load_images',
  'run',
]

# Where each is at home. Imported when asked for: a decoder process must not import JAX.
_HOMES = {
  'Detector': 'detector.bundle:Detector',
  'ImageSet': 'types:ImageSet',
  'UserError': 'types:UserError',
  'Verdict': 'tasks.detect:Verdict',
  'detect': 'tasks.detect:detect',
  'get_config': 'config.files:get_config',
  'load_classifier': 'inference.classifier:load',
  'load_detector': 'detector.bundle:load',
  'load_generator': 'inference.generator:load',
  'load_images': 'tasks.registry:load_images',
  'run': 'tasks.registry:run',
}


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, _, attribute = _HOMES[name].partition(':')
  return getattr(importlib.import_module(f'{__name__}.{module}'), attribute)


def __dir__() -> list[str]:
  return sorted(__all__)
