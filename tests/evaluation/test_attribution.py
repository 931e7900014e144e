"""Explanation maps: closed forms, planted patches, and what every model allows them to ask."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctfake_jax.detector import discriminant
from ctfake_jax.evaluation import attribution
from ctfake_jax.models import initializers, layers, patch_net, registry
from ctfake_jax.types import UserError

SIDE = 32
PATCH = np.s_[8:16, 16:24]


class TwoChannels(nn.Module):
  """Logit = 3 * mean(x) + mean(-2 x), by a stage of the channels (x, -2 x)."""

  @nn.compact
  def __call__(self, x, *, train):
    del train
    features = {}
    x = layers.stage(self, features, 'stage1', jnp.concatenate([x, -2 * x], -1))
    return (x.mean((1, 2)) * jnp.array([[3.0, 1.0]])).sum(-1), features


def planted(seed=0):
  """Faint noise with one bright patch."""
  image = np.random.default_rng(seed).normal(-0.5, 0.05, (SIDE, SIDE, 1)).astype(np.float32)
  image[PATCH] += 1.0
  return image


def brightness_of_patch(image):
  """An answer where parts of the image are left: the mean of its patch, others blurred away."""

  def judge(kept):
    images = attribution.mixed(image, kept)
    return images[(slice(None), *PATCH)].mean((1, 2, 3)).astype(np.float64)

  return judge


def test_grad_cam_by_hand():
  image = planted()
  found = attribution.grad_cam(TwoChannels(), {}, image[None], np.zeros(1, int), 'stage1')
  # Mean gradients: 3 / n and 1 / n for n pixels; the map is relu(3 x - 2 x) / n.
  np.testing.assert_allclose(found[0], np.maximum(image[..., 0], 0) / SIDE**2, atol=1e-7)


def test_the_patch_is_found_without_looking_inside():
  image = planted()
  found = attribution.lime(brightness_of_patch(image), image, superpixels=32, samples=400, seed=1)
  share = np.zeros((SIDE, SIDE), bool)
  share[PATCH] = True
  assert found[share].mean() > 5 * np.abs(found[~share]).mean()


def test_a_true_map_beats_random_ones():
  image, true = planted(), np.zeros((SIDE, SIDE))
  true[PATCH] = 1
  good = attribution.faithfulness(brightness_of_patch(image), true).areas()
  for seed in range(5):
    noise = attribution.random_map((SIDE, SIDE), seed)
    bad = attribution.faithfulness(brightness_of_patch(image), noise).areas()
    assert good['deletion'] < bad['deletion']
    assert good['insertion'] > bad['insertion']


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_of_a_linear_answer_deletion_and_insertion_are_mirror_images(seed):
  rng = np.random.default_rng(seed)
  image = rng.uniform(-1, 1, (16, 16, 1)).astype(np.float32)
  weights = rng.normal(size=(16, 16, 1))

  def judge(kept):
    return (attribution.mixed(image, kept) * weights).sum((1, 2, 3))

  found = attribution.faithfulness(judge, rng.random((16, 16)))
  whole, none = found.deletion[0], found.insertion[0]
  np.testing.assert_allclose(found.deletion + found.insertion, whole + none, atol=1e-4)
  np.testing.assert_allclose(found.deletion[-1], none, atol=1e-4)


def test_a_witness_that_takes_no_places_away_itself_has_them_blurred():
  image, seen = planted(), []

  def judge(images):
    seen.append(images)
    return np.stack([images.mean((1, 2, 3)), -images.mean((1, 2, 3))], 1)

  explainable = attribution.ExplainableModel(TwoChannels(), {}, judge, ('bright', 'dark'))
  attribution.explain(explainable, image, 'stage1', superpixels=8, samples=4, seed=0)
  whole_and_none = seen[2][0], seen[2][attribution.CURVE_STEPS]
  np.testing.assert_array_equal(whole_and_none[0], image)
  assert whole_and_none[1].std() < image.std() / 2


@pytest.mark.slow
def test_places_taken_from_a_detector_become_a_typical_original():
  rng = np.random.default_rng(0)
  model = patch_net.PatchNet(4)
  image = jnp.asarray(rng.uniform(-1, 1, (SIDE, SIDE, 1)), jnp.float32)
  variables = initializers.variables(model, jax.random.key(0), image[None], train=False)
  features = model.apply(variables, image[None], train=False)[1]['pre_logits'][0]
  # The deviations of what is typical are above the least that log_moments knows.
  centre = np.asarray(features) + rng.uniform(0, 0.5, features.shape)
  directions = rng.normal(size=(3, len(features)))
  variables = discriminant.with_discriminant(variables, centre, directions)
  kept = np.zeros((3, SIDE, SIDE), bool)
  kept[0], kept[2, : SIDE // 2] = True, True
  whole, none, half = patch_net.scores_of_parts(model, variables, image, kept)
  score = model.apply(variables, image[None], train=False)[0][0]
  assert whole == pytest.approx(float(score), abs=1e-3)
  assert none == pytest.approx(0, abs=1e-4)
  assert np.isfinite(half)


def test_moments_of_parts_are_those_of_a_picture_put_together():
  rng = np.random.default_rng(0)
  x, kept = rng.uniform(0, 1, (4, 4, 1)), np.zeros((1, 8, 8), bool)
  kept[0, :4] = True
  elsewhere = rng.uniform(0, 1, (4, 4, 1))
  reference_null = patch_net.log_moments(jnp.asarray(elsewhere[None]))[0]
  together = np.concatenate([np.tile(x[:2], (2, 1, 1)), elsewhere])
  expected = patch_net.log_moments(jnp.asarray(together[None]))
  found = patch_net._moments_of_parts(
    jnp.asarray(x), jnp.asarray(kept, jnp.float32), reference_null
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['cnn', 'patch_net'])
def test_stages_are_found_and_nothing_changes_unperturbed(name):
  model = patch_net.PatchNet(4) if name == 'patch_net' else registry.MODELS['cnn'](3, widths=(4, 8))
  images = np.random.default_rng(0).uniform(-1, 1, (2, SIDE, SIDE, 1)).astype(np.float32)
  variables = initializers.variables(model, jax.random.key(0), images, train=False)
  assert layers.PERTURBATIONS not in variables
  shapes = attribution.stages(model, variables, images)
  stage = attribution.pick_stage(shapes, '')
  assert min(shapes[stage][1:3]) >= attribution.SMALLEST_STAGE
  maps = attribution.grad_cam(model, variables, images, np.array([0, 1]), stage)
  assert maps.shape == (2, SIDE, SIDE)
  assert (maps >= 0).all()
  with pytest.raises(UserError, match='have: stage1'):
    attribution.pick_stage(shapes, 'stage9')
