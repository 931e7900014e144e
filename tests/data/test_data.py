"""Preprocessing against hand-computed values, splits that do not leak, batches, augmentation."""

import dataclasses
import io

import hypothesis
import jax
import numpy as np
import pytest
from conftest import make_images
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from ctfake_jax.config import resolve
from ctfake_jax.data import dataset, fingerprints, splits
from ctfake_jax.data.fingerprints import Fingerprints
from ctfake_jax.data.preprocess import Preprocess, to_uint8
from ctfake_jax.data.sources import image_folder
from ctfake_jax.data.transforms import augment
from ctfake_jax.evaluation import baselines
from ctfake_jax.types import Plane, Record, Slice, UnreadableImageError, UserError


def view(size=4, aspect='crop'):
  return Preprocess(size, window_center_hu=-600.0, window_width_hu=1500.0, aspect=aspect)


def test_window_maps_its_edges_and_clips():
  # Lung window -600/1500: from -1350 to 150 HU.
  hu = np.float32([[-2000, -1350], [-600, 150]])
  seen = view(2)(Slice(hu, 'HU', 1.0))[..., 0]
  np.testing.assert_allclose(seen, [[-1, -1], [0, 1]], atol=1e-6)


@hypothesis.given(st.floats(-1350, 150))
def test_window_has_an_inverse_inside(hu):
  image = Slice(np.full((4, 4), hu, np.float32), 'HU', 1.0)
  np.testing.assert_allclose(view().to_hu(view()(image)), hu, atol=1e-3)


def test_grey_passes_without_a_window():
  seen = view(2)(Slice(np.float32([[0, 0.25], [0.5, 1]]), 'grey', None))
  np.testing.assert_allclose(seen[..., 0], [[-1, -0.5], [0, 1]])


def test_aspect_is_cropped_letterboxed_or_stretched():
  wide = np.tile(np.float32([0, 1, 1, 0]), (2, 1))
  np.testing.assert_array_equal(view(2)(Slice(wide, 'grey', None))[..., 0], np.ones((2, 2)))
  boxed = view(4, 'letterbox')(Slice(np.ones((2, 4), np.float32), 'grey', None))[..., 0]
  np.testing.assert_array_equal(boxed, [[-1] * 4, [1] * 4, [1] * 4, [-1] * 4])
  halves = np.tile(np.float32([0, 0, 1, 1]), (2, 1))
  stretched = view(2, 'stretch')(Slice(halves, 'grey', None))[..., 0]
  np.testing.assert_allclose(stretched, [[-1, 1]] * 2, atol=0.3)


def test_resizing_does_not_alias():
  stripes = np.tile(np.float32([0, 1]), (64, 32))
  np.testing.assert_allclose(view(8)(Slice(stripes, 'grey', None)), 0, atol=0.05)


def test_uint8_rounds():
  np.testing.assert_array_equal(to_uint8(np.float32([-1, 0, 1, 2])), [0, 128, 255, 255])


def test_patients_never_cross_parts(images, tiny_config):
  parts = splits.split(images, resolve(tiny_config).split, 0)
  owners = [
    {images.records[i].patient_id for i in rows} for rows in (parts.train, parts.val, parts.test)
  ]
  assert sum(len(names) for names in owners) == len(set.union(*owners))
  everyone = np.sort(np.concatenate([parts.train, parts.val, parts.test]))
  np.testing.assert_array_equal(everyone, np.arange(len(images)))


def test_folds_test_every_image_once(images, tiny_config):
  tiny_config.split.folds = 3
  tested = [splits.split(images, resolve(tiny_config).split, fold).test for fold in range(3)]
  np.testing.assert_array_equal(np.sort(np.concatenate(tested)), np.arange(len(images)))


