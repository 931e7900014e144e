"""How fast the trainers' own steps and the forward passes are here: `benchmark.json`.

One row for each network and mode, on random images. Times are medians over `benchmark.repeats`
blocks of `benchmark.steps` calls or one more; a call that is not waited for costs nothing until its
block ends.
Training calls dispatch as many steps as the trainer does on this platform, inference has
as many batches in flight as evaluation (`batching`).
"""

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctfake_jax.config.keys import Config
from ctfake_jax.data.loader import DeviceFeed
from ctfake_jax.inference import classifier as inference
from ctfake_jax.inference import generator as sampling
from ctfake_jax.models import initializers, registry
from ctfake_jax.runtime import batching
from ctfake_jax.runtime import flops as cost_lib
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.train import classifier, gan, loop
from ctfake_jax.train.state import State
from ctfake_jax.types import Images
from ctfake_jax.workdir import files as workdir_lib

CLASSES = 4
WARM_UP_CALLS = 3
MATRIX_SIDE = {'cpu': 2048}
ACCELERATORS_MATRIX_SIDE = 8192


@dataclasses.dataclass(frozen=True)
class Row:
  """One measurement.

  Attributes:
    parameters: trainable scalars, of generator and discriminator together.
    flops_per_image: of the compiled step, as `flops.Cost` counts.
    images_per_s: of real images in training, of images out in inference.
    step_ms: the same as time of a step.
    compile_s: from the call to the first result, tracing included.
    peak_bytes: of the step, as `flops.Cost` counts.
    flops_per_s: achieved by the step, as `flops.Cost` counts.
    matrix_flops_per_s: achieved on one device by one large matrix product of this dtype.
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
  flops_per_s: float
  matrix_flops_per_s: float


@dataclasses.dataclass(frozen=True)
class _Work:
  """What is timed.

  Attributes:
    calls: dispatches one call after another; the first compiles.
    cost: of a step, known after the first call.
    steps: in a call.
  """

  calls: Iterator[Any]
  cost: Callable[[], cost_lib.Cost]
  parameters: int
  dtype: str
  steps: int = 1


def run(config: Config, workdir: Path) -> dict:
  """The task `benchmark`."""
  workdir_lib.check_same_command(workdir, config)
  mesh_lib.check_batch_size('train.batch_size', config.train.batch_size)
  workdir_lib.record_command(workdir, config)
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


def measure(config: Config, name: str, mode: str) -> Row:
  """The row of one network in mode 'train' or 'infer'."""
  batch_size = config.train.batch_size
  work = _WORK[(name in registry.GENERATORS, mode)](config, name, batch_size)
  begun = time.perf_counter()
  jax.block_until_ready(next(work.calls))
  compile_s = time.perf_counter() - begun
  for _ in range(WARM_UP_CALLS):
    jax.block_until_ready(next(work.calls))
  # Batches that are in flight together end together: blocks have whole numbers of such groups.
  calls = batching.IN_FLIGHT * math.ceil(config.benchmark.steps / batching.IN_FLIGHT)
  blocks = [_block(work.calls, calls) for _ in range(config.benchmark.repeats)]
  seconds = statistics.median(blocks) / work.steps
  cost = work.cost()
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
    flops_per_s=cost.flops / seconds,
    matrix_flops_per_s=matrix_rate(work.dtype),
  )


@functools.cache
def matrix_rate(dtype: str) -> float:
  """FLOP/s of a product of two large square matrices on the first device."""
  side = MATRIX_SIDE.get(jax.default_backend(), ACCELERATORS_MATRIX_SIDE)
  matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
  products = _repeat(jax.jit(jnp.matmul), matrix, matrix)
  jax.block_until_ready(next(products))
  return 2 * side**3 / min(_block(products, calls=5) for _ in range(3))


def _block(iterator: Iterator, calls: int) -> float:
  """Seconds of a call in a block of calls."""
  begun = time.perf_counter()
  for _ in range(calls):
    out = next(iterator)
  jax.block_until_ready(out)
  return (time.perf_counter() - begun) / calls


def _random_images(batch_size: int, size: int) -> Images:
  rng = np.random.default_rng(0)
  count = 4 * batch_size
  images = rng.uniform(-1, 1, (count, size, size, 1)).astype(np.float32)
  return Images(images, rng.integers(0, CLASSES, count, dtype=np.int32))


def _training(config: Config, state, train_step, batch_size: int, dtype: str) -> _Work:
  """The step as the loop compiles it, on a feed like the loop's."""
  images = _random_images(batch_size, config.data.image_size)
  feed = DeviceFeed(mesh_lib.data_mesh(), images, batch_size, config.seed)
  batch_indices, at_once = feed.batch_indices(0), loop.steps_at_once(config.train)
  steps = loop.Steps(train_step, feed, config.seed)

  def calls():
    now = state
    while True:
      now, metrics = steps(now, [next(batch_indices) for _ in range(at_once)])
      yield metrics

  return _Work(calls(), lambda: steps.cost, state.parameter_count(), dtype, steps=at_once)


