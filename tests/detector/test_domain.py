"""Whether an image belongs to what a detector was calibrated on: blind to fakery, not to looks."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ctfake_jax import config as config_lib
from ctfake_jax.config import resolve
from ctfake_jax.data.transforms import file_degradations
from ctfake_jax.detector import dataset as detector_dataset
from ctfake_jax.detector import domain
from ctfake_jax.tasks import detect

# One worker runs them all and so makes `parts` once.
pytestmark = pytest.mark.xdist_group('domain')


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
  """Reals, and fakes by the edits, of 300 phantom patients."""
  config = config_lib.defaults()
  config.task, config.phantom.patients, config.phantom.slices_per_patient = 'detector', 300, 1
  config.detection.families = ('blended', 'copied')
  config.detection.train_fakes_per_family = 100
  reals, _ = detector_dataset.originals(resolve(config))
  folder = tmp_path_factory.mktemp('domain')
  names = ('train', 'validation', 'conformal', 'test')
  return {
    name: detector_dataset.build_part(resolve(config), reals, None, name, folder) for name in names
  }


@pytest.fixture(scope='module')
def known(parts):
  return domain.fit_domain(parts['train'], parts['validation'], parts['conformal'].images, seed=0)


def outside(known, images):
  return known.scores(domain.features_of(images)) > known.limit


@given(seed=st.integers(0, 999), count=st.integers(2, 40))
@settings(deadline=None, max_examples=30)
def test_quantiles_are_numpys(seed, count):
  values = np.random.default_rng(seed).normal(size=(3, count)).astype(np.float32)
  found = domain._quantiles(jnp.asarray(values), domain.LEVELS)
  np.testing.assert_allclose(found, np.quantile(values, domain.LEVELS, axis=1).T, atol=1e-5)


def test_fine_texture_changes_no_feature():
  """A checkerboard, the strongest trace of upsampling, has mean 0 in every block."""
  smooth = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 16, 16, 1)).repeat(4, 1).repeat(4, 2)
  board = 0.3 * (-1.0) ** np.add.outer(np.arange(64), np.arange(64))[None, ..., None]
  a, b = (domain.features_of(x.astype(np.float32)) for x in (smooth, smooth + board))
  np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_originals_and_fakes_lie_inside_and_other_looks_outside(parts, known):
  test = parts['test']
  assert outside(known, test.images[~test.fake]).mean() <= 0.05
  assert outside(known, test.images[test.fake]).mean() <= 0.1
  elsewhere = domain.domain_randomized(test.images, seed=5)
  assert outside(known, elsewhere).mean() > 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
  'change',
  [lambda x: np.full_like(x, -1.0), lambda x: -x, lambda x: 0.4 * x - 0.6],
  ids=['black', 'inverted', 'another window'],
)
def test_what_is_no_such_picture_lies_outside(parts, known, change):
  assert outside(known, change(parts['test'].images)).mean() > 0.9


@pytest.mark.slow
def test_re_encoding_brings_nothing_inside(parts, known):
  elsewhere = domain.domain_randomized(parts['test'].images, seed=5)
  encoded = np.stack([2 * file_degradations.jpeg((x[..., 0] + 1) / 2, 75) - 1 for x in elsewhere])
  shares = [outside(known, x).mean() for x in (elsewhere, encoded[..., None])]
  assert shares[1] == pytest.approx(shares[0], abs=0.02)


@pytest.mark.slow
def test_a_look_changes_every_image(parts):
  images = parts['test'].images
  changed = domain.domain_randomized(images, seed=1)
  assert (np.abs(changed - images).max((1, 2, 3)) >= domain.LEAST_CHANGE).mean() > 0.98
  np.testing.assert_array_equal(changed, domain.domain_randomized(images, seed=1))


@pytest.mark.slow
def test_the_limit_is_beyond_fakes_that_the_score_has_not_seen(parts, known):
  """A generator whose fakes look unlike originals moves the limit: they are not all unsure."""
  validation = parts['validation']
  dark = validation.images.copy()
  dark[validation.fake] = (0.6 * dark[validation.fake] - 0.35).clip(-1, 1)
  moved = domain.fit_domain(
    parts['train'],
    dataclasses.replace(validation, images=dark),
    parts['conformal'].images,
    seed=0,
  )
  assert moved.limit > known.limit + 1
  assert outside(moved, dark[validation.fake]).mean() <= 0.15


@pytest.mark.slow
def test_another_site_has_a_domain_of_its_own(parts, known):
  site = (0.4 * parts['train'].of('real').images - 0.6).astype(np.float32)
  assert outside(known, site).mean() > 0.9
  own = domain.fit_site_domain(known, site[:60], seed=0)
  assert outside(own, site[60:]).mean() <= 0.05
  assert own.limit >= known.limit
  assert outside(own, parts['test'].images).mean() > 0.9


def test_most_of_a_batch_outside_is_said():
  assert detect.crowd_outside(10, 20) == ''
  assert detect.crowd_outside(4, 4) == ''
  assert '11 of 20 images are unlike' in detect.crowd_outside(11, 20)


def test_batches_are_told_apart_as_binomials_say():
  rng = np.random.default_rng(0)
  reals, fakes, foreign = (rng.random(5000) < share for share in (0.05, 0.2, 0.7))
  found = domain.batch_rates(reals, fakes, foreign, seed=0)
  ten = scipy.stats.binom.pmf(np.arange(11), 10, reals.mean())
  other = scipy.stats.binom.pmf(np.arange(11), 10, fakes.mean())
  expected = np.convolve(ten, other)[11:].sum()
  assert found['batch_false_alarms'] == pytest.approx(expected, abs=2e-3)
  power = scipy.stats.binom.sf(10, 20, foreign.mean())
  assert found['batch_power'] == pytest.approx(power, abs=0.02)
