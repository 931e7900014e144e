"""The benchmark's rows: complete, of the shipped networks, of the trainers' own steps."""

import itertools
import json

import pytest

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.runtime import flops
from ctfake_jax.tasks import benchmark
from ctfake_jax.types import UserError


@pytest.mark.slow
def test_every_model_and_mode_gets_a_row(tmp_path):
  config = config_lib.defaults()
  config.task = 'benchmark'
  config.train.batch_size = 8
  config.model.cnn.widths = (4,)
  config.gan.width = 2
  config.benchmark.models = ('dcgan', 'cnn')
  config.benchmark.steps = config.benchmark.repeats = 1
  config_lib.validate(resolve(config))
  benchmark.run(resolve(config), tmp_path)
  rows = json.loads((tmp_path / 'benchmark.json').read_text())
  assert [(row['model'], row['mode']) for row in rows] == [
    ('dcgan', 'train'),
    ('dcgan', 'infer'),
    ('cnn', 'train'),
    ('cnn', 'infer'),
  ]
  for row in rows:
    assert row['images_per_s'] == pytest.approx(8e3 / row['step_ms'])
    assert row['flops_per_s'] == pytest.approx(row['flops_per_image'] * row['images_per_s'])
    for key in ('compile_s', 'flops_per_image', 'peak_bytes', 'parameters', 'matrix_flops_per_s'):
      assert row[key] > 0, key
  # 3x3 kernels of 4 filters, scale and bias of their normalisation, 4 classes and their bias.
  assert rows[2]['parameters'] == rows[3]['parameters'] == 36 + 8 + 4 * 4 + 4


@pytest.mark.parametrize(('steps', 'calls'), [(1, 2), (5, 6), (6, 6)])
def test_blocks_have_whole_groups_of_batches_in_flight(steps, calls, monkeypatch):
  made = itertools.count()
  work = benchmark._Work(made, lambda: flops.Cost(1.0, 1), parameters=1, dtype='float32')
  monkeypatch.setitem(benchmark._WORK, (False, 'infer'), lambda *_: work)
  monkeypatch.setattr(benchmark, 'matrix_rate', lambda dtype: 1.0)
  config = config_lib.defaults()
  config.benchmark.steps, config.benchmark.repeats = steps, 3
  benchmark.measure(resolve(config), 'cnn', 'infer')
  assert next(made) == 1 + benchmark.WARM_UP_CALLS + 3 * calls


def test_a_training_is_not_overwritten(tmp_path):
  (tmp_path / 'config.json').touch()
  with pytest.raises(UserError, match='holds a training'):
    benchmark.run(config_lib.Config(), tmp_path)


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path):
  config = config_lib.defaults()
  config.train.batch_size = 12
  with pytest.raises(UserError, match=r'batch_size = 12: must be a multiple of the 8'):
    benchmark.run(resolve(config), tmp_path)
