"""From frames to scores: neighbours, places, evidence over slices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctfake_jax.config.keys import ForensicsConfig
from ctfake_jax.data.sources.native import Frame, Header
from ctfake_jax.forensics import examine, series, trial
from ctfake_jax.forensics.examine import NO_LUNG, TOO_SMALL, Examined
from ctfake_jax.models import forensic_net, initializers, registry
from ctfake_jax.models.forensic_net import STRIDE
from ctfake_jax.models.ops import platform


@pytest.fixture(scope='module')
def network():
  model = registry.forensic_net(ForensicsConfig(width=4))
  hu = jax.ShapeDtypeStruct((1, 3, 128, 128), np.float32)
  present = jax.ShapeDtypeStruct((1, 3), bool)
  return model, initializers.variables(model, jax.random.key(0), hu, present, train=False)


def chest(noise=20.0, seed=0, size=128):
  """Tissue with two lungs, HU."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:size, :size] / size
  hu = np.full((size, size), -1000.0)
  hu[((y - 0.5) / 0.4) ** 2 + ((x - 0.5) / 0.47) ** 2 < 1] = 30
  for middle in (0.28, 0.72):
    hu[((y - 0.5) / 0.3) ** 2 + ((x - middle) / 0.16) ** 2 < 1] = -850
  return (hu + noise * rng.normal(size=hu.shape)).astype(np.float32)


def frame(hu, height=0.0, name='a', spacing=(2.8, 2.8)):
  return Frame(Header(f'{name}{height:g}', series=name, height_mm=height, spacing_mm=spacing), hu)


def test_what_cannot_be_judged_is_named_in_its_place(network):
  frames = [
    frame(chest(), 0),
    Frame(Header('broken', reason='no'), None),
    frame(np.full((64, 64), -1000, np.float32), 2),
    frame(np.full((128, 128), 30, np.float32), 4),
  ]
  found = list(examine.examine(examine.network_maps(*network), frames))
  assert isinstance(found[0], Examined)
  assert [each.reason for each in found[1:]] == ['no', TOO_SMALL, NO_LUNG]


def test_neighbours_are_of_one_series_and_near(network, monkeypatch):
  seen = []
  judge = examine._judge

  def spying(maps, slabs):
    seen.extend(slab.present.all() for slab in slabs)
    yield from judge(maps, slabs)

  monkeypatch.setattr(examine, '_judge', spying)
  heights = [0, 5, 10, 30, 35, 40]
  frames = [frame(chest(seed=int(h)), h) for h in heights] + [frame(chest(), 45, 'b')]
  assert len(list(examine.examine(examine.network_maps(*network), frames))) == 7
  assert seen == [False, True, False, False, True, False, False]


def test_the_peak_is_a_pixel_of_the_lung(network):
  (found,) = examine.examine(examine.network_maps(*network), [frame(chest(), 0)])
  row, column = found.peak
  assert found.lung[row // STRIDE, column // STRIDE]
  assert found.score == found.logits[row // STRIDE, column // STRIDE]
  assert found.logits[found.lung].max() == found.score


def test_sides_that_are_no_multiple_of_eight_are_judged(network):
  (found,) = examine.examine(examine.network_maps(*network), [frame(chest(size=132)[:, :130], 0)])
  assert found.logits.shape == (33, 33)


@given(
  st.integers(16, 70), st.integers(16, 70), st.integers(0, 500), st.integers(0, 500),
  st.integers(1, 300), st.integers(1, 300),
)  # fmt: skip
def test_the_box_holds_the_lung_and_fits_the_slice(rows, columns, top, left, height, width):
  lung = np.zeros((8 * rows, 8 * columns), bool)
  top, left = min(top, 8 * rows - 1), min(left, 8 * columns - 1)
  lung[top : top + height, left : left + width] = True
  box = examine._box(lung)
  assert lung[box].sum() == lung.sum()
  for part, total in zip(box, lung.shape):
    assert 0 <= part.start < part.stop <= total
    assert part.start % 8 == part.stop % 8 == 0
    assert (part.stop - part.start) % examine.STEP == 0 or part.stop - part.start == total


def test_far_from_the_lung_nothing_is_looked_at(network):
  hu = np.full((512, 128), -1000, np.float32)
  hu[:128] = chest()
  (found,) = examine.examine(examine.network_maps(*network), [frame(hu, 0)])
  assert found.logits.shape == (128, 32)
  assert (found.logits[40:] == examine.UNSEEN).all()
  assert (found.logits[found.lung] > examine.UNSEEN).all()


def test_nothing_of_headers_enters_a_score(network):
  plain, other = (
    next(iter(examine.examine(examine.network_maps(*network), [f])))
    for f in (frame(chest(), 0), frame(chest(), 70.0, 'other', (3.0, 3.0)))
  )
  np.testing.assert_array_equal(plain.logits, other.logits)


def test_maps_move_with_what_they_show(network):
  """By a multiple of the coarsest stage's step, away from the border."""
  wide = np.repeat(chest(size=192)[None, None], 3, 1)
  present = np.array([[True] * 3])
  moved = np.roll(wide, (16, 8), (2, 3))
  # Both have the same noise level, being the same pixels.
  first, second = (np.asarray(examine.smooth_map(*network, x, present))[0] for x in (wide, moved))
  inner = slice(18, 30)
  np.testing.assert_allclose(
    second[18 + 4 : 30 + 4, 18 + 2 : 30 + 2], first[inner, inner], atol=1e-2
  )


def test_own_forms_of_convolution_give_what_plain_ones_give(network):
  hu = np.repeat(chest()[None, None], 3, 1)
  present = jnp.array([[True] * 3])
  model, variables = network

  def run():
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, present, train=False))(variables, hu))

  ours = run()
  with platform.reference_ops(True):
    plain = run()
  np.testing.assert_allclose(ours, plain, atol=1e-3)


