"""Training and testing one classifier on one split.

The pure step lives in `make_train_step`; `fit` puts it on the mesh, runs the loop and tests the
best checkpoint.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int, Key, Shaped

from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import Config
from ctfake_jax.data import dataset, splits
from ctfake_jax.data.fingerprints import digests, identity
from ctfake_jax.data.loader import open_feed
from ctfake_jax.data.preprocess import Preprocess
from ctfake_jax.data.splits import Split
from ctfake_jax.data.transforms import augment
from ctfake_jax.evaluation import baselines, metrics
from ctfake_jax.inference import classifier as inference
from ctfake_jax.models import initializers, pretrained, registry
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.runtime import streams
from ctfake_jax.train import loop
from ctfake_jax.train.optimizer_step import Elementwise, adam, adamw, apply_gradients, sgd, with_l2
from ctfake_jax.train.state import State, advanced, in_training, initial
from ctfake_jax.types import ImageSet, UserError
from ctfake_jax.workdir import files as workdir_lib

NETWORK = 'classifier'  # its name within a State
AMPLE_SIDE = 224  # of images, for every network


def init_state(model: nn.Module, tx: Elementwise, size: int, seed: int) -> State:
  """Fresh state for grey images of side `size`, on the host; UserError where that is too small."""
  key = streams.key(seed, 'initialisation')

  def variables_at(side: int) -> dict:
    images = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    return initializers.variables(model, key, images, train=False)

  try:
    variables = variables_at(size)
  except (ZeroDivisionError, ValueError) as error:  # perhaps no pixel is left to pool or convolve
    variables_at(max(size, AMPLE_SIDE))  # raises what has nothing to do with the size
    raise UserError(
      f'config.data.image_size = {size}: too small for {type(model).__name__} with as many '
      f'halvings as it has ({error}); raise it, or choose a shallower network'
    ) from error
  variables = {'batch_stats': {}, **variables}
  return initial(
    {NETWORK: variables}, {NETWORK: jax.jit(tx.init)(variables['params'])}, used=NETWORK
  )


def make_optimizer(config: Config, steps_per_epoch: int) -> Elementwise:
  """Optimiser and schedule of `config.train`; kernels alone decay."""
  c = config.train
  total = c.epochs * steps_per_epoch
  warmup = min(round(c.warmup_epochs * steps_per_epoch), total // 2)
  rate: optax.Schedule = optax.constant_schedule(c.learning_rate)
  if c.schedule == 'cosine':
    rate = optax.cosine_decay_schedule(c.learning_rate, max(total - warmup, 1))
  if warmup:
    rate = optax.join_schedules(
      [optax.linear_schedule(0.0, c.learning_rate, warmup), rate], [warmup]
    )

  if c.optimizer == 'adamw':
    return adamw(rate, c.weight_decay)
  return with_l2(c.weight_decay, adam(rate) if c.optimizer == 'adam' else sgd(rate))


def make_train_step(
  model: nn.Module,
  tx: Elementwise,
  config: Config,
  class_weights: Float32[np.ndarray, ' c'],
) -> Callable[[State, dict, Key[Array, '']], tuple[State, dict]]:
  """The pure step (state, {image, label}, key) -> (state, {loss, accuracy})."""
  classes, smoothing = len(class_weights), config.train.label_smoothing

  def loss_fn(params, batch_stats, images, targets, weights, key):
    (logits, _), batch_stats = in_training(model, params, batch_stats, images, key=key)
    losses = optax.softmax_cross_entropy(logits, targets)
    return (weights * losses).sum() / weights.sum(), (logits, batch_stats)

  def train_step(state, batch, key):
    """One update: augment, gradient, optimiser, moving average."""
    chex.assert_rank([batch['image'], batch['label']], [4, 1])
    change, mix, drop = jax.random.split(key, 3)
    images = augment.augment(batch['image'], change, config.augment)
    targets = optax.smooth_labels(jax.nn.one_hot(batch['label'], classes), smoothing)
    if config.augment.mixup:
      images, targets = augment.mixup(images, targets, mix, config.augment.mixup)
    weights, old = jnp.asarray(class_weights)[batch['label']], state.networks[NETWORK]
    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      old['params'], old['batch_stats'], images, targets, weights, drop
    )
    state = updated(state, tx, grads, batch_stats, loss=loss, ema_decay=config.train.ema_decay)
    return state, {'loss': loss, 'accuracy': (logits.argmax(-1) == batch['label']).mean()}

  return train_step


def updated(
  state: State,
  tx: Elementwise,
  grads: dict,
  batch_stats: dict,
  *,
  loss: Float[Array, ''],
  ema_decay: float,
) -> State:
  """The state of `init_state` after a step of its one network."""
  params, opt_state = apply_gradients(
    tx, grads, state.opt_states[NETWORK], state.networks[NETWORK]['params']
  )
  network = {'params': params, 'batch_stats': batch_stats}
  return advanced(
    state, {NETWORK: network}, {NETWORK: opt_state}, used=NETWORK, loss=loss, ema_decay=ema_decay
  )


def run(config: Config, workdir: Path) -> dict:
  """The task `classifier`: data, split, baselines, training, test; of one fold or of every one."""
  images, config = dataset.load(config)
  if config.split.random_labels:
    images = splits.with_random_labels(images, config.split)
  every = config.split.fold == config_lib.EVERY_FOLD
  numbers = range(config.split.folds) if every else [config.split.fold]
  folds = [splits.split(images, config.split, fold) for fold in numbers]
  workdir_lib.record_config(workdir, config, identity(images, Preprocess.from_config(config.data)))
  written = [parts.as_json(images) for parts in folds]
  workdir_lib.write_json(workdir / 'split.json', written if every else written[0])
  if every:
    results = cross_validate(config, images, folds, workdir)
  else:
    results = train_classifier(config, images, folds[0], workdir)
  results['data'] = baselines.describe(images)
  results['baselines'] = baselines.measure(
    images, folds, config.split, config.seed, dataset.root_of_files(config.data)
  )
  workdir_lib.write_results(workdir, results)
  return results


def cross_validate(config: Config, images: ImageSet, folds: list[Split], workdir: Path) -> dict:
  """Trains on the first folds in turn, each in its own folder; pooled over all their test images.

  A fold that has left its results is not run again.

  Returns:
    The network's row of results.json: the report on the pooled predictions, the mean validation
    accuracy, and the cost of all folds together.
  """
  rows, predictions = [], []
  for fold, parts in enumerate(folds):
    seed = streams.seed(config.seed, 'fold', fold)
    own = dataclasses.replace(config, seed=seed, split=dataclasses.replace(config.split, fold=fold))
    folder = workdir / f'fold{fold}'
    train = functools.partial(train_classifier, own, images, parts, folder)
    rows.append(workdir_lib.run_stage_once(folder, own, train))
    with np.load(folder / 'predictions.npz', allow_pickle=False) as file:
      predictions.append(dict(file))
  pooled = {k: np.concatenate([p[k] for p in predictions]) for k in predictions[0]}
  seconds = sum(row['train_seconds'] for row in rows)
  return {
    **report(pooled, images.class_names),
    'folds': len(rows),
    'validation_accuracy': float(np.mean([row['validation_accuracy'] for row in rows])),
    'validation_accuracy_by_fold': [row['validation_accuracy'] for row in rows],
    'accuracy_by_fold': [row['accuracy'] for row in rows],
    'parameters': rows[0]['parameters'],
    'train_seconds': seconds,
    'images_per_s': sum(r['images_per_s'] * r['train_seconds'] for r in rows) / seconds,
    'flops_per_image': rows[0]['flops_per_image'],
    'peak_bytes': max(row['peak_bytes'] for row in rows),
  }


def train_classifier(
  config: Config,
  images: ImageSet,
  parts: Split,
  workdir: Path,
) -> dict:
  """Trains `config.model` on `parts.train`, keeps the best by `parts.val`, tests on `parts.test`.

  Returns:
    The classifier's row of results.json with `validation_accuracy`; also written to the workdir
    with the test predictions beside it.
  """
  workdir_lib.record_config(workdir, config, identity(images, Preprocess.from_config(config.data)))
  train, val = images.take(parts.train), images.take(parts.val)
  trained_on = {'digests': sorted({*digests(train), *digests(val)})}
  workdir_lib.write_json(workdir / inference.TRAINED_ON, trained_on)
  model = build(config, len(images.class_names))
  state, progress = _train(config, model, train, val, workdir)
  tested, predictions = test(model, state.ema, images, parts.test, parts.groups)
  logits, _ = inference.logits_and_features(model, state.ema, val.images)
  result = {
    **tested,
    'validation_accuracy': float((logits.argmax(-1) == val.labels).mean()),
    'parameters': state.parameter_count(),
    'train_images': len(train),
    **loop.costs(progress, config.train.batch_size),
    'best_step': progress.best_step,
  }
  if mesh_lib.is_main_process():
    np.savez(workdir / 'predictions.npz', allow_pickle=False, **predictions)
  workdir_lib.write_results(workdir, result)
  return result


def for_network(config: Config, name: str, seed: int) -> Config:
  """The study's config as that of a single run of the network `name`."""
  own = config_lib.for_stage(config, 'classifier', 'augment', 'model', 'train')
  chosen = config.study.per_model.of(name)
  train = dataclasses.replace(
    config.train,
    epochs=chosen.epochs or config.train.epochs,
    learning_rate=chosen.learning_rate or config.train.learning_rate,
  )
  model = dataclasses.replace(config.model, name=name)
  return dataclasses.replace(own, seed=seed, model=model, train=train)


