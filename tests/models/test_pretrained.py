"""Files with torchvision's names onto our networks: golden names, every tensor accounted for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from ctfake_jax.models import initializers, pretrained, registry, resnet

# Parameters and running statistics in torchvision's state dicts, counters left out.
TENSORS = {'resnet18': 102, 'resnet50': 267, 'mobilenetv2': 262}
NAMES = {
  'resnet18': ('conv1.weight', 'layer2.0.downsample.1.running_var', 'fc.bias'),
  'resnet50': ('layer4.2.conv3.weight', 'layer1.0.downsample.0.weight', 'bn1.running_mean'),
  'mobilenetv2': ('features.0.1.bias', 'features.1.conv.1.weight', 'features.17.conv.2.weight',
                  'features.18.0.weight', 'classifier.1.weight'),
}  # fmt: skip


@functools.cache
def shapes(name):
  model = registry.MODELS[name](num_classes=1000)
  return jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
  )


def tiny():
  return resnet.ResNet(5, stage_sizes=(1, 1, 1, 1), bottleneck=True, width=2)


def variables(channels=1, seed=0):
  image = jnp.zeros((1, 32, 32, channels))
  init = jax.jit(functools.partial(tiny().init, train=False))
  return jax.device_get(init(jax.random.key(seed), image))


def torch_tensors(tree):
  """What torchvision would have saved for these variables."""
  tensors = {}
  for collection in ('params', 'batch_stats'):
    for key, value in traverse_util.flatten_dict(tree[collection]).items():
      if key[-1] == 'kernel':
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
      tensors[pretrained.torch_name(key)] = np.ascontiguousarray(value)
  return tensors


@pytest.mark.parametrize('name', sorted(TENSORS))
def test_names_are_torchvisions(name):
  tree = shapes(name)
  keys = [k for c in ('params', 'batch_stats') for k in traverse_util.flatten_dict(tree[c])]
  names = {pretrained.torch_name(key) for key in keys}
  assert len(names) == TENSORS[name]
  assert set(NAMES[name]) <= names


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_saved_weights_come_back(suffix, tmp_path):
  path, saved = tmp_path / f'w{suffix}', variables(seed=1)
  tensors = {**torch_tensors(saved), 'bn1.num_batches_tracked': np.array(3)}
  np.savez(path, **tensors) if suffix == '.npz' else save_file(tensors, path)
  loaded = pretrained.load(path, 'resnet50', variables(seed=2))
  jax.tree.map(np.testing.assert_array_equal, loaded, saved)


def test_grey_images_come_on_imagenets_scale():
  grey = np.array([-1.0, 0.0, 1.0], np.float32).reshape(3, 1, 1, 1)
  # The ends of torchvision's usual transform: (0 - mean) / std, (1 - mean) / std.
  expected = [[-2.117904, -2.035714, -1.804444], [0, 0, 0], [2.248908, 2.428571, 2.64]]
  found = np.asarray(pretrained.as_imagenet(jnp.asarray(grey)))[:, 0, 0]
  np.testing.assert_allclose(found[[0, 2]], np.array(expected)[[0, 2]], atol=1e-5)


@pytest.mark.slow
def test_loaded_weights_see_colours_borders_included(tmp_path):
  path, saved = tmp_path / 'w.npz', variables(channels=3, seed=1)
  np.savez(path, **torch_tensors(saved))
  model = pretrained.ImagenetInput(tiny())
  grey = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 1)).astype(np.float32)
  init = jax.jit(functools.partial(model.init, train=False))
  fresh = jax.device_get(init(jax.random.key(2), grey))
  loaded = pretrained.load(path, 'resnet50', fresh)
  ours = jax.jit(functools.partial(model.apply, train=False))(loaded, grey)[0]
  colours = ((grey + 1) / 2 - np.array(pretrained.MEAN)) / np.array(pretrained.DEVIATION)
  theirs = jax.jit(functools.partial(tiny().apply, train=False))(saved, colours.astype('f4'))[0]
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def drawn(name, shape):
  """A tensor that follows from its name, so that any library can make it anew."""
  rng = np.random.default_rng(list(name.encode()))
  if name.endswith('running_var'):
    return rng.uniform(0.5, 2, shape).astype(np.float32)
  if len(shape) == 4:
    return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
  if name.endswith('weight') and len(shape) == 1:
    return rng.uniform(0.5, 1, shape).astype(np.float32)
  return (0.1 * rng.standard_normal(shape)).astype(np.float32)


@pytest.mark.slow
def test_logits_are_torchvisions(tmp_path):
  """ResNet18 of torchvision 0.29.1 on two grey images as colours through its usual transform."""
  grey = np.random.default_rng(0).uniform(-1, 1, (2, 40, 40)).astype(np.float32)[..., None]
  model = pretrained.ImagenetInput(registry.MODELS['resnet18'](num_classes=3))
  fresh = initializers.variables(model, jax.random.key(0), grey, train=False)
  shapes = {name: value.shape for name, value in torch_tensors(fresh).items()}
  np.savez(tmp_path / 'w.npz', **{name: drawn(name, shape) for name, shape in shapes.items()})
  loaded = pretrained.load(tmp_path / 'w.npz', 'resnet18', fresh)
  logits = jax.jit(functools.partial(model.apply, train=False))(loaded, grey)[0]
  expected = [
    [-1.098097562789917, 2.8938777446746826, 2.9268980026245117],
    [-0.282016783952713, 2.34932017326355, 3.4776718616485596],
  ]
  np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.slow
def test_a_head_of_other_classes_is_left_as_it_was(tmp_path):
  path, fresh = tmp_path / 'w.npz', variables(seed=2)
  tensors = torch_tensors(variables(seed=1))
  tensors |= {'fc.weight': np.zeros((1000, 64), 'f4'), 'fc.bias': np.zeros(1000, 'f4')}
  np.savez(path, **tensors)
  loaded = pretrained.load(path, 'resnet50', fresh)
  np.testing.assert_array_equal(loaded['params']['fc']['kernel'], fresh['params']['fc']['kernel'])


@pytest.mark.slow
@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda t: t.pop('bn1.weight'), 'lacks bn1.weight'),
    (lambda t: t.update({'extra': np.zeros(1)}), 'no place for extra'),
    (lambda t: t.update({'bn1.bias': np.zeros(3)}), r'bn1.bias has shape \(3,\)'),
  ],
)
def test_every_tensor_must_fit(change, words, tmp_path):
  tensors = torch_tensors(variables())
  change(tensors)
  np.savez(tmp_path / 'w.npz', **tensors)
  with pytest.raises(ValueError, match=words):
    pretrained.load(tmp_path / 'w.npz', 'resnet50', variables())


def test_objects_are_not_unpickled(tmp_path):
  np.savez(tmp_path / 'w.npz', a=np.array([{'x': 1}], object))
  with pytest.raises(ValueError, match='allow_pickle'):
    pretrained.load(tmp_path / 'w.npz', 'resnet50', variables())
