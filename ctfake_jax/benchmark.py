"""How fast the trainers' own steps and the forward passes are here: `benchmark.json`.

One row for each network and mode, on random images. Times are medians over `benchmark.repeats`
blocks of `benchmark.steps` steps; a step that is not waited for costs nothing until its block ends.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ctfake_jax import cost as cost_lib
from ctfake_jax import inference, sampling
from ctfake_jax import mesh as mesh_lib
from ctfake_jax import workdir as workdir_lib
from ctfake_jax.data.feed import DeviceFeed
from ctfake_jax.models import zoo
from ctfake_jax.train import classifier, gan, loop
from ctfake_jax.types import ImageSet

CLASSES = 4
WARM_UP_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Row:
  """One measurement.

  Attributes:
    parameters: trainable scalars, of generator and discriminator together.
    flops_per_image: of the compiled step, as `cost.Cost` counts.
    images_per_s: of real images in training, of images out in inference.
    step_ms: the same as time of a step.
    compile_s: from the call to the first result, tracing included.
    peak_bytes: of the step, as `cost.Cost` counts.
  """

  model: str
  mode: str
  image_size: int
  batch_size: int
  parameters: int
  flops_per_image: float
  images_per_s: float
  step_ms: float
  compile_s: float
  device: str
  dtype: str
  peak_bytes: int


@dataclasses.dataclass(frozen=True)
class _Work:
  """A jitted function and its calls; `first` are the arguments of the first one."""

  step: Any
  first: tuple
  calls: Callable[[Any], Iterator[Any]]
  parameters: int
  dtype: str


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
  """The task `benchmark`."""
  rows: list[dict] = []
  print(f'{"model":14s}{"mode":7s}{"images/s":>10s}{"ms/step":>10s}{"first s":>9s}')
  for name in config.benchmark.models:
    for mode in config.benchmark.modes:
      row = measure(config, name, mode)
      rows.append(dataclasses.asdict(row))
      print(
        f'{row.model:14s}{row.mode:7s}{row.images_per_s:10.1f}{row.step_ms:10.1f}'
        f'{row.compile_s:9.1f}',
        flush=True,
      )
      workdir_lib.write_json(workdir / 'benchmark.json', rows)
  return {'rows': rows}


def measure(config: ml_collections.ConfigDict, name: str, mode: str) -> Row:
  """The row of one network in mode 'train' or 'infer'."""
  batch_size = config.train.batch_size
  work = _WORK[(name in zoo.GENERATORS, mode)](config, name, batch_size)
  begun = time.perf_counter()
  compiled = work.step.lower(*work.first).compile()
  calls = work.calls(compiled)
  jax.block_until_ready(next(calls))
  compile_s = time.perf_counter() - begun
  for _ in range(WARM_UP_STEPS):
    jax.block_until_ready(next(calls))
  seconds = statistics.median(
    _block(calls, config.benchmark.steps) for _ in range(config.benchmark.repeats)
  )
  cost = cost_lib.of(compiled)
  return Row(
    model=name,
    mode=mode,
    image_size=config.data.image_size,
    batch_size=batch_size,
    parameters=work.parameters,
    flops_per_image=cost.flops / batch_size,
    images_per_s=batch_size / seconds,
    step_ms=1e3 * seconds,
    compile_s=compile_s,
    device=jax.devices()[0].device_kind,
    dtype=work.dtype,
    peak_bytes=cost.peak_bytes,
  )


def _block(calls: Iterator, steps: int) -> float:
  """Seconds of a step in a block of steps."""
  begun = time.perf_counter()
  for _ in range(steps):
    out = next(calls)
  jax.block_until_ready(out)
  return (time.perf_counter() - begun) / steps


def _random_images(batch_size: int, size: int) -> ImageSet:
  rng = np.random.default_rng(0)
  count = 4 * batch_size
  return ImageSet(
    images=rng.uniform(-1, 1, (count, size, size, 1)).astype(np.float32),
    labels=rng.integers(0, CLASSES, count, dtype=np.int32),
    records=(),
    native_sizes=np.full((count, 2), size, np.int32),
    class_names=tuple(map(str, range(CLASSES))),
    unit='grey',
  )


def _training(config, state, train_step, batch_size: int, dtype: str) -> _Work:
  """The step as the loop compiles it, on a feed like the loop's."""
  images = _random_images(batch_size, config.data.image_size)
  feed = DeviceFeed(mesh_lib.data_mesh(), images, batch_size, config.seed)
  tickets = feed.tickets(0)

  def calls(compiled):
    now = state
    while True:
      now, metrics = compiled(now, feed.resident, next(tickets))
      yield metrics

  return _Work(
    step=loop.jitted(train_step, feed, config.seed),
    first=(state, feed.resident, next(feed.tickets(0))),
    calls=calls,
    parameters=state.parameter_count(),
    dtype=dtype,
  )


def _train_classifier(config, name: str, batch_size: int) -> _Work:
  own = classifier.for_network(config, name)
  model = classifier.build(own, CLASSES)
  tx = classifier.make_optimizer(own, steps_per_epoch=100)
  state = _born(lambda: classifier.init_state(model, tx, own.data.image_size, own.seed))
  step = classifier.make_train_step(model, tx, own, np.ones(CLASSES, np.float32))
  return _training(own, state, step, batch_size, own.model.dtype)


def _train_gan(config, name: str, batch_size: int) -> _Work:
  own = ml_collections.ConfigDict(config.to_dict())
  own.gan.name = name
  networks = gan.build(own, CLASSES)
  state = _born(lambda: gan.init_state(networks, own.data.image_size, own.gan.latent, own.seed))
  return _training(own, state, gan.make_train_step(networks, own), batch_size, own.gan.dtype)


def _infer_classifier(config, name: str, batch_size: int) -> _Work:
  own = classifier.for_network(config, name)
  model = classifier.build(own, CLASSES)
  size = own.data.image_size
  images = jax.random.uniform(jax.random.key(0), (batch_size, size, size, 1), minval=-1.0)
  variables = _born(lambda: model.init(jax.random.key(0), images[:1], train=False))
  return _Work(
    step=inference.forward,
    first=(model, variables, images),
    calls=lambda compiled: _repeat(compiled, variables, images),
    parameters=_count(variables['params']),
    dtype=own.model.dtype,
  )


def _infer_gan(config, name: str, batch_size: int) -> _Work:
  own = ml_collections.ConfigDict(config.to_dict())
  own.gan.name = name
  networks = gan.build(own, CLASSES)
  state = _born(lambda: gan.init_state(networks, own.data.image_size, own.gan.latent, own.seed))
  latent = jax.random.normal(jax.random.key(0), (batch_size, own.gan.latent))
  labels = jnp.arange(batch_size) % CLASSES
  return _Work(
    step=sampling.generate,
    first=(networks.generator, state.generator, latent, labels),
    calls=lambda compiled: _repeat(compiled, state.generator, latent, labels),
    parameters=state.parameter_count(),
    dtype=own.gan.dtype,
  )


_WORK = {
  (False, 'train'): _train_classifier,
  (False, 'infer'): _infer_classifier,
  (True, 'train'): _train_gan,
  (True, 'infer'): _infer_gan,
}


def _born(init: Callable[[], Any]) -> Any:
  return mesh_lib.made_everywhere(mesh_lib.data_mesh(), init)


def _repeat(function: Callable, *arguments: Any) -> Iterator[Any]:
  while True:
    yield function(*arguments)


def _count(parameters: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(parameters))
