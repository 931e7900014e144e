"""Fakes come in the class mix of their reference, whatever it is."""

import numpy as np
import pytest
from conftest import make_images
from hypothesis import given
from hypothesis import strategies as st

from ctfake_jax.data.class_mix import class_counts, counts_in_mix, labels_in_mix, rows_in_mix
from ctfake_jax.fakes import families as fakes
from ctfake_jax.inference import generator as sampling
from ctfake_jax.models import dcgan

MIXES = st.lists(st.integers(0, 1000), min_size=1, max_size=8).filter(any)


@given(mix=MIXES, count=st.integers(0, 5000))
def test_counts_differ_from_exact_shares_by_less_than_one(mix, count):
  counts = counts_in_mix(np.array(mix), count)
  exact = count * np.array(mix) / sum(mix)
  assert counts.sum() == count
  assert (np.abs(counts - exact) < 1).all()
  assert not counts[np.array(mix) == 0].any()


def test_remainders_go_to_the_largest():
  # Hamilton's method, by hand: 1.6, 1.0, 0.4 of three.
  assert counts_in_mix(np.array([8, 5, 2]), 3).tolist() == [2, 1, 0]


def test_labels_are_those_counts():
  labels = labels_in_mix(np.array([3, 0, 1]), 8)
  assert labels.tolist() == [0] * 6 + [2] * 2
  assert labels.dtype == np.int32


def test_a_reference_without_images_is_refused():
  with pytest.raises(ValueError, match='no image'):
    counts_in_mix(np.zeros(3), 5)


@given(seed=st.integers(0, 2**31 - 1), count=st.integers(1, 200))
def test_rows_are_in_their_own_mix_and_each_as_often_as_others(seed, count):
  labels = np.repeat([0, 1, 4], [30, 12, 6])
  rows = rows_in_mix(labels, count, seed)
  assert len(rows) == count
  np.testing.assert_array_equal(
    class_counts(labels[rows], 5), counts_in_mix(class_counts(labels, 5), count)
  )
  for label in (0, 1, 4):
    often = np.bincount(rows, minlength=len(labels))[labels == label]
    assert often.max() - often.min() <= 1


def test_fakes_of_reals_are_in_their_mix():
  reals = make_images(40, size=32)
  rare = reals.take(np.flatnonzero((reals.labels == 0) | (np.arange(40) < 8)))
  made = fakes.from_reals('copied', None, rare, 12, seed=3)
  expected = counts_in_mix(class_counts(rare.labels, 2), 12)
  np.testing.assert_array_equal(class_counts(made.labels, 2), expected)


def test_batch_statistics_are_of_the_mix_learnt_from(monkeypatch):
  seen = []

  def statistics(generator, variables, latent, labels):
    seen.append(np.asarray(labels))
    return variables['batch_stats']

  monkeypatch.setattr(sampling, '_batch_statistics', statistics)
  variables = {'params': {}, 'batch_stats': {'mean': np.zeros(1)}}
  sampling.make_sampler(dcgan.Generator(32), variables, 4, np.array([70, 20, 10]))
  labels = np.concatenate(seen)
  expected = counts_in_mix(np.array([70, 20, 10]), len(labels))
  np.testing.assert_array_equal(class_counts(labels, 3), expected)
  # Every batch has some of each: its statistics are those of the mix.
  assert all(len(np.unique(batch)) == 3 for batch in seen)
