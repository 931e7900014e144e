"""Published weights: a file with torchvision's names onto our ResNets and MobileNetV2.

They were trained on colours less ImageNet's mean, in its deviations. `ImagenetInput` brings grey
images to that scale before the stem, which keeps its three channels: zero padding then stands for
the mean colour, as it did in training. (A stem summed over colours, fed with [-1, 1], would see
another scale, and black for grey beyond the border.)

Tensors come as safetensors or npz, convolutions as [o, i, kh, kw], dense layers as [o, i]. Every
tensor must find its place and every place its tensor; `num_batches_tracked` counters are
ignored, the dense head is taken only where its number of classes agrees.
"""

import re
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Float32
from safetensors.numpy import load_file

from ctfake_jax.models.layers import Features

# Of red, green and blue in [0, 1]; torchvision's weights state them as their transforms.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = ('fc', 'classifier_1')
LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


class ImagenetInput(nn.Module):
  """A network of colour images that is given grey ones; parameters are the network's own.

  Attributes:
    network: of images of three channels to logits and named features.
  """

  network: nn.Module

  def setup(self):
    nn.share_scope(self, self.network)

  def __call__(
    self, x: Float[Array, 'b h w 1'], *, train: bool
  ) -> tuple[Float32[Array, 'b classes'], Features]:
    return self.network(as_imagenet(x), train=train)


def as_imagenet(x: Float[Array, 'b h w 1']) -> Float[Array, 'b h w 3']:
  """Grey in [-1, 1] as colours, less ImageNet's mean colour, in its deviations."""
  mean, deviation = (jnp.array(v, x.dtype).reshape(1, 1, 1, 3) for v in (MEAN, DEVIATION))
  return ((x + 1) / 2 - mean) / deviation


def load(path: Path, name: str, variables: dict) -> dict:
  """`variables` {params, batch_stats} with the file's values; same shapes and names.

  Raises:
    ValueError: unknown file type or network, a tensor too many, missing or of another shape.
  """
  if name == 'cnn':
    raise ValueError('the custom CNN has no published weights')
  tensors = _read(path)
  filled = {
    collection: traverse_util.unflatten_dict(
      {
        key: _take(tensors, key, leaf)
        for key, leaf in traverse_util.flatten_dict(variables[collection]).items()
      }
    )
    for collection in ('params', 'batch_stats')
  }
  if tensors:
    raise ValueError(f'{path.name}: {name} has no place for {", ".join(sorted(tensors)[:5])}')
  return filled


def torch_name(key: tuple[str, ...]) -> str:
  """('layer1_0', 'downsample_1', 'mean') -> 'layer1.0.downsample.1.running_mean'."""
  modules = [re.sub(r'_(?=\d)', '.', module) for module in key[:-1]]
  return '.'.join([*modules, LEAVES[key[-1]]])


def _read(path: Path) -> dict[str, np.ndarray]:
  if path.suffix == '.safetensors':
    tensors = load_file(path)
  elif path.suffix == '.npz':
    with np.load(path, allow_pickle=False) as file:
      tensors = dict(file)
  else:
    raise ValueError('must be .safetensors or .npz')
  return {k: v for k, v in tensors.items() if not k.endswith('num_batches_tracked')}


def _take(tensors: dict[str, np.ndarray], key: tuple[str, ...], like) -> np.ndarray:
  name = torch_name(key)
  if name not in tensors:
    raise ValueError(f'the file lacks {name}')
  value = tensors.pop(name).astype(np.float32)
  if key[-1] == 'kernel':
    value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
  if key[0] in HEADS and value.shape != like.shape:
    return np.asarray(like)
  if value.shape != like.shape:
    raise ValueError(f'{name} has shape {value.shape}, not {like.shape}')
  return value