def test_near_duplicates_share_a_group(images, tiny_config):
  twins = dataclasses.replace(
    images, records=tuple(dataclasses.replace(r, patient_id=None) for r in images.records)
  )
  rng = np.random.default_rng(0)
  distinct = rng.normal(size=(24, 16, 16, 1)).astype(np.float32)
  twins.images[0::2] = distinct
  twins.images[1::2] = distinct + 0.01 * rng.normal(size=distinct.shape)
  tiny_config.split.by = 'duplicates'
  by, groups = splits.group(twins, resolve(tiny_config).split)
  assert by == 'duplicates'
  np.testing.assert_array_equal(groups[0::2], groups[1::2])
  assert len(set(groups)) == 24


def test_a_prescribed_split_is_kept(images, tiny_config):
  names = np.repeat(np.resize(['train', 'val', 'test', 'train', 'train'], 24), 2)
  records = tuple(dataclasses.replace(r, split=str(n)) for r, n in zip(images.records, names))
  parts = splits.split(dataclasses.replace(images, records=records), resolve(tiny_config).split, 0)
  assert parts.by == 'given'
  assert {records[i].split for i in parts.test} == {'test'}
  assert {records[i].split for i in parts.val} == {'val'}


def test_one_image_without_patient_does_not_turn_the_grouping_off(images, tiny_config):
  records = list(images.records)
  records[5] = dataclasses.replace(records[5], patient_id=None)
  tiny_config.split.by = 'auto'
  with pytest.raises(UserError, match=r'5\.png and 0 more images have no patient'):
    splits.split(dataclasses.replace(images, records=tuple(records)), resolve(tiny_config).split, 0)


@pytest.mark.parametrize(
  ('folds', 'words'), [(3, 'split.folds = 3'), (0, 'not both train and test')]
)
def test_a_prescribed_split_is_never_ignored(folds, words, images, tiny_config):
  records = tuple(dataclasses.replace(r, split='train') for r in images.records)
  tiny_config.split.folds = folds
  with pytest.raises(UserError, match=words):
    splits.split(dataclasses.replace(images, records=records), resolve(tiny_config).split, 0)


def test_patient_split_without_patients_is_refused(images, tiny_config):
  unknown = tuple(dataclasses.replace(r, patient_id=None) for r in images.records)
  with pytest.raises(UserError, match='knows no patients'):
    splits.split(dataclasses.replace(images, records=unknown), resolve(tiny_config).split, 0)


def test_baselines_are_pooled_over_folds(images, tiny_config):
  tiny_config.split.folds = 3
  folds = [splits.split(images, resolve(tiny_config).split, fold) for fold in range(3)]
  rows = baselines.measure(images, folds, resolve(tiny_config).split, seed=0)
  assert rows['nearest_neighbour']['n'] == rows['leak_audit']['test_images'] == len(images)


def test_random_labels_stay_with_their_patient_and_tell_nothing_else(tiny_config):
  images = make_images(400)
  random = splits.with_random_labels(images, resolve(tiny_config).split)
  np.testing.assert_array_equal(random.labels[0::2], random.labels[1::2])
  agreement = (random.labels == images.labels).mean()
  assert 0.35 < agreement < 0.65
  assert [record.label for record in random.records] == random.labels.tolist()


def test_a_leaky_split_shows_its_accuracy(tiny_config):
  """With labels that tell nothing of a picture a neighbour is right by knowing the patient."""
  images = splits.with_random_labels(make_images(400), resolve(tiny_config).split)
  own = np.random.default_rng(0).normal(0, 0.3, (200, *images.images.shape[1:]))
  alike = np.clip(images.images + np.repeat(own, 2, axis=0), -1, 1).astype(np.float32)
  images = dataclasses.replace(images, images=alike)

  def right(by):
    tiny_config.split.by = by
    parts = splits.split(images, resolve(tiny_config).split, 0)
    found = baselines.measure(images, [parts], resolve(tiny_config).split, seed=0)
    return found['nearest_neighbour'], found['leak_audit']

  leaky, audit = right('slice')
  assert leaky['accuracy'] > 0.8  # where the twin is in the training part
  assert audit['shared_patients'] > 50
  honest, audit = right('patient')
  assert 0.3 < honest['accuracy'] < 0.7
  assert audit['shared_patients'] == 0


