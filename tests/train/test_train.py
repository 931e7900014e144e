"""The pure steps and the loop: learning, resuming, sharding, tracing once, stopping on NaN."""

import functools
import json

import chex
import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_images

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.data import dataset, splits
from ctfake_jax.inference import classifier as inference
from ctfake_jax.models import initializers, mobilenetv2, registry, resnet
from ctfake_jax.models.ops import platform
from ctfake_jax.runtime import mesh, preemption
from ctfake_jax.train import classifier, gan, loop
from ctfake_jax.train.optimizer_step import adam
from ctfake_jax.types import PreemptedError, UserError
from ctfake_jax.workdir import files as workdir_files


def fit(config, images, workdir):
  own = resolve(config)
  return classifier.train_classifier(own, images, splits.split(images, own.split, 0), workdir)


def leaves(tree):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def rows(workdir):
  text = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [{k: v for k, v in json.loads(row).items() if k != 'seconds'} for row in text]


def make_step(config, classes=2):
  model = classifier.build(resolve(config), classes)
  tx = classifier.make_optimizer(resolve(config), steps_per_epoch=4)
  state = classifier.init_state(model, tx, config.data.image_size, seed=0)
  return classifier.make_train_step(model, tx, resolve(config), np.ones(classes, np.float32)), state


def batch(count=8, seed=0):
  images = make_images(count, seed=seed)
  return {'image': jnp.asarray(images.images), 'label': jnp.asarray(images.labels)}


def test_a_classifier_learns_and_is_loaded_again(tiny_config, images, tmp_path):
  tiny_config.train.epochs = 25
  tiny_config.model.cnn.widths = (8,)
  tiny_config.train.ema_decay = 0.5
  tiny_config.train.learning_rate = 1e-2
  before = inference.forward._cache_size()
  result = fit(tiny_config, images, tmp_path)
  assert result['accuracy'] == 1.0
  assert result['n'] == result['groups'] * 2
  trained = inference.load(tmp_path)
  parts = splits.split(images, resolve(tiny_config).split, 0)
  probabilities = trained.predict(images.images[parts.test])
  with np.load(tmp_path / 'predictions.npz', allow_pickle=False) as saved:
    np.testing.assert_allclose(probabilities, inference.softmax(saved['logits']), atol=1e-6)
  assert trained.class_names == images.class_names
  compiled = inference.forward._cache_size() - before
  assert compiled == 1, 'one program for validation, test and later use'


@pytest.mark.slow
def test_every_fold_is_tested_once_and_pooled(tiny_config, tmp_path, monkeypatch):
  tiny_config.phantom.patients = 24
  tiny_config.split.folds, tiny_config.split.fold, tiny_config.train.epochs = 3, -1, 1
  config_lib.validate(resolve(tiny_config))
  result = classifier.run(resolve(tiny_config), tmp_path)
  everything, _ = dataset.load(resolve(tiny_config))
  assert (result['n'], result['folds']) == (len(everything), 3)
  assert result['images_per_s'] > 0
  assert result['flops_per_image'] > 0
  assert result['peak_bytes'] > 0
  by_fold = [workdir_files.read_json(tmp_path / f'fold{k}' / 'results.json') for k in range(3)]
  right = sum(row['accuracy'] * row['n'] for row in by_fold)
  assert result['accuracy'] == pytest.approx(right / result['n'])
  monkeypatch.setattr(
    classifier, 'train_classifier', lambda *_: pytest.fail('a finished fold was run again')
  )
  assert classifier.run(resolve(tiny_config), tmp_path) == result


@pytest.mark.parametrize('count', [1, 63, 64, 65])
def test_padding_of_a_last_batch_does_not_matter(tiny_config, count):
  model = classifier.build(resolve(tiny_config), 2)
  images = make_images(65).images
  variables = initializers.variables(model, jax.random.key(0), images[:1], train=False)
  logits, features = inference.logits_and_features(model, variables, images[:count])
  everything, _ = inference.logits_and_features(model, variables, images)
  assert len(logits) == len(features) == count
  np.testing.assert_allclose(logits, everything[:count], atol=1e-6)


def test_a_resumed_run_equals_a_straight_one(tiny_config, images, tmp_path, monkeypatch):
  tiny_config.train.keep_checkpoints = 9
  fit(tiny_config, images, tmp_path / 'straight')
  save = loop.Checkpoints.save

  def save_then_die(self, step, *args):
    save(self, step, *args)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(loop.Checkpoints, 'save', save_then_die)
    with pytest.raises(KeyboardInterrupt):
      fit(tiny_config, images, tmp_path / 'resumed')
  fit(tiny_config, images, tmp_path / 'resumed')
  a, b = (inference.load(tmp_path / name).variables for name in ('straight', 'resumed'))
  chex.assert_trees_all_equal(a, b)
  assert rows(tmp_path / 'straight') == rows(tmp_path / 'resumed')