def build(config: Config, num_classes: int) -> nn.Module:
  """The classifier that `config.model` names."""
  return registry.classifier(config.model, num_classes)


def _train(config: Config, model, train: ImageSet, val: ImageSet, workdir: Path):
  batch_size = config.train.batch_size
  loop.check_batch_size('train.batch_size', batch_size, len(train))
  steps_per_epoch = max(1, len(train) // batch_size)
  tx = make_optimizer(config, steps_per_epoch)
  mesh = mesh_lib.data_mesh()
  weights = class_weights(train, config.train.class_weights)

  def evaluate(state, step):
    # The loss rather than the accuracy: a small validation part has few distinct accuracies.
    logits, _ = inference.logits_and_features(model, state.ema, val.images)
    accuracy = float((logits.argmax(-1) == val.labels).mean())
    loss = float(optax.softmax_cross_entropy_with_integer_labels(logits, val.labels).mean())
    score = step if config.train.select_checkpoint == 'last' else -loss
    return score, {'accuracy': accuracy, 'loss': loss}

  return loop.train(
    name=f'{config.model.name} {workdir.name}',
    workdir=workdir,
    schedule=loop.Schedule.of(
      config.train,
      config.train.epochs * steps_per_epoch,
      config.train.eval_every_epochs * steps_per_epoch,
      config.train.early_stop_evals,
    ),
    keep=config.train.keep_checkpoints,
    seed=config.seed,
    state=_first_state(config, model, tx),
    train_step=make_train_step(model, tx, config, weights),
    feed=open_feed(mesh, train, batch_size, config.seed),
    evaluate=evaluate,
  )


def _first_state(config: Config, model: nn.Module, tx: Elementwise) -> State:
  state = init_state(model, tx, config.data.image_size, config.seed)
  if not config.model.pretrained:
    return state
  variables = _pretrained(config, state.ema)
  return state.replace(networks={NETWORK: variables}, ema=variables)


def test(
  model: nn.Module,
  variables: dict,
  images: ImageSet,
  rows: Int[np.ndarray, ' k'],
  groups: Int[np.ndarray, ' n'],
) -> tuple[dict, dict[str, Shaped[np.ndarray, 'k ...']]]:
  """The report on images[rows], and the arrays behind it."""
  chosen = images.take(rows)
  logits, features = inference.logits_and_features(model, variables, chosen.images)
  predictions = {
    'rows': rows,
    'labels': chosen.labels,
    'groups': groups[rows],
    'logits': logits,
    'features': features,
  }
  return report(predictions, images.class_names), predictions


def report(
  predictions: dict[str, Shaped[np.ndarray, 'n ...']], class_names: tuple[str, ...]
) -> dict:
  """Accuracy with its interval, per class, AUROC and confusion of stored predictions."""
  return metrics.classification_report(
    predictions['labels'],
    inference.softmax(predictions['logits']),
    groups=predictions['groups'],
    class_names=class_names,
  )


def _pretrained(config: Config, like: dict) -> dict:
  try:
    return pretrained.load(Path(config.model.pretrained), config.model.name, like)
  except (ValueError, OSError) as error:
    raise UserError(f'config.model.pretrained = {config.model.pretrained}: {error}') from None


def class_weights(train: ImageSet, balanced: bool) -> Float32[np.ndarray, ' c']:
  """Mean 1 over images; all ones unless `balanced`."""
  counts = np.bincount(train.labels, minlength=len(train.class_names)).astype(np.float32)
  return len(train) / (len(counts) * counts) if balanced else np.ones_like(counts)
