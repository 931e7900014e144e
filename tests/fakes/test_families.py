"""Fakes made from reals: an edit changes its mask alone, a reconstruction is like its source."""

import json

import jax
import numpy as np
import pytest
from conftest import make_images
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from test_architecture import FILES, imports, module_name

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.data import splits
from ctfake_jax.data.transforms import controls
from ctfake_jax.fakes import families as fakes
from ctfake_jax.fakes import generation, local_edits
from ctfake_jax.inference import generator as sampling
from ctfake_jax.train import diffusion, generator
from ctfake_jax.types import UserError

REALS = make_images(8, size=32)


@given(side=st.integers(16, 128), seed=st.integers(0, 1000))
@example(side=16, seed=701)  # its first ellipse reaches the border
@settings(max_examples=50, deadline=None)
def test_a_mask_is_a_modest_patch_away_from_the_border(side, seed):
  mask = local_edits.random_mask(side, np.random.default_rng(seed))
  assert 0.004 < mask.mean() < 0.2
  assert not mask[[0, -1]].any()
  assert not mask[:, [0, -1]].any()


@pytest.mark.parametrize('kind', local_edits.EDITS)
def test_an_edit_changes_its_mask_alone_and_visibly(kind):
  rows = np.array([0, 3, 5])
  images, masks, donors = local_edits.edit(REALS, rows, kind, seed=1)
  change = np.abs(images - REALS.images[rows])[..., 0]
  assert change[~masks].max() == 0
  assert np.abs(images).max() <= 1
  for i in range(len(rows)):
    assert np.sqrt((change[i][masks[i]] ** 2).mean()) >= local_edits.LEAST_CHANGE
  again = local_edits.edit(REALS, rows, kind, seed=1)
  np.testing.assert_array_equal(images, again.images)
  assert (donors is None) == (kind != 'blended')


def test_the_donor_of_a_blended_edit_is_the_image_whose_tissue_is_seen():
  rows = np.arange(6)
  images, masks, donors = local_edits.edit(REALS, rows, 'blended', seed=1)
  for image, mask, row, donor in zip(images[..., 0], masks, rows, donors):
    inner = circle_of(mask)
    found = [np.corrcoef(image[inner], real[inner])[0, 1] for real in REALS.images[..., 0]]
    assert donor != row
    assert found[donor] > 0.99
    assert found[donor] > found[row]


def circle_of(mask):
  """Where nothing of a soft edge is left."""
  distance = ndimage.distance_transform_edt(mask)
  return distance >= 0.6 * distance.max()