@pytest.mark.slow
def test_several_steps_in_a_dispatch_are_the_same_steps(tiny_config, images, tmp_path):
  tiny_config.train.epochs, tiny_config.train.log_every = 4, 5
  one = fit(tiny_config, images, tmp_path / 'one')
  tiny_config.train.steps_at_once = 2
  two = fit(tiny_config, images, tmp_path / 'two')
  assert [row['step'] for row in rows(tmp_path / 'one')] == [
    row['step'] for row in rows(tmp_path / 'two')
  ]
  for a, b in zip(rows(tmp_path / 'one'), rows(tmp_path / 'two')):
    assert b == pytest.approx(a, rel=1e-3)
  assert two['flops_per_image'] == pytest.approx(one['flops_per_image'], rel=0.05)


@hypothesis.given(
  at_once=st.integers(1, 7), eval_every=st.integers(1, 9), log_every=st.integers(1, 9)
)
def test_dispatches_end_where_something_happens(at_once, eval_every, log_every):
  schedule = loop.Schedule(40, eval_every, log_every, at_once=at_once)
  done, ends = 0, []
  while done < schedule.total:
    done += schedule.dispatch(done)
    ends.append(done)
  assert ends[-1] == schedule.total
  assert set(range(eval_every, 41, eval_every)) <= set(ends)
  assert set(range(log_every, 41, log_every)) <= set(ends)


@pytest.mark.slow
def test_more_epochs_continue_a_finished_run(tiny_config, images, tmp_path):
  tiny_config.train.schedule = 'constant'
  fit(tiny_config, images, tmp_path)
  finished = rows(tmp_path)
  tiny_config.train.epochs += 1
  fit(tiny_config, images, tmp_path)
  assert rows(tmp_path)[: len(finished)] == finished
  assert rows(tmp_path)[-1]['step'] > finished[-1]['step']


@pytest.mark.slow
def test_fewer_epochs_than_are_done_are_refused(tiny_config, images, tmp_path):
  tiny_config.train.schedule = 'constant'
  fit(tiny_config, images, tmp_path)
  tiny_config.train.epochs -= 1
  with pytest.raises(UserError, match=r'steps are done, \d+ are asked for'):
    fit(tiny_config, images, tmp_path)


@pytest.mark.slow
def test_a_run_stopped_between_evaluations_goes_on_as_if_it_had_not(
  tiny_config, images, tmp_path, monkeypatch
):
  tiny_config.train.log_every = 2
  fit(tiny_config, images, tmp_path / 'straight')
  with monkeypatch.context() as patch:
    patch.setattr(preemption, 'requested', lambda step: step == 3)
    with pytest.raises(PreemptedError, match='after step 3'):
      fit(tiny_config, images, tmp_path / 'resumed')
  assert (tmp_path / 'resumed/checkpoints/3').is_dir()
  fit(tiny_config, images, tmp_path / 'resumed')
  a, b = (inference.load(tmp_path / name).variables for name in ('straight', 'resumed'))
  chex.assert_trees_all_equal(a, b)
  assert rows(tmp_path / 'straight') == rows(tmp_path / 'resumed')


def test_a_damaged_checkpoint_is_refused_by_name(tiny_config, images, tmp_path):
  fit(tiny_config, images, tmp_path)
  flip_a_bit(tmp_path / 'checkpoints' / str(best_step(tmp_path)))
  with pytest.raises(UserError, match='is altered'):
    inference.load(tmp_path)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
  tiny_config, images, tmp_path, capsys
):
  tiny_config.train.keep_checkpoints = 9
  fit(tiny_config, images, tmp_path)
  intact, finished = inference.load(tmp_path).variables, rows(tmp_path)
  newest = max((tmp_path / 'checkpoints').iterdir(), key=lambda path: int(path.name))
  flip_a_bit(newest)
  fit(tiny_config, images, tmp_path)
  assert f'{newest.name}: state' in capsys.readouterr().err
  chex.assert_trees_all_equal(intact, inference.load(tmp_path).variables)
  assert rows(tmp_path) == finished


def flip_a_bit(checkpoint):
  """In the largest file, as a failing disk would."""
  path = max(
    (p for p in checkpoint.rglob('*') if p.is_file()), key=lambda path: path.stat().st_size
  )
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def best_step(workdir):
  return json.loads((workdir / 'results.json').read_text())['best_step']


def test_one_trace_serves_all_steps(tiny_config):
  step, state = make_step(tiny_config)
  traced = jax.jit(chex.assert_max_traces(step, n=1))
  for i in range(3):
    state, _ = traced(state, batch(seed=i), jax.random.key(i))
  assert int(state.step) == 3


