"""Harmless changes against Pillow, SciPy and closed forms."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from ctfake_jax.data.preprocess import resize, to_uint8
from ctfake_jax.data.transforms import degradations


def smooth(count=3, side=32, seed=0):
  rng = np.random.default_rng(seed)
  noise = ndimage.gaussian_filter(rng.normal(size=(count, side, side)), (0, 1.5, 1.5))
  return jnp.asarray((noise / np.abs(noise).max())[..., None], jnp.float32)


@pytest.mark.parametrize('quality', [30, 55, 75, 95])
def test_jpeg_is_pillows_to_a_grey_level(quality):
  images = smooth()
  ours = np.asarray(degradations.jpeg(images, jnp.full(3, float(quality))))
  for pixels, found in zip(to_uint8(np.asarray(images)[..., 0]), to_uint8(ours)[..., 0]):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, 'JPEG', quality=quality)
    theirs = np.asarray(Image.open(stream)).astype(int)
    assert np.abs(found - theirs).mean() < 0.4  # libjpeg transforms in integers
    # A coefficient halfway between two steps may fall to either side.
    assert np.percentile(np.abs(found - theirs), 90) <= 1
    assert np.abs(found - theirs).max() <= 8


def test_blur_is_scipys_and_none_at_zero():
  images = smooth()
  sigmas = jnp.array([0.0, 0.8, 2.0])
  found = degradations.blur(images, sigmas)
  np.testing.assert_allclose(found[0], images[0], atol=1e-5)
  for i in (1, 2):
    expected = ndimage.gaussian_filter(images[i, ..., 0], float(sigmas[i]), mode='nearest')
    np.testing.assert_allclose(found[i, ..., 0], expected, atol=2e-3)


@pytest.mark.parametrize('factor', [0.5, 0.75, 1.0, 1.25])
def test_resizing_is_pillows(factor):
  images = smooth()
  found = degradations.resized(images, jnp.full(3, factor))[..., 0]
  for image, ours in zip(np.asarray(images[..., 0]), found):
    middle = resize(image, round(32 * factor))
    np.testing.assert_allclose(ours, resize(middle, 32), atol=2e-3)


@given(seed=st.integers(0, 2**16))
@settings(max_examples=10, deadline=None)
def test_a_random_chain_keeps_range_and_shape_and_is_stored_in_8_bits(seed):
  images = smooth()
  found = _degrade(images, jax.random.key(seed))
  assert found.shape == images.shape
  assert float(jnp.abs(found).max()) <= 1
  levels = (np.asarray(found) + 1) * 127.5
  np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)


_degrade = jax.jit(degradations.degrade)


def test_noise_has_its_deviation_and_a_window_its_gain():
  flat = jnp.zeros((2, 64, 64, 1))
  found = degradations.noisy(flat, jnp.array([0.0, 0.1]), jax.random.key(0))
  assert float(found[0].std()) == 0
  assert float(found[1].std()) == pytest.approx(0.1, rel=0.05)
  ramp = jnp.linspace(-0.4, 0.4, 8).reshape(1, 8, 1, 1)
  shown = degradations.windowed(ramp, jnp.array([2.0]), jnp.array([0.1]))
  np.testing.assert_allclose(shown, 2 * ramp + 0.1, atol=1e-6)


def test_a_mirror_twice_is_nothing_and_zero_is_off():
  images = smooth()
  yes, no = jnp.ones(3), jnp.zeros(3)
  np.testing.assert_array_equal(
    degradations.mirrored(degradations.mirrored(images, yes), yes), images
  )
  np.testing.assert_array_equal(degradations.mirrored(images, no), images)
  np.testing.assert_array_equal(degradations.mirrored(images, yes)[:, :, 0], images[:, :, -1])


def test_a_crop_magnifies_about_the_middle():
  row = jnp.linspace(-1, 1, 32)
  ramp = jnp.tile(row[None, None, :, None], (2, 32, 1, 1))
  found = degradations.cropped(ramp, jnp.array([1.0, 0.5]))
  np.testing.assert_allclose(found[0], ramp[0], atol=1e-6)
  # Half the side seen twice as large: half the slope, the same middle.
  np.testing.assert_allclose(found[1, :, 1:-1], 0.5 * ramp[1, :, 1:-1], atol=1e-5)


def test_random_chains_are_seeded_and_keep_every_image():
  images = np.asarray(smooth(70))
  once, again, other = (degradations.at_random(images, seed) for seed in (0, 0, 1))
  assert once.shape == images.shape
  np.testing.assert_array_equal(once, again)
  assert (once != other).any((1, 2, 3)).mean() > 0.5


def test_wide_chains_change_the_same_images_more():
  images = np.asarray(smooth(70))
  narrow, wide = (degradations._degraded[wide](images, jax.random.key(0)) for wide in (False, True))
  moved = [np.abs(changed - images).mean((1, 2, 3)) for changed in (narrow, wide)]
  np.testing.assert_array_equal(moved[0] == 0, moved[1] == 0)
  assert moved[1].mean() > 1.1 * moved[0].mean()
