"""The score against closed forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctfake_jax.data.transforms import degradations
from ctfake_jax.detector import discriminant
from ctfake_jax.detector.dataset import REAL, DetectorDataset
from ctfake_jax.models import initializers
from ctfake_jax.models.patch_net import DISCRIMINANT, PatchNet, distance_towards_fakes

COVARIANCE = np.array([[1.0, 0.6, 0.0, 0.0], [0.6, 2.0, 0.0, 0.0], [0, 0, 0.5, 0], [0, 0, 0, 1]])
MEANS = {REAL: np.zeros(4), 'a': np.array([2.0, 0, 0, 0]), 'b': np.array([0, 0, 1.0, 1.0])}


class Pixels(nn.Module):
  """Its features are the four pixels of an image."""

  @nn.compact
  def __call__(self, x, *, train):
    return jnp.zeros(len(x)), {'pre_logits': x.reshape(len(x), 4)}


def draw(count, seed):
  rng = np.random.default_rng(seed)
  root = np.linalg.cholesky(COVARIANCE)
  images = np.concatenate([m + rng.normal(size=(count, 4)) @ root.T for m in MEANS.values()])
  families = np.repeat(np.array(list(MEANS), object), count)
  none = np.zeros(len(images), int)
  return DetectorDataset(
    images=images.reshape(-1, 2, 2, 1).astype(np.float32),
    families=families,
    groups=np.arange(len(images)),
    labels=none,
    masks=np.zeros((len(images), 2, 2), bool),
    file_facts=np.zeros((len(images), 0), np.float32),
    stored=np.full(len(images), None),
  )


def test_directions_are_fishers(monkeypatch):
  train, validation = draw(20_000, 0), draw(20_000, 1)
  monkeypatch.setattr(degradations, 'at_random', lambda images, seed, wide: images)
  found = discriminant.fit_discriminant(Pixels(), {}, train, validation, seed=0)[0][DISCRIMINANT]
  expected = np.stack([MEANS['a'], MEANS['b']])
  differences = discriminant.differences(train.images.reshape(-1, 4), train.families)
  np.testing.assert_allclose(differences, expected, atol=0.05)
  exact = np.linalg.solve(COVARIANCE, expected.T).T
  distance = np.sqrt((exact * expected).sum(1))  # Mahalanobis
  np.testing.assert_allclose(found['directions'], exact / distance[:, None], atol=0.03)
  np.testing.assert_allclose(found['centre'], 0, atol=0.05)
  reals = validation.of(REAL).images.reshape(-1, 4)
  np.testing.assert_allclose((reals @ found['directions'].T).std(0), 1, atol=0.03)
  scores = distance_towards_fakes(train.of('a').images.reshape(-1, 4), **found)
  assert distance[0] - np.log(2) - 0.1 < np.mean(scores) < distance[0] + 0.1


@given(seed=st.integers(0, 1000), k=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_the_score_is_a_soft_maximum(seed, k):
  rng = np.random.default_rng(seed)
  features, directions = 3 * rng.normal(size=(20, 5)), rng.normal(size=(k, 5))
  centre = rng.normal(size=5)
  along = (features - centre) @ directions.T
  scores = np.asarray(distance_towards_fakes(features, centre, directions))
  assert (scores <= along.max(1) + 1e-4).all()
  assert (scores >= along.max(1) - np.log(k) - 1e-4).all()
  agreeing = distance_towards_fakes(features, centre, np.repeat(directions[:1], k, 0))
  np.testing.assert_allclose(agreeing, along[:, 0], rtol=1e-4, atol=1e-4)


def test_a_harmless_change_spoils_its_own_direction(monkeypatch):
  """What changes alone along an axis is no sign of fakes along it."""
  rng = np.random.default_rng(0)

  def shaken(images, seed, wide=True):
    noise = np.zeros(images.shape, np.float32)
    noise[:, 0, 0, 0] = rng.normal(0, 30, len(images))
    return images + noise

  monkeypatch.setattr(degradations, 'at_random', shaken)
  train = draw(5000, 0)
  found = discriminant.fit_discriminant(Pixels(), {}, train, train, seed=0)[0][DISCRIMINANT]
  scores = distance_towards_fakes(train.of('a').images.reshape(-1, 4), **found)
  moved = distance_towards_fakes(shaken(train.of(REAL).images, 0).reshape(-1, 4), **found)
  assert np.abs(found['directions'][0, 0]) < 0.1
  assert np.mean(moved) < np.mean(scores) + 1


def test_the_network_answers_by_the_discriminant_it_is_given():
  network, images = PatchNet(width=4), jnp.zeros((2, 32, 32, 1))
  variables = initializers.variables(network, jax.random.key(0), images, train=False)
  apply = jax.jit(lambda variables: network.apply(variables, images, train=False))
  logits, features = apply(variables)
  d = features['pre_logits'].shape[1]
  assert d == 2 * (4 + 3 * 8)  # two moments of each channel of the four stages
  directions = np.eye(2, d)
  changed = discriminant.with_discriminant(variables, np.full(d, -1.0), directions)
  scores, _ = apply(changed)
  expected = np.log(np.exp(features['pre_logits'][:, :2] + 1).mean(1))
  np.testing.assert_allclose(scores, expected, rtol=1e-6)
  assert not np.allclose(scores, logits)


@pytest.mark.parametrize('wide', [True, False])
def test_reals_and_fakes_weigh_alike_in_the_covariance(wide, monkeypatch):
  """However many there are of each: three times the spread of either gives (9 + 1) / 2."""
  monkeypatch.setattr(degradations, 'at_random', lambda images, seed, wide: images)
  train = draw(4000, 0).of(REAL, 'a')
  train = train.take(np.arange(6000))  # 4,000 reals, 2,000 fakes
  own, mean = train.fake == wide, MEANS['a'][0] * wide
  train.images[own, 0, 0, 0] = mean + 3 * (train.images[own, 0, 0, 0] - mean)
  _, class_statistics = discriminant.fit_discriminant(Pixels(), {}, train, train, seed=0)
  assert class_statistics.covariance[0, 0] == pytest.approx((9 + 1) / 2, rel=0.1)


def test_a_site_brings_its_centre_and_half_of_the_covariance():
  rng = np.random.default_rng(0)
  class_statistics = discriminant.ClassStatistics(np.array([[1.0, 1.0]]), np.eye(2))
  site = 5 + rng.normal(size=(50_000, 2)) * [3, 1]
  centre, directions = discriminant.for_site(class_statistics, site)
  np.testing.assert_allclose(centre, 5, atol=0.05)
  # The covariance is diag(5, 1), so the distance of (1, 1) is the root of 1/5 + 1.
  np.testing.assert_allclose(directions, np.array([[0.2, 1.0]]) / np.sqrt(1.2), atol=0.02)
