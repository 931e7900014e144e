"""The fall: the best classifier on deepfakes, beside what harmless changes do to it.

Originals and deepfakes meet the classifier in the same size, range and 8-bit rounding. Deepfakes
are independent of each other; originals come in groups (patients or near-duplicates).
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Shaped

from ctfake_jax.config.keys import Config
from ctfake_jax.data import dataset, splits
from ctfake_jax.data.splits import Split
from ctfake_jax.data.transforms import controls
from ctfake_jax.evaluation import accuracy_drop, metrics, ood_scores
from ctfake_jax.inference import classifier as inference
from ctfake_jax.runtime import streams
from ctfake_jax.types import Images, ImageSet

# The scanner that the default phantom leaves out.
OTHER_SCANNER = 'D'


@dataclasses.dataclass(frozen=True)
class GeneratedTestSet:
  """Deepfakes with the classes asked for, and the originals they stand against."""

  deepfakes: Images
  originals: ImageSet
  parts: Split

  @property
  def test(self) -> ImageSet:
    """Held-out originals, rounded to 8 bits as the deepfakes are."""
    held_out = self.originals.take(self.parts.test)
    return dataclasses.replace(held_out, images=controls.through_png(held_out.images))

  @property
  def test_groups(self) -> Shaped[np.ndarray, ' n']:
    """Of the held-out originals."""
    return self.parts.groups[self.parts.test]


def measure_fall(best: inference.Trained, generated: GeneratedTestSet, config: Config) -> dict:
  """Keys `originals`, `deepfakes`, `fall`, `controls`, `per_image` of results.json."""
  test, groups, deepfakes = generated.test, generated.test_groups, generated.deepfakes
  on_test, features_test = inference.logits_and_features(best.model, best.variables, test.images)
  on_fakes, features_fakes = inference.logits_and_features(
    best.model, best.variables, deepfakes.images
  )
  right_test = on_test.argmax(-1) == test.labels
  right_fakes = on_fakes.argmax(-1) == deepfakes.labels
  others = splits.halves(test.labels, groups, streams.seed(config.seed, 'halves'))
  changed = {
    name: _right(best, images, test.labels[others])
    for name, images in harmless_changes(generated, others, config).items()
  }
  fall, controls_fall = accuracy_drop.trial(
    right_test, groups, others, right_fakes, changed, seed=config.seed
  )
  reference = right_test[~others], groups[~others]
  fall['required_sample_size'] = accuracy_drop.required_sample_size(
    float(np.mean(reference[0])), accuracy_drop.worth(*reference)
  )
  originals = _report(on_test, test.labels, groups, best.class_names)
  above_chance = originals['ci95'][0] > float(np.max(np.bincount(test.labels)) / len(test))
  verdict = accuracy_drop.verdict(fall, controls_fall, above_chance=above_chance)
  return {
    'originals': originals,
    'deepfakes': {
      'count': len(right_fakes),
      'count_per_class': _counts(deepfakes.labels, best.class_names),
      **_report(on_fakes, deepfakes.labels, np.arange(len(right_fakes)), best.class_names),
    },
    'fall': {**fall, 'verdict': verdict},
    'controls': {
      **{name: _control(result) for name, result in controls_fall.items()},
      **random_labels(best, generated, config),
    },
    'per_image': _per_image(best, generated, (on_test, features_test), (on_fakes, features_fakes)),
  }


def harmless_changes(
  generated: GeneratedTestSet, rows: Shaped[np.ndarray, ' m'], config: Config
) -> dict[str, Float[np.ndarray, 'n h w 1']]:
  """The held-out originals at `rows` as they are, and after each change that keeps them real."""
  images = generated.test.images[rows]
  changed = {
    'unchanged': images,
    **{
      name: controls.through_png(change(images, config.seed))
      for name, change in controls.CONTROLS.items()
    },
  }
  if config.data.source == 'phantom':
    changed['other_scanner'] = _on_other_scanner(config, generated)[rows]
  return changed


def _control(result: dict) -> dict:
  """A row of results.json: accuracy after the change, and its fall."""
  return {**result['tested'], **{key: result[key] for key in ('points', 'ci99', 'p_value')}}


def random_labels(
  best: inference.Trained, generated: GeneratedTestSet, config: Config
) -> dict[str, dict]:
  """Accuracy on the deepfakes when the labels asked for are shuffled: what chance gives."""
  rng, rows = streams.generator(config.seed, 'shuffled labels'), {}
  for i in range(config.study.label_shuffles):
    shuffled = rng.permutation(generated.deepfakes.labels)
    right = _right(best, generated.deepfakes.images, shuffled)
    rows[f'fakes_random_labels_{i + 1}'] = metrics.accuracy_row(right, np.arange(len(right)))
  return rows


def _on_other_scanner(config: Config, generated: GeneratedTestSet) -> np.ndarray:
  """The test patients, scanned on a machine that the training never saw."""
  phantom = dataclasses.replace(config.phantom, scanners=(OTHER_SCANNER,))
  other, _ = dataset.load(dataclasses.replace(config, phantom=phantom))
  return controls.through_png(other.images[generated.parts.test])


def _right(best: inference.Trained, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
  return inference.logits_and_features(best.model, best.variables, images)[0].argmax(-1) == labels


def _report(logits, labels, groups, class_names) -> dict:
  return metrics.classification_report(
    labels, inference.softmax(logits), groups=groups, class_names=class_names
  )


def _counts(labels: np.ndarray, class_names: tuple[str, ...]) -> dict[str, int]:
  return dict(zip(class_names, np.bincount(labels, minlength=len(class_names)).tolist()))


Outputs = tuple[np.ndarray, np.ndarray]


def _per_image(
  best: inference.Trained, generated: GeneratedTestSet, originals: Outputs, fakes: Outputs
) -> dict:
  """AUROC, deepfake against original, of label-free scores of one image."""
  train = generated.originals.take(generated.parts.train)
  _, train_features = inference.logits_and_features(
    best.model, best.variables, controls.through_png(train.images)
  )
  mahalanobis = ood_scores.MahalanobisScore.fit(train_features, train.labels)
  real = ood_scores.image_scores(*originals, mahalanobis)
  fake = ood_scores.image_scores(*fakes, mahalanobis)
  return {
    name: {
      'auroc': metrics.auroc(fake[name], real[name]),
      'detection_at_1_percent': metrics.detection_at(0.01, fake[name], real[name]),
      'detection_ci95': metrics.accuracy_interval(
        metrics.found_at(0.01, fake[name], real[name]), np.arange(len(fake[name]))
      ),
    }
    for name in real
  }
