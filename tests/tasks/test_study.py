"""Which network the study takes for the best."""

import dataclasses

import numpy as np

from ctfake_jax.data import splits
from ctfake_jax.tasks.study.run import agreed, best_classifier, too_few_held_out


def chosen(images=140, **right):
  sizes = {'small': 1, 'middle': 2, 'large': 3}
  rows = {
    name: {'validation_accuracy_by_fold': [count / images], 'parameters': sizes[name]}
    for name, count in right.items()
  }
  return best_classifier(rows, [images])


def test_a_lead_of_one_image_is_none():
  assert chosen(small=139, large=140) == 'small'
  assert chosen(small=100, middle=125, large=126) == 'middle'
  assert chosen(small=69, middle=69, large=69) == 'small'


def test_a_greater_lead_counts():
  assert chosen(small=138, large=140) == 'large'
  assert chosen(small=139, middle=140, large=138) == 'small'


def test_networks_are_compared_on_the_folds_they_share():
  """Today's better one had the easy fold alone: on that fold the other is better."""
  rows = {
    'once': {'validation_accuracy_by_fold': [0.95], 'parameters': 2},
    'often': {'validation_accuracy_by_fold': [0.97, 0.90, 0.91], 'parameters': 3},
  }
  assert best_classifier(rows, [100, 100, 100]) == 'often'


def test_a_verdict_is_that_of_all_seeds():
  assert agreed(['fall']) == 'fall'
  assert agreed(['no_fall'] * 3) == 'no_fall'
  assert agreed(['fall', 'fall', 'no_fall']) == 'undecided'


def test_few_patients_held_out_are_said_before_any_training():
  everyone = np.arange(120)
  parts = splits.Split(everyone[:60], everyone[60:90], everyone[90:], everyone // 3, 'patient')
  assert 'only 10 patients are held out' in too_few_held_out(parts)
  assert too_few_held_out(dataclasses.replace(parts, groups=everyone, by='slice')) == ''