def test_steps_do_not_change_their_input_and_gradients_reach_every_parameter(tiny_config):
  tiny_config.train.weight_decay = 0.0
  step, state = make_step(tiny_config)
  before = leaves(state.networks)
  after, _ = jax.jit(step)(state, batch(), jax.random.key(0))
  chex.assert_trees_all_equal(before, leaves(state.networks))
  for old, new in zip(before, leaves(after.networks)):
    assert np.abs(old - new).max() > 0


@pytest.mark.slow
def test_training_starts_from_given_weights(tiny_config, images, tmp_path, monkeypatch):
  tiny_config.model.pretrained = 'weights.npz'
  given = classifier.init_state(
    classifier.build(resolve(tiny_config), 2),
    classifier.make_optimizer(resolve(tiny_config), 3),
    16,
    seed=7,
  ).ema
  tiny_config.train.learning_rate = 1e-8
  monkeypatch.setattr(classifier.pretrained, 'load', lambda *_: jax.device_get(given))
  fit(tiny_config, images, tmp_path)
  trained = inference.load(tmp_path).variables
  chex.assert_trees_all_close(trained['params'], jax.device_get(given['params']), atol=1e-5)


def test_images_too_small_for_a_network_are_named(tiny_config, images, tmp_path):
  tiny_config.model.cnn.widths = (4,) * 6
  with pytest.raises(UserError, match=r'image_size = 16: too small for CNN'):
    fit(tiny_config, images, tmp_path)


