"""The networks by name: one dict of classifiers, one of generators of adversarial pairs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ctfake_jax.config.keys import (
  Config,
  DetectionConfig,
  DiffusionConfig,
  ForensicsConfig,
  GanConfig,
  ModelConfig,
  VaeConfig,
)
from ctfake_jax.models import (
  autoencoder,
  cnn,
  dcgan,
  densenet,
  diffusion,
  mobilenetv2,
  pretrained,
  resize_gan,
  resnet,
  test_time_augmentation,
  vae,
  vgg,
)
from ctfake_jax.models import forensic_net as forensic_net_lib
from ctfake_jax.models import patch_net as patch_net_lib

MODELS: dict[str, Callable[..., nn.Module]] = {
  'cnn': cnn.CNN,
  'resnet18': resnet.ResNet18,
  'resnet50': resnet.ResNet50,
  'mobilenetv2': mobilenetv2.MobileNetV2,
  'resnet101': resnet.ResNet101,
  'densenet121': densenet.DenseNet121,
  'densenet201': densenet.DenseNet201,
  'vgg19': vgg.VGG19,
}

GENERATORS: dict[str, Callable[..., nn.Module]] = {
  'dcgan': dcgan.Generator,
  'resize_gan': resize_gan.Generator,
}

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def classifier(config: ModelConfig, num_classes: int) -> nn.Module:
  """The classifier of `config.model`; its section `cnn` concerns the custom CNN only."""
  options = dataclasses.asdict(config.cnn) if config.name == 'cnn' else {}
  network = MODELS[config.name](num_classes=num_classes, dtype=DTYPES[config.dtype], **options)
  if config.pretrained:
    network = pretrained.ImagenetInput(network)
  return (
    test_time_augmentation.TestTimeAugmentation(network, config.views)
    if config.views > 1
    else network
  )


def generator(config: Config, num_classes: int) -> tuple[nn.Module, int]:
  """The generator that the config's task trains, and the length of its latents.

  An autoencoder has none: it maps images.
  """
  size = config.data.image_size
  if config.task == 'autoencoder':
    return autoencoder.Autoencoder(config.autoencoder.width, DTYPES[config.autoencoder.dtype]), 0
  if config.task == 'diffusion':
    unet = diffusion.UNet(**_options(config.diffusion, num_classes))
    return diffusion.Sampler(unet, config.diffusion.sample_steps, size), size * size
  if config.task == 'vae':
    decoder = resize_gan.Generator(size=size, **_options(config.vae, num_classes))
    return decoder, config.vae.latent
  make = GENERATORS[config.gan.name]
  return make(size=size, **_options(config.gan, num_classes)), config.gan.latent


def discriminator(config: Config, num_classes: int) -> nn.Module:
  """DCGAN's, for every generator of `config.gan`."""
  return dcgan.Discriminator(size=config.data.image_size, **_options(config.gan, num_classes))


def encoder(config: Config) -> nn.Module:
  """The encoder that `config.vae` trains beside its generator."""
  c = config.vae
  return vae.Encoder(config.data.image_size, c.latent, c.width, DTYPES[c.dtype])


def patch_net(config: DetectionConfig) -> nn.Module:
  """The real-against-fake network of `config.detection`."""
  return patch_net_lib.PatchNet(width=config.width, dtype=DTYPES[config.dtype])


def forensic_net(config: ForensicsConfig) -> nn.Module:
  """The edited-against-untouched network of `config.forensics`."""
  return forensic_net_lib.ForensicNet(width=config.width, dtype=DTYPES[config.dtype])


def _options(section: GanConfig | VaeConfig | DiffusionConfig, num_classes: int) -> dict[str, Any]:
  classes = num_classes if section.conditional else 0
  return {'width': section.width, 'num_classes': classes, 'dtype': DTYPES[section.dtype]}
