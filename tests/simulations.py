"""The simulations behind `docs/results.md`, on all settings: `python tests/simulations.py fall`.

`fall` prints how often harmless changes are taken for a fall, and the power of both tests;
`intervals` how often intervals cover, and how wide they are beside Korn & Graubard's. A setting is
a row; a summary ends the table. `--repetitions=4000` is what the documents have.
"""

import argparse
import itertools

from evaluation import test_accuracy_drop, test_metrics
from patients import SIZES

ACCURACIES, CORRELATIONS, PATIENTS = (0.7, 0.8, 0.9, 0.95, 0.99), (0.0, 0.3, 0.6), (20, 60, 200)
KINDS = tuple(kind for kind in SIZES if kind != 'many')


def fall(repetitions: int) -> None:
  """False alarms of both tests, and their powers at a fall of 8 points."""
  alarms, apart = [], []
  for setting in settings():
    found = test_accuracy_drop.simulated(*setting, repetitions)
    alarms += found['false alarms']
    apart.append(abs(found['power'][0] - found['power'][1]))
    print(*setting, *(f'{v:.4f}' for pair in found.values() for v in pair), flush=True)
  print(f'false alarms at most {max(alarms):.4f}, powers at most {max(apart):.4f} apart')


def intervals(repetitions: int) -> None:
  """Coverage and width of 95 % intervals, ours and the published."""
  covered, ratios = [], []
  for setting in settings():
    ours, published = test_metrics.simulated(*setting, repetitions)
    covered.append(ours[0])
    ratios.append(ours[1] / published[1])
    print(*setting, *(f'{v:.4f}' for v in (*ours, *published)), flush=True)
  mean = sum(ratios) / len(ratios)
  print(f'coverage at least {min(covered):.4f}; width {mean:.3f} of the published in the mean')
  print(f'{sum(r > 1.15 for r in ratios)} of {len(ratios)} above 1.15, at most {max(ratios):.2f}')


def settings():
  """Accuracy, correlation, patients, kind of sizes."""
  return itertools.product(ACCURACIES, CORRELATIONS, PATIENTS, KINDS)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('what', choices=('fall', 'intervals'))
  parser.add_argument('--repetitions', type=int, default=4000)
  given = parser.parse_args()
  {'fall': fall, 'intervals': intervals}[given.what](given.repetitions)