def test_a_fault_of_a_network_is_not_laid_on_the_size_of_images():
  class Faulty(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      raise ValueError('something else')

  with pytest.raises(ValueError, match=r'^something else'):
    classifier.init_state(Faulty(), adam(0.1), 16, seed=0)


def test_missing_weights_are_named(tiny_config, images, tmp_path):
  tiny_config.model.name, tiny_config.model.pretrained = 'cnn', 'nowhere.npz'
  with pytest.raises(UserError, match=r'pretrained = nowhere\.npz'):
    fit(tiny_config, images, tmp_path)


def test_class_weights_balance_the_loss(tiny_config):
  images = make_images(12)
  images.labels[:9] = 0
  images.labels[9:] = 1
  np.testing.assert_allclose(classifier.class_weights(images, True), [12 / 18, 2.0])
  np.testing.assert_allclose(classifier.class_weights(images, False), [1, 1])


@pytest.mark.slow
def test_a_run_under_a_falling_schedule_cannot_be_extended(tiny_config, images, tmp_path):
  fit(tiny_config, images, tmp_path)
  tiny_config.train.epochs += 1
  with pytest.raises(UserError, match=r'other values of train.epochs.*constant schedule'):
    fit(tiny_config, images, tmp_path)


@pytest.mark.parametrize('score', [np.nan, -np.inf])
def test_a_score_that_is_not_finite_stops_the_run(
  tiny_config, images, tmp_path, monkeypatch, score
):
  check, scores = loop._check_score, iter([0.0, score])
  monkeypatch.setattr(loop, '_check_score', lambda _, *rest: check(next(scores), *rest))
  with pytest.raises(loop.DivergedError, match=r'score after step \d+ is .*checkpoint is [1-9]'):
    fit(tiny_config, images, tmp_path)


def test_a_nan_stops_the_run_and_names_the_step(tiny_config, images, tmp_path, monkeypatch):
  monkeypatch.setattr(classifier, 'class_weights', lambda *_: np.full(2, np.nan, np.float32))
  with pytest.raises(loop.DivergedError, match='not finite at step 0'):
    fit(tiny_config, images, tmp_path)


def test_early_stop_ends_a_run(tiny_config, images, tmp_path):
  tiny_config.train.learning_rate = 1e-8
  tiny_config.train.epochs = 30
  tiny_config.train.ema_decay = 0.0
  tiny_config.train.early_stop_evals = 2
  fit(tiny_config, images, tmp_path)
  steps = [row['step'] for row in rows(tmp_path) if 'val/accuracy' in row]
  assert len(steps) < 30


@pytest.mark.slow
@pytest.mark.parametrize('choose', ['loss', 'last'])
def test_the_least_loss_or_the_last_checkpoint_is_kept(choose, tiny_config, images, tmp_path):
  # So high a rate that the first epoch is the best by far.
  tiny_config.train.learning_rate, tiny_config.train.schedule = 3.0, 'constant'
  tiny_config.train.epochs, tiny_config.train.select_checkpoint = 4, choose
  result = fit(tiny_config, images, tmp_path)
  losses = {row['step']: row['val/loss'] for row in rows(tmp_path) if 'val/loss' in row}
  expected = max(losses) if choose == 'last' else min(losses, key=losses.get)
  assert result['best_step'] == expected


def test_other_values_in_the_same_workdir_are_refused(tiny_config, images, tmp_path):
  fit(tiny_config, images, tmp_path)
  tiny_config.train.label_smoothing = 0.3
  with pytest.raises(UserError, match=r'train\.label_smoothing'):
    fit(tiny_config, images, tmp_path)


def test_a_batch_larger_than_the_data_is_refused(tiny_config, images, tmp_path):
  tiny_config.train.batch_size = 64
  with pytest.raises(UserError, match=r'train\.batch_size = 64: only'):
    fit(tiny_config, images, tmp_path)


@pytest.fixture
def gan_config(tiny_config):
  tiny_config.task = 'gan'
  tiny_config.data.image_size = 32
  tiny_config.gan.width = 2
  tiny_config.gan.latent = 4
  tiny_config.gan.batch_size = 8
  tiny_config.gan.updates = 4
  tiny_config.gan.eval_every = 2
  tiny_config.gan.quality_images = 16
  return tiny_config


def gan_step(config):
  networks = gan.build(resolve(config), num_classes=2)
  state = gan.init_state(networks, 32, seed=0)
  data = make_images(8, size=32)
  return (
    jax.jit(gan.make_train_step(networks, resolve(config))),
    state,
    {'image': jnp.asarray(data.images), 'label': jnp.asarray(data.labels)},
  )


@pytest.mark.slow
def test_a_gan_step_moves_both_networks_and_is_deterministic(gan_config):
  step, state, data = gan_step(gan_config)
  first, metrics = step(state, data, jax.random.key(0))
  second, _ = step(state, data, jax.random.key(0))
  chex.assert_trees_all_equal(first, second)
  chex.assert_tree_all_finite(metrics)
  for part in ('generator', 'discriminator'):
    moved = [
      np.abs(a - b).max() > 0
      for a, b in zip(leaves(state.networks[part]), leaves(first.networks[part]))
    ]
    assert all(moved), part


@pytest.mark.slow
def test_the_label_loss_is_the_cross_entropy_of_the_reals_classes(gan_config):
  losses = []
  for gan_config.gan.aux_classifier_weight in (0.0, 3.0):
    step, state, data = gan_step(gan_config)
    losses.append(float(step(state, data, jax.random.key(0))[1]['loss_discriminator']))
  # Embeddings start near zero, so that both classes are as likely.
  assert losses[1] - losses[0] == pytest.approx(3 * np.log(2), rel=0.05)


# With every kind of block, but few of them.
SHALLOW = {
  'resnet18': functools.partial(resnet.ResNet, stage_sizes=(1, 1), bottleneck=False, width=16),
  'mobilenetv2': functools.partial(
    mobilenetv2.MobileNetV2, stages=((1, 16, 1, 1), (6, 24, 2, 2)), last_width=64
  ),
}


def classifier_step(config):
  step, state = make_step(config)
  return jax.jit(step), state, batch()


@pytest.mark.slow
@pytest.mark.parametrize('make', ['cnn', 'resnet18', 'mobilenetv2', gan_step])
def test_a_step_in_the_forms_of_a_platform_is_that_of_plain_flax_and_optax(
  make, gan_config, monkeypatch
):
  for name, few in SHALLOW.items():
    monkeypatch.setitem(registry.MODELS, name, few)
  if make != gan_step:
    gan_config.model.name, gan_config.train.optimizer = make, 'sgd'
    gan_config.train.warmup_epochs = 0
    make = classifier_step
  step, state, data = make(gan_config)
  own, metrics = step(state, data, jax.random.key(0))
  with platform.reference_ops():
    step, _, _ = make(gan_config)
    assert 'custom_vjp_call' not in str(jax.make_jaxpr(step)(state, data, jax.random.key(0)))
    plain, expected = step(state, data, jax.random.key(0))
  chex.assert_trees_all_close(metrics, expected, rtol=1e-3, atol=1e-5)

  def distance(a, b):
    return optax.tree.norm(jax.tree.map(jnp.subtract, a.networks, b.networks))

  assert distance(own, plain) <= 0.01 * distance(own, state)


@pytest.mark.parametrize('make', [classifier_step, gan_step])
def test_eight_devices_equal_one(make, gan_config):
  assert jax.device_count() == 8
  step, state, data = make(gan_config)
  devices, key = mesh.data_mesh(), jax.random.key(0)
  spread = mesh.shard_batch(devices, {k: np.asarray(v) for k, v in data.items()})
  together = jax.device_put(state, mesh.replicated(devices))
  alone = state
  for _ in range(2):
    alone, metrics_alone = step(alone, data, key)
    together, metrics_together = step(together, spread, key)
  assert len(spread['image'].sharding.device_set) == 8
  chex.assert_trees_all_close(leaves(alone), leaves(together), rtol=1e-4, atol=1e-4)
  chex.assert_trees_all_close(metrics_alone, metrics_together, rtol=1e-4)
