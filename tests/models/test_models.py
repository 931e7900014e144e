"""Published parameter counts, shapes, and the CPU forms of layers against XLA's own."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

from ctfake_jax.config import CLASSIFIERS
from ctfake_jax.models import (
  cnn,
  dcgan,
  densenet,
  initializers,
  layers,
  mobilenetv2,
  registry,
  resnet,
  test_time_augmentation,
  vgg,
)
from ctfake_jax.models.ops import convolution, depthwise, platform, pooling, transposed, winograd

# He 2015 and Sandler 2018 as counted by torchvision at 3 channels and 1000 classes; the CNN's
# count is the sum of its layers: 9*(3*32+32*64+64*128+128*256) + 2*480 + 257*1000.
PARAMETERS = {
  'cnn': 645_896,
  'resnet18': 11_689_512,
  'resnet50': 25_557_032,
  'mobilenetv2': 3_504_872,
  'resnet101': 44_549_160,
  'densenet121': 7_978_856,
  'densenet201': 20_013_928,
  'vgg19': 143_667_240,
}


def count(module, *args, **kwargs):
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, train=False, **kwargs))
  return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(shapes['params']))


@pytest.mark.parametrize(
  'name',
  [n if n in CLASSIFIERS else pytest.param(n, marks=pytest.mark.slow) for n in registry.MODELS],
)
def test_every_model_has_its_published_parameter_count(name):
  network = registry.MODELS[name](num_classes=1000)
  assert count(network, jnp.zeros((1, 64, 64, 3))) == PARAMETERS[name]


def test_dcgan_parameter_counts_at_three_channels_and_64_pixels():
  assert count(dcgan.Generator(64, channels=3), jnp.zeros((1, 100))) == 3_576_704
  assert count(dcgan.Discriminator(64), jnp.zeros((1, 64, 64, 3))) == 2_765_568


@pytest.mark.parametrize('size', [32, 64, 128, 256])
def test_dcgan_shapes_for_every_size(size):
  latent, labels = jnp.zeros((2, 10)), jnp.zeros((2,), jnp.int32)
  generator = dcgan.Generator(size, width=2, num_classes=3)
  discriminator = dcgan.Discriminator(size, width=2, num_classes=3)
  image, _ = jax.eval_shape(
    lambda: generator.init_with_output(jax.random.key(0), latent, labels, train=True)[0]
  )
  assert image.shape == (2, size, size, 1)
  logits, _ = jax.eval_shape(
    lambda: discriminator.init_with_output(
      jax.random.key(0), jnp.zeros(image.shape), labels, train=True
    )[0]
  )
  assert logits.shape == (2,)


@pytest.mark.parametrize('size', [0, 16, 48, 512])
def test_dcgan_refuses_other_sizes(size):
  with pytest.raises(ValueError, match='power of two'):
    dcgan.doublings(size)


def tiny(name):
  return {
    'cnn': cnn.CNN(3, widths=(4, 8)),
    'resnet18': resnet.ResNet(3, stage_sizes=(1, 1, 1, 1), bottleneck=False, width=4),
    'resnet50': resnet.ResNet(3, stage_sizes=(1, 1, 1, 1), bottleneck=True, width=4),
    'mobilenetv2': mobilenetv2.MobileNetV2(3, stages=((1, 4, 1, 1), (2, 4, 2, 2)), last_width=8),
    'resnet101': resnet.ResNet(3, stage_sizes=(1, 2, 1, 1), bottleneck=True, width=4),
    'densenet121': densenet.DenseNet(3, block_sizes=(1, 2), growth=4),
    'densenet201': densenet.DenseNet(3, block_sizes=(2, 1, 1), growth=4),
    'vgg19': vgg.VGG19(3, stages=((1, 4), (2, 8)), hidden=8),
  }[name]


@pytest.mark.parametrize('name', sorted(registry.MODELS))
def test_classifiers_return_logits_and_named_features(name):
  model = tiny(name)
  image = jnp.zeros((2, 32, 32, 1))
  (logits, features), variables = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), image, train=False)
  )
  assert logits.shape == (2, 3)
  assert features['pre_logits'].shape[0] == 2
  assert 'stage1' in features
  assert set(variables) == {'params', 'batch_stats'} - (
    {'batch_stats'} if name == 'vgg19' else set()
  )


@pytest.mark.parametrize('name', sorted(registry.MODELS))
def test_bfloat16_keeps_float32_parameters_and_logits(name):
  model = tiny(name).clone(dtype=jnp.bfloat16)
  logits, variables = jax.eval_shape(
    lambda: (lambda out, v: (out[0], v))(
      *model.init_with_output(jax.random.key(0), jnp.zeros((2, 32, 32, 1)), train=False)
    )
  )
  assert logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


@pytest.mark.slow
@pytest.mark.parametrize('count', [5, 9])
def test_views_are_shifted_averaged_and_share_the_parameters(count):
  plain = tiny('cnn')
  many = test_time_augmentation.TestTimeAugmentation(plain, count)
  image = random(2, 40, 40, 1)
  variables, same = (
    initializers.variables(model, jax.random.key(0), image, train=False) for model in (plain, many)
  )
  chex.assert_trees_all_equal(variables, same)
  logits, features = many.apply(variables, image, train=False)
  each = jnp.split(test_time_augmentation.shifted(image, count), count)
  inside = slice(1, -1)
  for view, direction in zip(each, test_time_augmentation.DIRECTIONS):
    rolled = jnp.roll(image, [-step for step in direction], (1, 2))
    np.testing.assert_array_equal(view[:, inside, inside], rolled[:, inside, inside])
  alone = [plain.apply(variables, view, train=False)[0] for view in each]
  np.testing.assert_allclose(logits, np.mean(alone, 0), atol=1e-5)
  assert features['pre_logits'].shape == (2, 8)


def values_and_gradients(function, *args):
  out, vjp = jax.vjp(function, *args)
  cotangent = jax.random.normal(jax.random.key(9), out.shape)
  return (out, *vjp(cotangent))


def assert_same(ours, reference, *args):
  got = jax.jit(lambda *a: values_and_gradients(ours, *a))(*args)
  want = jax.jit(lambda *a: values_and_gradients(reference, *a))(*args)
  for g, w in zip(got, want, strict=True):
    scale = float(jnp.abs(w).max()) + 1e-6
    np.testing.assert_allclose(g / scale, w / scale, atol=2e-6)


def random(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


@hypothesis.settings(max_examples=6, deadline=None)
@hypothesis.given(
  side=st.integers(4, 11),
  channels=st.sampled_from([1, 3, 16]),
  kernel=st.sampled_from([1, 3, 4]),
  stride=st.integers(1, 2),
  padding=st.integers(0, 2),
)
def test_convolution_equals_xla(side, channels, kernel, stride, padding):
  x, w = random(2, side, side + 1, channels), random(kernel, kernel, channels, 5, seed=1)
  assert_same(
    lambda x, w: convolution.conv(x, w, stride=stride, padding=padding),
    lambda x, w: convolution.lax_conv(x, w, stride=stride, padding=padding),
    x,
    w,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ('side', 'kernel', 'stride', 'padding'),
  [(1, 3, 1, 1), (2, 3, 2, 1), (1, 4, 2, 2), (2, 5, 1, 2), (3, 7, 3, 3)],
)
def test_taps_that_see_only_padding_change_nothing(side, kernel, stride, padding):
  x, w = random(2, side, side + 1, 3), random(kernel, kernel, 3, 5, seed=1)
  assert_same(
    lambda x, w: convolution.conv(x, w, stride=stride, padding=padding),
    lambda x, w: convolution.lax_conv(x, w, stride=stride, padding=padding),
    x,
    w,
  )


@pytest.mark.parametrize(
  ('side', 'stride', 'seen', 'padded'), [(1, 1, 1, 1), (1, 2, 1, 1), (2, 2, 2, 2), (4, 2, 3, 5)]
)
def test_of_a_padded_3x3_kernel_only_seen_taps_are_multiplied(side, stride, seen, padded):
  shape = (1, side, side, 2)
  kernel, pads = convolution.trim_to_input(shape, jnp.ones((3, 3, 2, 4)), stride, padding=1)
  images = winograd.padded(jnp.ones(shape), pads)
  assert (images.shape, kernel.shape) == ((1, padded, padded, 2), (seen, seen, 2, 4))


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='the form of CPUs')
def test_what_comes_before_a_gathered_convolution_is_computed_once():
  """Fused into the gather of patches it would be computed for every tap."""
  x, w = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 4))
  layers_in_a_row = jax.jit(lambda x: convolution.conv(jnp.tanh(x), w, stride=2, padding=1))
  program = layers_in_a_row.lower(x).compile().as_text()
  functions = program.split('\n\n')
  assert sum('tanh(' in text for text in functions) == 1
  assert not any('tanh(' in text and 'gather(' in text for text in functions)


@pytest.mark.parametrize(('stride', 'padding'), [(1, 1), (2, 1), (2, 0)])
def test_depthwise_convolution_equals_xla(stride, padding):
  x, w = random(2, 9, 8, 6), random(3, 3, 1, 6, seed=1)
  assert_same(
    lambda x, w: depthwise.depthwise_conv(x, w, stride=stride, padding=padding),
    lambda x, w: convolution.lax_conv(x, w, stride=stride, padding=padding, groups=6),
    x,
    w,
  )


def test_depthwise_sums_run_in_float32():
  """In bfloat16, 256 + 1 is 256: taps of one over a 256 and eight ones tell."""
  x = jnp.ones((1, 3, 3, 1), jnp.bfloat16).at[0, 0, 0, 0].set(256)
  w = jnp.ones((3, 3, 1, 1), jnp.bfloat16)
  assert depthwise.depthwise_conv(x, w, stride=1, padding=0).item() == 264
  x_wide = jnp.ones((1, 3, 257, 1), jnp.bfloat16)
  y, pull_back = jax.vjp(lambda w: depthwise.depthwise_conv(x_wide, w, stride=1, padding=1), w)
  assert pull_back(jnp.ones_like(y))[0][1, 1, 0, 0] == 772  # 771 rounds to the even neighbour


@pytest.mark.slow
@pytest.mark.parametrize(
  ('side', 'kernel', 'stride', 'padding'),
  [(1, 4, 1, 0), (4, 4, 2, 1), (9, 4, 2, 1), (8, 3, 2, 1), (5, 3, 2, 1), (3, 5, 3, 0)],
)
def test_transposed_convolution_is_the_gradient_of_the_convolution(side, kernel, stride, padding):
  x, w = random(2, side, side, 3), random(kernel, kernel, 3, 5, seed=1)
  out_side = (side - 1) * stride + kernel - 2 * padding

  def reference(x, w):
    def forward(image):
      return convolution.lax_conv(image, w.transpose(0, 1, 3, 2), stride=stride, padding=padding)

    return jax.linear_transpose(forward, jnp.zeros((2, out_side, out_side, 5)))(x)[0]

  assert_same(
    lambda x, w: transposed.conv_transpose(x, w, stride=stride, padding=padding), reference, x, w
  )


@pytest.mark.parametrize(('window', 'stride', 'padding'), [(2, 2, 0), (3, 2, 1)])
def test_max_pool_equals_xla(window, stride, padding):
  pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  x = random(2, 9, 8, 3)
  assert_same(
    lambda x: pooling.max_pool(x, window=window, stride=stride, padding=padding),
    lambda x: lax.reduce_window(
      x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads
    ),
    x,
  )


def test_batch_norm_normalises_and_tracks_statistics():
  norm = layers.BatchNorm(momentum=0.0)
  x = 3 + 2 * random(8, 6, 6, 4)
  variables = norm.init(jax.random.key(0), x, train=True)
  out, updates = norm.apply(variables, x, train=True, mutable=['batch_stats'])
  np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-3)
  np.testing.assert_allclose(updates['batch_stats']['mean'], x.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(updates['batch_stats']['var'], x.var((0, 1, 2)), rtol=1e-4)
  settled = norm.apply({'params': variables['params'], **updates}, x, train=False)
  np.testing.assert_allclose(settled, out, atol=1e-4)


@pytest.mark.parametrize('shape', [(8, 6, 5, 4), (16, 1, 1, 3), (1, 7, 7, 2)])
def test_gradients_of_batch_norm_are_those_of_its_formula(shape):
  x, scale, bias = 2 * random(*shape) - 1, 1 + random(shape[-1]), random(shape[-1])

  def formula(x, scale, bias):
    mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
    standard = (x - mean) / jnp.sqrt(var + 1e-5)
    return standard * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)

  def module(x, scale, bias):
    params = {'params': {'scale': scale, 'bias': bias}}
    return layers.BatchNorm().apply(params, x, train=True, mutable=['batch_stats'])[0]

  assert_same(module, formula, x, scale, bias)


def test_batch_norm_lets_no_gradient_through_what_it_takes_away():
  x, weights = 3 + random(4, 5, 5, 3), random(4, 5, 5, 3, seed=1)

  def loss(x):
    out, _ = layers.BatchNorm().init_with_output(jax.random.key(0), x, train=True)
    return (weights * out).sum()

  gradient = jax.grad(loss)(x)
  np.testing.assert_allclose(gradient.sum((0, 1, 2)), 0, atol=1e-4)
  along = gradient * (x - x.mean((0, 1, 2), keepdims=True))
  np.testing.assert_allclose(along.sum((0, 1, 2)), 0, atol=1e-3)


def test_adaptive_average_is_the_mean_of_even_windows():
  x = jnp.arange(6.0).reshape(1, 1, 6, 1) * jnp.ones((1, 3, 1, 1))
  np.testing.assert_allclose(vgg.adaptive_average(x, 3)[0, 0, :, 0], [0.5, 2.5, 4.5])
  # Fewer pixels than windows: torch's windows [floor(i n / s), ceil((i + 1) n / s)) overlap.
  short = jnp.array([1.0, 3.0]).reshape(1, 1, 2, 1)
  np.testing.assert_allclose(vgg.adaptive_average(short, 3)[0, 0, :, 0], [1, 2, 3])


def test_programs_hold_other_platforms_forms_only_where_asked():
  x, kernel = jnp.zeros((1, 8, 8, 16)), jnp.zeros((3, 3, 16, 16))

  def choices():
    return str(jax.make_jaxpr(lambda: convolution.conv(x, kernel, padding=1))()).count('cond[')

  before = choices()
  with platform.every_platform(True):
    assert choices() == 1
  assert before == choices() == 0
