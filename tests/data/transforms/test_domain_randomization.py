"""Changes from site to site: what they keep and what they must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctfake_jax.data.transforms import domain_randomization
from ctfake_jax.detector import training

CHANGES = {
  'TONE_CHANCE': domain_randomization.toned,
  'FIELD_CHANCE': domain_randomization.in_field,
  'ZOOM_CHANCE': domain_randomization.zoomed_out,
}


def pictures(count=8, side=32, channels=1):
  shape = (count, side, side, channels)
  return jax.random.uniform(jax.random.key(0), shape, minval=-1.0)


@pytest.mark.slow
@pytest.mark.parametrize('chance', CHANGES)
def test_a_change_keeps_the_range_and_does_the_same_to_all_channels(chance, monkeypatch):
  monkeypatch.setattr(domain_randomization, chance, 1.0)
  images = jnp.repeat(pictures(), 2, axis=-1)
  found = CHANGES[chance](images, jax.random.key(1))
  np.testing.assert_array_equal(found[..., 0], found[..., 1])
  assert found.min() >= -1 - 1e-6
  assert found.max() <= 1 + 1e-6
  assert (jnp.abs(found - images).max((1, 2, 3)) > 0).all()


@pytest.mark.parametrize('chance', CHANGES)
def test_a_change_without_chance_changes_nothing(chance, monkeypatch):
  monkeypatch.setattr(domain_randomization, chance, 0.0)
  images = pictures()
  np.testing.assert_array_equal(CHANGES[chance](images, jax.random.key(1)), images)


def test_tone_keeps_the_order_of_greys(monkeypatch):
  monkeypatch.setattr(domain_randomization, 'TONE_CHANCE', 1.0)
  ramp = jnp.broadcast_to(jnp.linspace(-1, 1, 64), (16, 1, 64))[..., None]
  found = domain_randomization.toned(ramp, jax.random.key(0))
  assert (jnp.diff(found[..., 0], axis=-1) >= 0).all()
  assert (found[:, 0, -1, 0] > found[:, 0, 0, 0] + 0.3).all()


def test_outside_of_the_field_is_black_and_inside_stays(monkeypatch):
  monkeypatch.setattr(domain_randomization, 'FIELD_CHANCE', 1.0)
  images = pictures()
  found = np.asarray(domain_randomization.in_field(images, jax.random.key(2)))
  np.testing.assert_array_equal(found[:, 14:18, 14:18], images[:, 14:18, 14:18])
  assert (found[:, [0, 0, -1, -1], [0, -1, 0, -1]] == -1).all()


def test_zooming_out_shrinks_about_the_middle(monkeypatch):
  monkeypatch.setattr(domain_randomization, 'ZOOM_CHANCE', 1.0)
  monkeypatch.setattr(domain_randomization, 'ZOOM', (0.5, 0.5 + 1e-6))
  found = domain_randomization.zoomed_out(jnp.ones((1, 32, 32, 1)), jax.random.key(0))
  np.testing.assert_allclose(found[0, 10:22, 10:22], 1, atol=1e-5)
  np.testing.assert_array_equal(found[0, :6], -1)


@pytest.mark.slow
def test_the_mask_of_a_pair_loses_its_place_but_not_its_meaning(monkeypatch):
  monkeypatch.setattr(domain_randomization, 'TONE_CHANCE', 1.0)
  monkeypatch.setattr(domain_randomization, 'FIELD_CHANCE', 1.0)
  monkeypatch.setattr(domain_randomization, 'ZOOM_CHANCE', 0.0)
  image = 0.5 * jnp.ones((4, 32, 32, 1))
  pairs = jnp.concatenate([image, jnp.ones_like(image), image], -1)
  found = training.domain_randomized(pairs, jax.random.key(0))
  black = np.asarray(found[..., 0]) == -1
  # Tones touch the pictures and not the mask; what is black is synthetic no more.
  assert 0 < black.mean() < 0.9
  np.testing.assert_array_equal(np.asarray(found[..., 1]) > 0, ~black)
  assert not np.allclose(found[..., 0][~black], 0.5)