def test_the_leak_audit_finds_a_planted_copy(images, tiny_config):
  parts = splits.split(images, resolve(tiny_config).split, 0)

  def exact_duplicates():
    fingerprints = Fingerprints.of(images)
    return splits.leak_audit(images, fingerprints, parts, 0.9999)['exact_duplicates']

  assert exact_duplicates() == 0
  images.images[parts.test[0]] = images.images[parts.train[0]]
  assert exact_duplicates() == 1


def test_pictures_under_two_classes_are_counted_and_named(images, tiny_config, capsys):
  parts = splits.split(images, resolve(tiny_config).split, 0)
  one, other = (int(np.nonzero(images.labels == label)[0][0]) for label in (0, 1))

  def found():
    rows = baselines.measure(images, [parts], resolve(tiny_config).split, seed=0)
    return rows['leak_audit']['contradictions']

  assert found() == 0
  assert 'another class' not in capsys.readouterr().out
  images.images[one] = images.images[other]
  assert found() == 2
  assert '2 images are found under another class' in capsys.readouterr().out


def chests(count: int, side: int = 96) -> np.ndarray:
  """Smooth slices f32[n, side, side] in [0, 1], each of its own."""
  rng = np.random.default_rng(5)
  noise = ndimage.gaussian_filter(rng.normal(size=(count, side, side)), (0, 5, 5))
  return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def through_jpeg(grey: np.ndarray) -> np.ndarray:
  file = io.BytesIO()
  Image.fromarray(np.uint8(grey * 255)).save(file, 'JPEG', quality=60)
  return np.asarray(Image.open(file), np.float32) / 255


@pytest.mark.parametrize(
  'change',
  [through_jpeg, lambda grey: grey[2:-2, 3:-1], lambda grey: grey[:-5, 5:], np.copy],
  ids=['jpeg', 'crop', 'corner', 'copy'],
)
def test_near_copies_under_two_classes_are_counted(tiny_config, capsys, change):
  slices = chests(24)
  tiny_config.split.by = 'slice'

  def found(pictures):
    seen = [view(32)(Slice(np.float32(grey), 'grey', None)) for grey in pictures]
    images = dataclasses.replace(make_images(24), images=np.stack(seen))
    parts = splits.split(images, resolve(tiny_config).split, 0)
    rows = baselines.measure(images, [parts], resolve(tiny_config).split, seed=0)
    return rows['leak_audit']['near_contradictions']

  assert found(slices) == 0
  assert 'nearly the same' not in capsys.readouterr().out
  # Images 0, 1 are of class 0, images 2, 3 of class 1.
  assert found([*slices[:2], change(slices[0]), *slices[3:]]) == 2
  exact = change is np.copy
  assert ('2 images are nearly the same' in capsys.readouterr().out) != exact


@pytest.mark.parametrize('by', ['auto', 'patient'])
def test_one_patient_id_for_all_is_said(images, tiny_config, by):
  records = tuple(dataclasses.replace(r, patient_id='a') for r in images.records)
  tiny_config.split.by = by
  with pytest.raises(UserError, match=r'all 48 images bear one patient ID.*split\.by=duplicates'):
    splits.split(dataclasses.replace(images, records=records), resolve(tiny_config).split, 0)


def test_classes_that_differ_by_case_or_spelling_are_remarked(capsys):
  source = Broken()
  source.class_names = ('Covid', 'covid ', 'non_covid', 'Non-Covid', 'A+', 'A-')
  source.records = tuple(Record(i, None, f'{i}.png') for i in (0, 0, 1, 2, 3, 4, 5))
  dataset.gather(source, view())
  said = capsys.readouterr().out
  assert "'Covid', 'covid ' differ by case or spelling alone" in said
  assert "'non_covid', 'Non-Covid' differ" in said
  assert said.count('careful') == 2