def circle(side, radius):
  distance = np.hypot(*(np.mgrid[:side, :side] - side // 2))
  return distance < radius, distance < 2


def test_the_edge_of_what_is_put_in_is_between_hard_and_soft():
  image, patch, (mask, core) = np.zeros((128, 128)), np.ones((128, 128)), circle(128, 14)
  found = np.stack(
    [local_edits.put_in(image, mask, patch, np.random.default_rng(seed)) for seed in range(40)]
  )
  assert (found[:, ~mask] == 0).all()
  np.testing.assert_allclose(found[:, core], 1, atol=0.01)
  at_edge = found[:, 64, 64 + 13]
  assert at_edge.min() < 0.1
  assert at_edge.max() > 0.99


def test_blended_tissue_has_the_mean_and_copied_tissue_is_found_elsewhere():
  rng, (mask, core) = np.random.default_rng(0), circle(32, 7)
  image, other = np.full((32, 32), 0.2), np.zeros((32, 32)) + np.linspace(-1, 1, 32)
  fitted = 0.2 + other - other[mask].mean()
  np.testing.assert_allclose(
    local_edits.blended(image, mask, other, rng)[core], fitted[core], atol=1e-3
  )
  ramp = np.arange(32.0)[:, None] + np.zeros(32)
  moved = local_edits.copied(ramp, mask, None, rng)
  np.testing.assert_allclose(moved[core], moved[core].round(), atol=1e-3)
  assert np.abs(moved - ramp)[core].min() > 1
  assert (moved[~mask] == ramp[~mask]).all()


def test_inpainting_continues_a_plane_exactly():
  plane = np.add.outer(np.linspace(-0.5, 0.5, 24), np.linspace(0, 0.3, 24))
  mask = np.hypot(*(np.mgrid[:24, :24] - 12)) < 4
  holed = np.where(mask, 0.9, plane)
  np.testing.assert_allclose(local_edits.inpainted(holed, mask, None, None), plane, atol=1e-3)


def test_kept_fakes_are_made_once_and_again_where_they_changed_or_are_damaged(tmp_path):
  path, rows, calls = tmp_path / 'part' / 'copied.npz', np.array([0, 3, 5]), []

  def make():
    calls.append(1)
    made = local_edits.edit(REALS, rows, 'blended', seed=1)
    return fakes.Fakes(made.images, REALS.labels[rows], rows, made.masks, made.donors)

  def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, vars(a), vars(b))

  first = fakes.load_or_create(path, 'seed 1', make)
  same(first, fakes.load_or_create(path, 'seed 1', make))
  assert len(calls) == 1
  np.testing.assert_array_equal(first.images, controls.through_png(make().images))
  calls.clear()
  same(first, fakes.load_or_create(path, 'another generator', make))
  assert len(calls) == 1
  path.write_bytes(path.read_bytes()[:-100])
  same(first, fakes.load_or_create(path, 'another generator', make))
  assert len(calls) == 2
  same(first, fakes.load_or_create(path, 'another generator', make))
  assert len(calls) == 2


def test_kept_fakes_are_made_again_by_other_code(tmp_path, monkeypatch):
  def make(value):
    return lambda: fakes.Fakes(
      np.full((1, 8, 8, 1), value, np.float32), np.zeros(1, np.int32), np.zeros(1, int)
    )

  before = fakes.load_or_create(tmp_path / 'a.npz', 'same', make(1.0))
  monkeypatch.setattr(fakes, 'code_digest', lambda: 'of an edited module')
  after = fakes.load_or_create(tmp_path / 'a.npz', 'same', make(-1.0))
  assert before.images.mean() == 1
  assert after.images.mean() == -1


def test_the_code_that_makes_fakes_is_known_whole():
  """Whatever `fakes` imports of ours, at any remove, is in its digest or touches no pixel."""
  touch_no_pixel = {
    *('ctfake_jax', 'types', 'config', 'config.keys', 'config.names', 'config.tree'),
    *('config.config_dict', 'config.files', 'config.validation', 'config.value_rules'),
    *('config.saved', 'workdir', 'workdir.files', 'workdir.checkpoints', 'runtime', 'data'),
    *('runtime.mesh', 'runtime.preemption', 'runtime.progress_bar', 'runtime.processors'),
    *('inference', 'fakes'),
  }
  modules = {module_name(path).removeprefix('ctfake_jax.'): path for path in FILES}
  seen, waiting = set(), ['fakes.families']
  while waiting:
    name = waiting.pop()
    if name in modules and name not in seen:
      seen.add(name)
      waiting += [found.removeprefix('ctfake_jax.') for found in imports(modules[name])]
  paths = [part.removesuffix('.py').replace('/', '.') for part in fakes.CODE]
  known = {n for n in modules for path in paths if n == path or n.startswith(f'{path}.')}
  assert {'fakes.local_edits', 'models.vae', 'runtime.streams'} <= seen
  assert seen - known - touch_no_pixel == set()


def trained_vae(config, tmp_path):
  config.task, config.data.image_size, c = 'vae', 32, config.vae
  c.batch_size, c.updates, c.eval_every, c.quality_images, c.width = 8, 60, 60, 8, 8
  c.latent, c.learning_rate = 8, 3e-3
  images = make_images(64, size=32)
  generator.train_generator(
    resolve(config), images, splits.split(images, resolve(config).split, 0), tmp_path
  )
  return sampling.load(tmp_path)


def fresh_diffusion(config):
  """Predicts no noise as yet: what it undoes is the scale."""
  config.task, config.data.image_size, config.diffusion.width = 'diffusion', 32, 8
  networks = diffusion.build(resolve(config), 2)
  state = diffusion.init_state(networks, 32, seed=0)
  sampler = sampling.make_sampler(networks.generator, state.ema, networks.latent, np.ones(2, int))
  return sampling.TrainedGenerator(
    sampler, resolve(config), ('0', '1'), 'grey', np.ones(2, int), 0, '', None
  )


@pytest.mark.slow
@pytest.mark.parametrize('task', ['vae', 'diffusion'])
def test_a_reconstruction_is_nearer_to_its_source_than_another_image_is(
  task, tiny_config, tmp_path
):
  network = trained_vae(tiny_config, tmp_path) if task == 'vae' else fresh_diffusion(tiny_config)
  made = fakes.from_reals('reconstructions', network, REALS, 6, seed=0)
  own = np.abs(made.images - REALS.images[made.sources]).mean()
  other_class = np.nonzero(REALS.labels[made.sources][:, None] != REALS.labels)
  others = np.abs(made.images[other_class[0]] - REALS.images[other_class[1]]).mean()
  assert own < 0.7 * others
  assert (made.labels == REALS.labels[made.sources]).all()


class Untrained(sampling.Sampler):
  def __init__(self):
    pass


def test_a_gan_cannot_reconstruct(tiny_config, tmp_path):
  network = sampling.TrainedGenerator(
    Untrained(), resolve(tiny_config), (), 'grey', np.ones(1, int), 0, '', None
  )
  tiny_config.task = 'gan'
  with pytest.raises(UserError, match='cannot reconstruct'):
    fakes.reconstruct(network, REALS.images, REALS.labels, 0)


def test_every_method_of_a_family_is_one_that_the_config_allows():
  assert {f.method for f in fakes.FAMILIES.values()} == {'samples', *config_lib.METHODS_ON_REALS}
  assert set(config_lib.EDITS) == set(local_edits.EDITS)


def test_edits_are_generated_with_masks_sources_and_labels(tmp_path):
  config = config_lib.defaults()
  config.task, config.generate.method, config.generate.count = 'generate', 'copied', 6
  config.phantom.patients, config.phantom.slices_per_patient = 8, 1
  config_lib.validate(resolve(config))
  manifest = generation.run(resolve(config), tmp_path)
  assert len(manifest['files']) == len(manifest['sources']) == 6
  for row in manifest['files']:
    mask = np.asarray(Image.open(tmp_path / row['mask']))
    assert mask.dtype == bool
    assert mask.any()
    assert Image.open(tmp_path / row['path']).size == mask.shape
  assert json.loads((tmp_path / 'manifest.json').read_text())['method'] == 'copied'
  config.generate.method = 'reconstructions'
  with pytest.raises(UserError, match='checkpoint is empty'):
    config_lib.validate(resolve(config))


def test_sampled_fakes_have_no_source(tiny_config):
  class Constant(Untrained):
    def sample(self, labels, seed):
      del seed
      return np.zeros((len(labels), 4, 4, 1), np.float32)

  network = sampling.TrainedGenerator(
    Constant(), resolve(tiny_config), (), 'grey', np.ones(1, int), 0, '', None
  )
  made = fakes.sample(network, np.array([0, 1], np.int32), 0)
  assert (made.sources == -1).all()
  assert made.masks is None
  assert isinstance(jax.tree.leaves(made.images)[0], np.ndarray)
