"""Which network the study takes for the best."""

import pytest

from ctfake_jax.study import best_classifier


def chosen(patients=35, **accuracies):
  sizes = {'small': 1, 'middle': 2, 'large': 3}
  rows = {
    name: {'validation_accuracy': accuracy, 'parameters': sizes[name]}
    for name, accuracy in accuracies.items()
  }
  return best_classifier(rows, patients)


def test_a_lead_that_may_be_luck_chooses_the_smaller_network():
  assert chosen(small=0.993, large=1.0) == 'small'
  assert chosen(small=0.993, large=1.0, patients=10_000) == 'large'
  assert chosen(small=0.5, middle=0.97, large=0.98) == 'middle'


# (35 + 2) / (35 + 4) = 0.9487 and sqrt(0.9487 * 0.0513 / 39) = 0.0353.
@pytest.mark.parametrize(('accuracy', 'name'), [(0.9648, 'small'), (0.9646, 'large')])
def test_the_error_of_a_network_that_is_always_right(accuracy, name):
  assert chosen(small=accuracy, large=1.0) == name


def test_among_equals_the_smallest():
  assert chosen(large=0.9, small=0.9) == 'small'