def test_baselines_see_the_format_of_files(images, tiny_config, tmp_path):
  """Pictures of one size, those of a class stored as JPEG."""
  records = tuple(dataclasses.replace(r, path=r.provenance) for r in images.records)
  images = dataclasses.replace(images, records=records)
  for record in records:
    kind = 'JPEG' if record.label else 'PNG'
    Image.new('L', (16, 16)).save(tmp_path / record.path, kind)
  parts = splits.split(images, resolve(tiny_config).split, 0)
  asked = images, [parts], resolve(tiny_config).split
  assert baselines.measure(*asked, seed=0)['file_facts']['accuracy'] <= 0.75
  assert baselines.measure(*asked, seed=0, root=tmp_path)['file_facts']['accuracy'] == 1


def test_baselines_see_what_they_should(images, tiny_config):
  parts = splits.split(images, resolve(tiny_config).split, 0)
  rows = baselines.measure(images, [parts], resolve(tiny_config).split, seed=0)
  assert rows['nearest_neighbour']['accuracy'] == 1.0
  assert rows['file_facts']['accuracy'] <= 0.75
  images.native_sizes[images.labels == 1] += 7
  assert (
    baselines.measure(images, [parts], resolve(tiny_config).split, seed=0)['file_facts']['accuracy']
    == 1
  )


class Broken:
  """Three images, of which the second cannot be decoded."""

  class_names = ('a', 'b')
  records = tuple(Record(i % 2, None, f'{i}.png') for i in range(4))
  unreadable = (UnreadableImageError('x.png', 'not an image'),)

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    if index == 1:
      raise UnreadableImageError('1.png', 'truncated')
    return Slice(np.zeros((4, 4), np.float32), 'grey', None)


def test_unreadable_images_are_listed():
  images = dataset.gather(Broken(), view())
  assert len(images) == 3
  assert [e.path for e in images.unreadable] == ['x.png', '1.png']


def test_a_spacing_without_a_place_is_kept():
  class Spaced(Broken):
    def __getitem__(self, index):
      return Slice(np.zeros((4, 8), np.float32), 'HU', 0.5 if index else None)

  images = dataset.gather(Spaced(), view())
  assert [record.plane for record in images.records] == [None, *[Plane((4, 8), (0.5, 0.5))] * 3]
  assert fingerprints.identity(images, view(2, 'stretch'))['spacing_mm'] == [1, 2]
  assert fingerprints.identity(images.take(np.array([0])), view(2))['spacing_mm'] is None


def test_a_class_without_readable_images_is_refused():
  source = Broken()
  source.records = tuple(Record(int(i == 1), None, f'{i}.png') for i in range(4))
  with pytest.raises(UserError, match="class 'b' has no readable image"):
    dataset.gather(source, view())


def augmented(config, key=0, images=None):
  images = make_images(4).images if images is None else images
  return np.asarray(augment.augment(images, jax.random.key(key), resolve(config).augment))


def test_augmentation_of_nothing_is_the_identity(tiny_config):
  for name in ('shift', 'scale', 'rotate_degrees', 'intensity'):
    tiny_config.augment[name] = 0.0
  np.testing.assert_allclose(augmented(tiny_config), make_images(4).images, atol=1e-5)


def test_augmentation_is_seeded_and_bounded(tiny_config):
  np.testing.assert_array_equal(augmented(tiny_config), augmented(tiny_config))
  assert np.abs(augmented(tiny_config) - augmented(tiny_config, key=1)).max() > 0.01
  assert np.abs(augmented(tiny_config)).max() <= 1


def test_sharp_images_move_by_whole_pixels(tiny_config):
  tiny_config.augment.integer_shift_fraction = 1.0
  tiny_config.augment.intensity = 0.0
  images = np.asarray(jax.random.normal(jax.random.key(0), (64, 16, 16, 1))).clip(-1, 1)
  moved = augmented(tiny_config, images=images)
  assert not np.array_equal(moved, images)
  for before, after in zip(images, moved):
    assert set(after.ravel()) <= set(before.ravel())


