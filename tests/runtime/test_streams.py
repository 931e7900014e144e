"""Random streams have names: no two uses share one."""

import ast
import collections
import traceback

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_architecture import FILES, PACKAGE

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.runtime import streams
from ctfake_jax.tasks.study import run as study

NAMES = st.lists(st.one_of(st.text(max_size=3), st.integers(0, 99)), max_size=3).map(tuple)
SEEDS = st.integers(0, 2**31 - 1)


@settings(deadline=None)
@given(a=st.tuples(SEEDS, NAMES), b=st.tuples(SEEDS, NAMES))
def test_streams_are_the_same_by_the_same_name_alone(a, b):
  drawn = [streams.generator(seed, *name).random() for seed, name in (a, b)]
  keys = [jax.random.key_data(streams.key(seed, *name)).tolist() for seed, name in (a, b)]
  seeds = [streams.seed(seed, *name) for seed, name in (a, b)]
  for found in (drawn, keys, seeds):
    assert (found[0] == found[1]) == (a == b)
  assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_stream_stays_what_it_is():
  # Results hang on them: a change here is a change of every figure.
  assert streams.seed(0, 'step') == 1378487090
  assert streams.generator(0, 'order', 1).integers(1000) == 737


def test_seeds_and_steps_next_to_each_other_share_nothing():
  """What `fold_in` of bare seeds gave: seed 1's fakes were another stage's at seed 0."""
  uses = [(s, n, i) for s in range(3) for n in ('samples', 'evaluation', 'step') for i in range(9)]
  drawn = {streams.generator(seed, name, i).random() for seed, name, i in uses}
  assert len(drawn) == len(uses)


# They draw what no result hangs on, or have seeds that are data: the phantom's anatomy.
OWN_SEEDS = {
  *('runtime/streams.py', 'data/sources/phantom/source.py'),
  *('tasks/benchmark.py', 'tasks/dry_run.py'),
}


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_seeds_a_generator_by_itself(path):
  if path.relative_to(PACKAGE).as_posix() in OWN_SEEDS:
    return
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call):
      called = ast.unparse(node.func)
      if called.endswith('default_rng'):
        # An initialiser draws with the key that Flax hands it.
        assert path.name == 'initializers.py', ast.unparse(node)
      if called.endswith(('random.key', 'PRNGKey')):
        # An input that initialisation traces and does not draw from.
        assert ast.unparse(node) == 'jax.random.key(0)', ast.unparse(node)
        assert path.name == 'autoencoder.py'


# Checkpoints are judged by the same latents, and folds are parts of one division.
REPEATED = ('evaluation', 'preview', 'test part')


@pytest.mark.slow
def test_all_streams_of_a_study_differ(tmp_path, monkeypatch):
  """Each (seed, name) is opened by one use, each stage's seed derived once."""
  opened, derived = collections.defaultdict(set), collections.Counter()
  values = {}

  def site():
    frames = [f for f in traceback.extract_stack() if 'ctfake_jax' in f.filename]
    return frames[-1].filename, frames[-1].lineno

  def spy(kind):
    original = getattr(streams, kind)

    def call(parent, *name):
      opened[parent, name].add((kind, site()))
      if kind == 'seed':
        derived[parent, name, site()] += 1
        values[parent, name] = original(parent, *name)
      return original(parent, *name)

    monkeypatch.setattr(streams, kind, call)

  for kind in ('seed', 'generator', 'key'):
    spy(kind)
  config = config_lib.defaults()
  config.task, config.phantom.patients = 'study', 40
  config.study.classifiers, config.model.cnn.widths = ('cnn',), (4,)
  config.split.folds, config.study.folds, config.study.seeds = 3, 2, 2
  config.train.epochs, config.train.batch_size = 1, 16
  config.gan.width, config.gan.updates, config.gan.eval_every = 4, 4, 2
  config.gan.batch_size, config.gan.quality_images = 16, 32
  config.generate.count = 48
  config.split.val_fraction = 0.25
  config_lib.validate(resolve(config))
  study.run(resolve(config), tmp_path)
  assert {name: sites for name, sites in opened.items() if len(sites) > 1} == {}
  often = {use: n for use, n in derived.items() if n > 1 and use[1][0] not in REPEATED}
  assert often == {}
  roots = {config.seed, config.split.seed}
  assert len(set(values.values()) | roots) == len(values) + len(roots)
  assert {('step',), ('samples',), ('deepfakes',)} <= {name for _, name in opened}
