"""Every family of generators: its networks, its training, and samples that obey their labels."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_images

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.fakes import families as fakes
from ctfake_jax.inference import generator as sampling
from ctfake_jax.models import autoencoder, initializers, resize_gan
from ctfake_jax.models import diffusion as diffusion_model
from ctfake_jax.models import vae as vae_model
from ctfake_jax.tasks import export
from ctfake_jax.train import generator, vae
from ctfake_jax.types import UnreadableImageError, UserError
from ctfake_jax.workdir import files as workdir_files

SAMPLING = ('dcgan', 'resize_gan', 'vae', 'diffusion')
SIZE = 32  # the least whose yardstick is kept


@pytest.fixture
def configured(tiny_config):
  """The tiny config of a family by its name."""

  def configured(name):
    task = 'gan' if name in ('dcgan', 'resize_gan') else name
    tiny_config.task, tiny_config.data.image_size = task, SIZE
    section = tiny_config[task]
    section.batch_size, section.updates, section.eval_every = 8, 4, 2
    section.quality_images = 16
    if task == 'diffusion':
      section.width, section.sample_steps, section.warmup_updates = 8, 3, 0
    elif task == 'autoencoder':
      section.width = 2
    else:
      section.width, section.latent = 2, 4
    if task == 'gan':
      section.name = name
    return tiny_config

  return configured


def step_of(config):
  family = generator.FAMILIES[config.task]
  networks, size = family.build(resolve(config), 2), config.data.image_size
  images = make_images(8, size=size)
  batch = {'image': jnp.asarray(images.images), 'label': jnp.asarray(images.labels)}
  state = family.init_state(networks, size, seed=0)
  return networks, jax.jit(family.make_train_step(networks, resolve(config))), state, batch


@pytest.mark.slow
@pytest.mark.parametrize('name', [*SAMPLING[1:], 'autoencoder'])
def test_steps_move_every_parameter_the_same_way_each_time(name, configured):
  _, step, state, batch = step_of(configured(name))
  once, metrics = step(state, batch, jax.random.key(0))
  chex.assert_trees_all_equal(once, step(state, batch, jax.random.key(0))[0])
  now, steps = once, 4 if name == 'diffusion' else 2  # behind layers that start at zero: later
  for i in range(1, steps):
    now, metrics = step(now, batch, jax.random.key(i))
  chex.assert_tree_all_finite(metrics)
  assert int(now.step) == steps
  for part in state.parameter_counts():
    before, after = (s.networks[part]['params'] for s in (state, now))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(moved)), moved


@pytest.mark.slow
@pytest.mark.parametrize('name', SAMPLING)
def test_a_generator_trains_is_kept_and_samples_what_is_asked(
  name, configured, tmp_path, monkeypatch
):
  config, broken = configured(name), (UnreadableImageError('a.png', 'cut off'),)
  images = dataclasses.replace(make_images(64, size=SIZE), unreadable=broken)
  monkeypatch.setattr(generator.dataset, 'load', lambda own: (images, own))
  result = generator.run(resolve(config), tmp_path)
  assert result['data']['unreadable'] == [{'path': 'a.png', 'reason': 'cut off'}]
  assert result['best_step'] in (2, 4)
  assert (tmp_path / 'samples' / 'step_000004.png').exists()
  trained = sampling.load(tmp_path)
  assert trained.family == name
  labels = np.array([0, 1, 1], np.int32)
  sampled = trained.sampler.sample(labels, seed=3)
  assert sampled.shape == (3, *images.images.shape[1:])
  assert np.abs(sampled).max() <= 1
  np.testing.assert_array_equal(sampled, trained.sampler.sample(labels, seed=3))
  with pytest.raises(ValueError, match='the generator knows 0 to 1'):
    trained.sampler.sample(labels + 1, seed=3)
  other = trained.sampler.sample(1 - labels, seed=3)
  assert np.abs(sampled - other).max() > 0, 'the label changes nothing'


@pytest.mark.slow
def test_autoencoders_learn_to_rebuild_and_have_no_samples(configured, tmp_path, monkeypatch):
  config, images = configured('autoencoder'), make_images(64, size=SIZE)
  config.autoencoder.updates, config.autoencoder.eval_every = 40, 40
  config.autoencoder.width, config.autoencoder.learning_rate = 4, 5e-3
  monkeypatch.setattr(generator.dataset, 'load', lambda own: (images, own))
  generator.run(resolve(config), tmp_path)
  rows = workdir_files.read_rows(tmp_path / 'metrics.jsonl')
  errors = [row['absolute_error'] for row in rows if 'absolute_error' in row]
  assert errors[-1] < 0.5 * errors[0]
  trained = sampling.load(tmp_path)
  assert trained.family == 'autoencoder'
  with pytest.raises(UserError, match='have no samples'):
    fakes.sample(trained, np.zeros(2, np.int32), seed=0)
  with pytest.raises(UserError, match='rebuilds images'):
    export._generator(tmp_path)
  made = fakes.from_reals('reconstructions', trained, images, 10, seed=1)
  again = fakes.from_reals('reconstructions', trained, images, 10, seed=1)
  np.testing.assert_array_equal(made.images, again.images)
  assert np.abs(made.images).max() <= 1
  assert np.abs(made.images - images.images[made.sources]).mean() < 0.5 * errors[0]


@pytest.mark.slow
def test_each_image_of_a_batch_is_rebuilt_by_the_next_member():
  network = autoencoder.Autoencoder(width=2)
  batch, key = random_images(8), jax.random.key(0)
  variables = initializers.variables(network, key, batch, key)
  apply = jax.jit(lambda images: network.apply(variables, images, key))
  rebuilt = apply(batch)
  members = len(autoencoder.MEMBERS)
  assert members == 8, 'config.KEYS asks autoencoder.batch_size for a multiple of 8'
  for i in range(members):
    changed = apply(batch.at[i::members].set(0.0))
    others = np.delete(np.arange(8), np.s_[i::members])
    np.testing.assert_array_equal(changed[others], rebuilt[others])
    assert np.abs(changed[i] - rebuilt[i]).max() > 0


def random_images(count):
  return jax.random.uniform(jax.random.key(5), (count, 16, 16, 1), minval=-1)


@pytest.mark.slow
def test_a_gan_learns_what_its_labels_mean(configured):
  config = configured('dcgan')
  config.gan.width, config.gan.augment, config.gan.ema_decay = 4, False, 0.9
  config.gan.learning_rate_generator = config.gan.learning_rate_discriminator = 5e-3
  networks, step, state, batch = step_of(config)
  brightness = jnp.where(batch['label'] == 1, 0.5, -0.5)[:, None, None, None]
  batch['image'] = 0.1 * batch['image'] + brightness
  for i in range(100):
    state, metrics = step(state, batch, jax.random.key(i))
  assert metrics['accuracy_label'] == 1
  sampler = sampling.make_sampler(networks.generator, state.ema, networks.latent, np.ones(2, int))
  means = sampler.sample(np.arange(64, dtype=np.int32) % 2, seed=0).mean((1, 2, 3))
  assert means[1::2].min() > means[::2].max(), means


@pytest.mark.slow
def test_sampling_statistics_fit_the_parameters(configured):
  networks, _, state, _ = step_of(configured('dcgan'))
  sampler = sampling.make_sampler(networks.generator, state.ema, networks.latent, np.ones(2, int))
  latent = jax.random.normal(jax.random.key(1), (256, networks.latent))
  labels = jnp.arange(256) % 2
  apply = functools.partial(networks.generator.apply, mutable=['batch_stats'])
  (_, fresh), _ = apply(sampler.variables, latent, labels, train=True)
  _, kept = networks.generator.apply(sampler.variables, latent, labels, train=False)
  np.testing.assert_allclose(fresh['stage1'].mean(), kept['stage1'].mean(), rtol=0.1)


def test_diversity_of_copies_is_zero():
  copies = np.tile(make_images(1).images, (8, 1, 1, 1))
  assert generator.diversity(copies, np.zeros(8, int), 1, seed=0) == 0
  assert generator.diversity(make_images(8).images, np.zeros(8, int), 1, seed=0) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('size', [32, 64])
def test_the_encoder_and_both_enlarging_generators_fit_the_image(size):
  images, labels = jnp.zeros((2, size, size, 1)), jnp.zeros(2, jnp.int32)
  encoder = vae_model.Encoder(size, latent=5, width=2)
  (mean, log_var), _ = encoder.init_with_output(jax.random.key(0), images, train=True)
  assert mean.shape == log_var.shape == (2, 5)
  decoder = resize_gan.Generator(size, width=2, num_classes=3)
  (out, _), _ = decoder.init_with_output(jax.random.key(0), mean, labels, train=True)
  assert out.shape == images.shape


def test_enlarging_repeats_pixels():
  x = jnp.arange(4.0).reshape(1, 2, 2, 1)
  expected = np.kron([[0, 1], [2, 3]], np.ones((2, 2)))
  np.testing.assert_array_equal(resize_gan.doubled(x)[0, :, :, 0], expected)


def test_divergence_of_the_prior_is_zero_and_of_a_shift_half_its_square():
  zero = jnp.zeros((1, 3))
  assert float(vae.divergence(zero, zero)[0]) == 0
  assert float(vae.divergence(zero + 2.0, zero)[0]) == pytest.approx(0.5 * 3 * 4)
  # N(0, e) against N(0, 1): (e - 1 - 1) / 2 a dimension.
  assert float(vae.divergence(zero, zero + 1.0)[0]) == pytest.approx(1.5 * (np.e - 2), rel=1e-6)


def test_signal_and_noise_keep_the_variance():
  signal, noise = diffusion_model.signal_and_noise(jnp.linspace(0, 1, 11))
  np.testing.assert_allclose(signal**2 + noise**2, 1, atol=1e-6)
  assert signal[0] > 0.999
  assert noise[-1] > 0.999
  assert noise[0] > 0
  assert (jnp.diff(signal) < 0).all()


class _Oracle(diffusion_model.UNet):
  """A noise predictor that knows the one image there is."""

  image: jax.Array | None = None

  def __call__(self, x, time, labels):
    signal, noise = (s[:, None, None, None] for s in diffusion_model.signal_and_noise(time))
    return (x - signal * self.image) / noise


def test_the_image_implied_by_the_true_noise_is_the_image():
  image = jax.random.uniform(jax.random.key(0), (1, 8, 8, 1), minval=-1.0)
  x, time = jax.random.normal(jax.random.key(1), (1, 8, 8, 1)), jnp.array([0.5])
  found, noise = diffusion_model.implied(_Oracle(image=image), {}, x, time, None)
  np.testing.assert_allclose(found, image, atol=1e-4)
  signal, scale = diffusion_model.signal_and_noise(jnp.array(0.5))
  np.testing.assert_allclose(signal * found + scale * noise, x, atol=1e-5)


@pytest.mark.parametrize(
  ('task', 'size'), [('vae', 48), ('gan', 48), ('diffusion', 30), ('autoencoder', 34)]
)
def test_a_side_that_the_family_cannot_make_is_refused(task, size):
  config = config_lib.defaults()
  config.task, config.data.image_size = task, size
  with pytest.raises(UserError, match=f'image_size = {size}: the generator needs'):
    config_lib.validate(resolve(config))