def _train_classifier(config: Config, name: str, batch_size: int) -> _Work:
  own = classifier.for_network(config, name, config.seed)
  model = classifier.build(own, CLASSES)
  tx = classifier.make_optimizer(own, steps_per_epoch=100)
  state = mesh_lib.put_everywhere(classifier.init_state(model, tx, own.data.image_size, own.seed))
  step = classifier.make_train_step(model, tx, own, np.ones(CLASSES, np.float32))
  return _training(own, state, step, batch_size, own.model.dtype)


def _train_gan(config: Config, name: str, batch_size: int) -> _Work:
  own, networks, state = _gan(config, name)
  return _training(own, state, gan.make_train_step(networks, own), batch_size, own.gan.dtype)


def _infer_classifier(config: Config, name: str, batch_size: int) -> _Work:
  own = classifier.for_network(config, name, config.seed)
  model = classifier.build(own, CLASSES)
  size = own.data.image_size
  images = jax.random.uniform(jax.random.key(0), (batch_size, size, size, 1), minval=-1.0)
  variables = mesh_lib.put_everywhere(
    initializers.variables(model, jax.random.key(0), images[:1], train=False)
  )
  parameters = _count(variables['params'])

  def forward(variables, number, images):
    del number
    return inference.forward(model, variables, images)

  return _inference(forward, variables, images, parameters, own.model.dtype)


def _infer_gan(config: Config, name: str, batch_size: int) -> _Work:
  own, networks, state = _gan(config, name)
  draw = functools.partial(sampling.draw_samples, networks.generator, networks.latent)
  constants = state.networks['generator'], jax.random.key(0)
  labels = np.arange(batch_size) % CLASSES
  return _inference(draw, constants, labels, state.parameter_count(), own.gan.dtype)


def _gan(config: Config, name: str) -> tuple[Config, gan.Networks, State]:
  own = dataclasses.replace(config, task='gan', gan=dataclasses.replace(config.gan, name=name))
  networks = gan.build(own, CLASSES)
  return (
    own,
    networks,
    mesh_lib.put_everywhere(gan.init_state(networks, own.data.image_size, own.seed)),
  )


def _inference(
  function: Callable, constants: Any, batch: Any, parameters: int, dtype: str
) -> _Work:
  """Batches on their way as every command sends them: in from the host, and out to it."""
  batch = np.asarray(batch)
  calls = batching.stream(function, constants, itertools.repeat((batch,)))

  def cost():
    arguments = cost_lib.shapes((constants, np.int32(0), batch))
    jitted = jax.jit(function)
    return cost_lib.of(jitted, arguments, jitted.lower(*arguments).compile())

  return _Work(calls, cost, parameters, dtype)


_WORK = {
  (False, 'train'): _train_classifier,
  (False, 'infer'): _infer_classifier,
  (True, 'train'): _train_gan,
  (True, 'infer'): _infer_gan,
}


def _repeat(function: Callable, *arguments: Any) -> Iterator[Any]:
  while True:
    yield function(*arguments)


def _count(parameters: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(parameters))
