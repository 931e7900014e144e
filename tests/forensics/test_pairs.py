"""Pairs differ by their edit alone, repeat by seed and step, and harmless changes are on both."""

import numpy as np
import pytest

from ctfake_jax.config import names
from ctfake_jax.data import series as series_lib
from ctfake_jax.data.sources.phantom import volume
from ctfake_jax.forensics import benign, edits, pairs, volumes
from ctfake_jax.forensics.pairs import CROP, PairFeed
from ctfake_jax.models.forensic_net import STRIDE


@pytest.fixture(scope='module')
def phantom():
  scanned = volume.series(seed=0, patient=3, slices=4, size=192, thickness_mm=5.0, scanners=('A',))
  return volumes.of_series(series_lib.of_simulated(scanned, 'phantom'), phantom=True)


@pytest.fixture
def undisturbed(monkeypatch):
  """Pairs without acquisition noise and harmless changes."""
  monkeypatch.setattr(pairs, 'HARMLESS', 0.0)
  monkeypatch.setattr(pairs, 'NOISE_BEFORE', 0.0)


def test_kinds_are_those_of_the_config():
  assert (*edits.KINDS, pairs.WHOLE) == names.EDIT_KINDS


def test_volumes_know_their_slices(phantom):
  assert phantom.hu.shape == (4, 192, 192)
  assert phantom.rows.tolist() == [0, 1, 2, 3]
  assert phantom.slab(0).shape == (1, 192, 192)  # at the end
  assert phantom.slab(1).shape == (3, 192, 192)
  assert all(phantom.lung[row][tuple(places.T)].all() for row, places in phantom.in_lung.items())


@pytest.mark.parametrize('kind', names.EDIT_KINDS)
def test_outside_of_what_counts_as_edited_hardly_anything_changes(phantom, undisturbed, kind):
  shown = 0
  for seed in range(3):
    pair = pairs.draw([phantom], (kind,), np.random.default_rng(seed))
    assert pair.edited.shape == pair.untouched.shape == (3, CROP, CROP)
    differs = np.abs(pair.edited[1].astype(int) - pair.untouched[1]) > pairs.CHANGED_HU * 4
    large = pair.shares.repeat(STRIDE, 0).repeat(STRIDE, 1)
    assert not differs[large == 0].any()
    shown += int(pair.shares.max())
  assert shown > 0


def test_batches_repeat_by_seed_and_step(phantom):
  feed = PairFeed([phantom], names.EDIT_KINDS, 2, seed=5)
  first, again, later = feed.batch(3), feed.batch(3), feed.batch(4)
  assert all((a == b).all() for a, b in zip(first, again))
  assert (first[0] != later[0]).any()


def test_edited_and_untouched_alternate(phantom):
  feed = PairFeed([phantom], ('lesion',), 8, seed=1)
  indices = next(feed.batch_indices(0))
  batch = feed.get_batch(feed.device_data, indices)
  assert batch['hu'].shape == (16, 3, CROP, CROP)
  assert (np.asarray(batch['shares'][1::2]) == 0).all()
  assert np.asarray(batch['shares'][::2]).max() == 1


@pytest.mark.parametrize('name', benign.CHANGES)
def test_a_harmless_change_is_the_same_for_both(name):
  """What is equal before is equal after: the change knows its random stream alone."""
  hu = np.random.default_rng(0).normal(-800, 30, (3, 64, 64)).astype(np.float32)
  change = benign.CHANGES[name]
  first, second = (change(hu.copy(), np.random.default_rng(4)) for _ in range(2))
  assert first.shape == hu.shape
  assert np.isfinite(first).all()
  assert (first == second).all()
  assert (first != hu).any()


def test_coarse_keeps_what_is_smooth():
  """A plane is a plane after averaging and interpolation, the border aside."""
  plane = np.add.outer(np.arange(64.0), 2 * np.arange(64.0))[None]
  found = edits.coarse(plane, 2.0, order=1)
  assert np.abs(found - plane)[:, 4:-4, 4:-4].max() < 2.0