def test_no_image_is_kept_sharp_by_default(tiny_config):
  images = np.asarray(jax.random.uniform(jax.random.key(0), (500, 8, 8, 1)))
  tiny_config.augment.intensity = 0.0
  moved = augmented(tiny_config, images=images)
  assert not any(set(a.ravel()) <= set(b.ravel()) for a, b in zip(moved, images))


def test_the_share_of_sharp_images_is_as_asked(tiny_config):
  tiny_config.augment.integer_shift_fraction = 0.25
  images = np.asarray(jax.random.uniform(jax.random.key(0), (2000, 8, 8, 1)))
  tiny_config.augment.intensity = 0.0
  sharp = [
    set(after.ravel()) <= set(before.ravel())
    for before, after in zip(images, augmented(tiny_config, images=images))
  ]
  assert np.mean(sharp) == pytest.approx(0.25, abs=0.05)


def test_a_flip_mirrors_left_and_right(tiny_config):
  for name in ('shift', 'scale', 'rotate_degrees', 'intensity'):
    tiny_config.augment[name] = 0.0
  tiny_config.augment.flip = True
  images = make_images(16).images
  got = augmented(tiny_config, images=images)
  flipped = [np.allclose(g, i[:, ::-1], atol=1e-5) for g, i in zip(got, images)]
  kept = [np.allclose(g, i, atol=1e-5) for g, i in zip(got, images)]
  assert all(f or k for f, k in zip(flipped, kept))
  assert any(flipped)
  assert any(kept)


def test_mixup_keeps_targets_a_distribution():
  targets = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
  mixed, mixed_targets = augment.mixup(make_images(4).images, targets, jax.random.key(0), 0.4)
  np.testing.assert_allclose(mixed_targets.sum(1), 1, atol=1e-6)
  assert mixed.shape == (4, 16, 16, 1)


def test_the_discriminators_view_has_gradients(tiny_config):
  images = make_images(4).images
  gradient = jax.grad(lambda x: augment.discriminator_view(x, jax.random.key(0)).sum())(images)
  assert np.isfinite(gradient).all()
  assert (np.abs(gradient) > 0).mean() > 0.3


def test_the_discriminators_view_keeps_grey_values():
  images = make_images(8).images
  seen = np.asarray(augment.discriminator_view(images, jax.random.key(0)))
  assert (seen != images).any()
  for image, view_of_it in zip(images, seen):
    assert np.isin(view_of_it, np.append(image, 0)).all()


def test_the_discriminators_shift_moves_pixels_and_leaves_zeros():
  images = np.ones((64, 16, 16, 1), np.float32)
  draws = np.linspace(0, 1, 64, endpoint=False, dtype=np.float32)[:, None]
  moved = np.asarray(augment._shifted(images, draws, axis=1))[:, :, 0, 0]
  filled = moved.sum(1)
  assert filled.min() == 14
  assert filled.max() == 16
  assert set(np.unique(moved)) == {0.0, 1.0}


def test_masks_among_the_images_of_a_class_are_refused_whatever_their_names(tmp_path):
  rng = np.random.default_rng(0)
  for i in range(9):
    for name in 'ab':
      mask = name == 'b' and i % 3 == 0
      pixels = 255 * (rng.random((16, 16)) < 0.3) if mask else rng.integers(0, 255, (16, 16))
      (tmp_path / name).mkdir(exist_ok=True)
      Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f'{i}.png')
  source = image_folder.FolderSource(tmp_path, max_pixels=1000)
  with pytest.raises(UserError, match=r"class 'b': 3 of 9 images have two grey values only"):
    dataset.gather(source, view(16))


def test_prescribed_parts_without_a_training_part_are_refused(images, tiny_config):
  records = tuple(
    dataclasses.replace(r, split='test' if i % 4 == 0 else 'val')
    for i, r in enumerate(images.records)
  )
  with pytest.raises(UserError, match='not both train and test'):
    splits.split(dataclasses.replace(images, records=records), resolve(tiny_config).split, 0)
