"""The networks by name: one dict of classifiers, one of (generator, discriminator) pairs."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ctfake_jax.models import cnn, dcgan, mobilenetv2, resnet, views

MODELS: dict[str, Callable[..., nn.Module]] = {
  'cnn': cnn.CNN,
  'resnet18': resnet.ResNet18,
  'resnet50': resnet.ResNet50,
  'mobilenetv2': mobilenetv2.MobileNetV2,
}

GENERATORS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
  'dcgan': (dcgan.Generator, dcgan.Discriminator),
}

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def classifier(config: Any, num_classes: int) -> nn.Module:
  """The classifier of `config.model`; its section `cnn` concerns the custom CNN only."""
  options = dict(config.cnn.items()) if config.name == 'cnn' else {}
  network = MODELS[config.name](num_classes=num_classes, dtype=DTYPES[config.dtype], **options)
  return views.ManyViews(network, config.views) if config.views > 1 else network


def gan(
  name: str, size: int, width: int, num_classes: int, dtype: str
) -> tuple[nn.Module, nn.Module]:
  """Generator and discriminator of the family `name` for square grey images."""
  generator, discriminator = GENERATORS[name]
  options = {'size': size, 'width': width, 'num_classes': num_classes, 'dtype': DTYPES[dtype]}
  return generator(**options), discriminator(**options)