def test_second_moments_know_white_noise_and_copies():
  """White noise less its binomial mean: closed forms of power and correlation."""
  rng = np.random.default_rng(0)
  hu = (-800 + 20 * rng.normal(size=(1, 3, 256, 256))).astype(np.float32)
  hu[:, 2] = hu[:, 1]
  found = forensic_net.second_moments(jnp.asarray(hu), jnp.array([[True] * 3]))
  inner = np.moveaxis(np.asarray(found)[0, 4:-4, 4:-4], -1, 0)
  power, _, _, right, below, before, after = inner
  kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
  fine = -kernel.copy()
  fine[1, 1] += 1
  variance = (fine**2).sum()
  shifted = (np.pad(fine, 2)[:, 1:] * np.pad(fine, 2)[:, :-1]).sum()
  assert np.mean(np.exp(2 * power)) == pytest.approx(variance, rel=0.05)  # of 20 HU
  assert np.mean(right) == pytest.approx(shifted / variance, abs=0.03)
  assert np.mean(below) == pytest.approx(shifted / variance, abs=0.03)
  assert np.mean(before) == pytest.approx(0, abs=0.03)
  assert np.mean(after) == pytest.approx(1, abs=0.03)


def examined(logits, height=0.0, name='a'):
  logits = np.asarray(logits, np.float32)
  lung = np.ones(logits.shape, bool)
  score, peak = examine.highest(logits, lung)
  header = Header(f'{name}{height:g}', series=name, height_mm=height, spacing_mm=(1.0, 1.0))
  hu = np.zeros((logits.shape[0] * STRIDE, logits.shape[1] * STRIDE), np.float32)
  return Examined(header, hu, logits, lung, score, peak, np.zeros(5))


def maps(*places):
  """One map a slice, 5 at its place, if any, else -5."""
  found = np.full((len(places), 8, 8), -5.0)
  for z, place in enumerate(places):
    if place is not None:
      found[z][place] = 5.0
  return found


def evidence(stack, step=2.0, limit=0.0):
  slices = [examined(m, step * z) for z, m in enumerate(stack)]
  return [e for e in series.gather(slices, limit) if isinstance(e, series.Evidence)]


def test_evidence_that_hangs_together_outweighs_what_does_not():
  (together,) = evidence(maps(None, (3, 3), (3, 3), (3, 3), None))
  (apart,) = evidence(maps(None, (3, 3), (6, 1), (1, 6), None))
  assert together.score == 5.0
  assert apart.score == 0.0
  assert together.peak == ('a4', 3 * STRIDE + 2, 3 * STRIDE + 2)
  assert together.slices == 5


def test_volumes_are_areas_over_steps():
  """One square of 4 x 4 mm on three slices: trapezoids of 0, 16, 16, 16, 0 mm2, 2 mm apart."""
  (found,) = evidence(maps(None, (3, 3), (3, 3), (3, 3), None))
  assert found.volume_mm3 == pytest.approx(16 * 2 * 3)


def test_slices_far_apart_are_no_series():
  (found,) = evidence(maps((3, 3), (3, 3), (3, 3)), step=50.0)
  assert not found.judged
  assert found.slices == 3


def test_every_series_is_closed_once():
  slices = [
    examined(m, 2.0 * z, name) for name in 'ab' for z, m in enumerate(maps(None, None, None))
  ]
  found = list(series.gather([*slices, Header('x', reason='no')]))
  assert [type(e).__name__ for e in found].count('Evidence') == 2
  assert [e.series for e in found if isinstance(e, series.Evidence)] == ['a', 'b']


def test_location_ranks_an_edited_place():
  logits = np.full((40, 40), -5.0)
  logits[10:12, 10:12] = 5.0
  each = examined(logits)
  hit = trial.location(each, (44.0, 44.0))
  assert (hit['auroc'], hit['pointed']) == (1.0, 1.0)
  missed = trial.location(each, (130.0, 130.0))
  assert missed['pointed'] == 0.0
  assert missed['auroc'] < 0.5
  flat = dataclasses.replace(each, logits=np.zeros((40, 40), np.float32))
  assert trial.location(flat, (44.0, 44.0))['auroc'] == 0.5
