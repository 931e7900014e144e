"""The rows of every table of the report, as text. In goes results.json, out come dicts of text.

Rows that an older or a smaller study lacks are left out; numbers it could not give are dashes.
"""

from typing import Any

from ctfake_jax.report import words

Row = dict[str, Any]


def classifiers(results: Row) -> list[Row]:
  """Networks in the order in which they were run."""
  return [
    {
      'name': words.name(key, words.NETWORKS),
      'best': key == results['best'],
      'accuracy': words.percent(row['accuracy']),
      'interval': words.percent_interval(row['ci95']),
      'balanced': words.percent(row['balanced_accuracy']),
      'auroc': words.number(row['auroc']),
      'validation': words.percent(row.get('validation_accuracy')),
      'tested': words.count(row['n']),
      'folds': _folds(row.get('accuracy_by_fold') or []),
      'parameters': words.count(row['parameters']),
      'time': words.duration(row['train_seconds']),
      'rate': words.count(row['images_per_s']),
      'flops': words.millions(row.get('flops_per_image')),
      'memory': words.gigabytes(row.get('peak_bytes')),
    }
    for key, row in results['classifiers'].items()
  ]


def _folds(accuracies: list[float]) -> str:
  if len(accuracies) < 2:
    return '1'
  return f'{len(accuracies)} ({words.percent_interval([min(accuracies), max(accuracies)])})'


def baselines(results: Row) -> list[Row]:
  """What needs no network, with accuracies on the same test part."""
  return [
    {
      'name': title,
      'accuracy': words.percent(results['baselines'][key]['accuracy']),
      'interval': words.percent_interval(results['baselines'][key]['ci95']),
      'tested': words.count(results['baselines'][key]['n']),
    }
    for key, title in words.BASELINES.items()
    if key in results['baselines']
  ]


def per_class(results: Row) -> list[Row]:
  """Each class: how many there are, and how many of them the best classifier knows."""
  originals, fakes = (results[kind]['confusion'] for kind in ('originals', 'deepfakes'))
  return [
    {
      'name': label,
      'images': words.count(images),
      'originals': words.count(sum(originals[i])),
      'originals_right': _recall(originals, i),
      'deepfakes': words.count(sum(fakes[i])),
      'deepfakes_right': _recall(fakes, i),
    }
    for i, (label, images) in enumerate(results['data']['classes'].items())
  ]


def _recall(confusion: list[list[int]], label: int) -> str:
  row = confusion[label]
  return words.percent(row[label] / sum(row) if sum(row) else None)


def trial(results: Row) -> list[Row]:
  """The fall's table: all originals and deepfakes, those compared, harmless changes, shuffles."""
  fall = results['fall']
  return [
    _trial_row('Held-out originals, all', results['originals'], {}),
    _trial_row('Deepfakes, all', results['deepfakes'], {}),
    _trial_row('Originals of the reference half', fall['originals'], {}),
    _trial_row('Deepfakes, as many as tell as much', fall['tested'], fall),
    *(_trial_row(words.control(key), row, row) for key, row in results['controls'].items()),
  ]


def _trial_row(title: str, row: Row, fall: Row) -> Row:
  return {
    'name': title,
    'accuracy': words.percent(row['accuracy']),
    'interval': words.percent_interval(row['ci95']),
    'tested': words.count(row['n']),
    'points': words.number(fall.get('points'), 1),
    'points_interval': words.number_interval(fall.get('ci99'), 1),
    'p': words.p_value(fall.get('p_value')),
  }


def repetitions(results: Row) -> list[Row]:
  """The fall with each seed, where there are several."""
  rows = results.get('repetitions') or []
  return [
    {
      'name': f'{number}, the study’s own' if number == 1 else str(number),
      'originals': words.percent(row['originals']),
      'deepfakes': words.percent(row['deepfakes']),
      'points': words.number(row['points'], 1),
      'interval': words.number_interval(row['ci99'], 1),
      'outcome': words.outcome(row['verdict']),
    }
    for number, row in enumerate(rows if len(rows) > 1 else [], 1)
  ]


def readings(results: Row) -> list[Row]:
  """What the paper's text may mean, each beside what this study found."""
  best = words.name(results['best'], words.NETWORKS)
  rows = [
    {
      'reading': '1',
      'name': f'{best}, trained on originals and run on the deepfakes',
      'originals': _with_interval(results['originals'], 'accuracy', 'ci95'),
      'deepfakes': _with_interval(results['deepfakes'], 'accuracy', 'ci95'),
    }
  ]
  retrained = results['deepfakes'].get('retrained') or {}
  for row, training in (
    (retrained, 'as many deepfakes as are on trial'),
    (retrained.get('as_many_as_originals'), 'as many deepfakes as it had originals'),
  ):
    if not row:
      continue
    rows.append(
      {
        'reading': '2',
        'name': f'{best}, trained on {training} ({words.count(row.get("train_images"))})',
        'originals': _with_interval(row, 'accuracy_on_originals', 'ci95_on_originals'),
        'deepfakes': _with_interval(row, 'accuracy_on_deepfakes', 'ci95_on_deepfakes'),
      }
    )
  return rows


def _with_interval(row: Row, key: str, interval: str) -> str:
  text, bounds = words.percent(row.get(key)), words.percent_interval(row.get(interval))
  return text if bounds == words.NONE else f'{text} ({bounds})'


def scores(results: Row) -> list[Row]:
  """Scores of one image that know nothing of fakes."""
  rows = []
  for key, row in results['per_image'].items():
    title, meaning = words.SCORES.get(key, (words.name(key, {}), ''))
    rows.append(
      {
        'name': title,
        'meaning': meaning,
        'auroc': words.number(row['auroc']),
        'detection': words.percent(row.get('detection_at_1_percent')),
        'interval': words.percent_interval(row.get('detection_ci95')),
      }
    )
  return rows


def required_sample_size(results: Row) -> list[Row]:
  """Size of a batch in which each fall would be shown."""
  return [
    {
      'points': points,
      'images': 'out of reach' if images is None else f'{words.count(images)} images',
    }
    for points, images in (results['fall'].get('required_sample_size') or {}).items()
  ]


def quality(results: Row) -> list[Row]:
  """The fakes' measures beside the same measures of as many reals."""
  dcgan = results['dcgan']
  marks, n = dcgan.get('marks') or {}, dcgan.get('n')
  expected = f'about {words.number(dcgan.get("memorised_expected"), 1)} expected'

  def row(title, meaning, fakes, reals, mark=None):
    return {
      'name': title,
      'meaning': meaning,
      'fakes': fakes,
      'reals': reals,
      'mark': marks.get(mark),
    }

  rows = [
    row(
      'Texture Fréchet distance, not FID',
      'how far the fakes’ texture lies from that of reals; mark: at most 3 times as far as reals',
      words.number(dcgan.get('frechet'), 2),
      words.number(dcgan.get('frechet_real_real'), 2),
      'frechet',
    ),
    row(
      'Kernel distance',
      'the same question without bias by the number of images; 0 is best',
      _number_with_interval(dcgan, 'kernel'),
      _number_with_interval(dcgan, 'kernel_real'),
    ),
    row(
      'Precision',
      'share of the fakes that lie among reals: do they look right?',
      words.percent(dcgan.get('precision')),
      words.percent(dcgan.get('precision_real')),
    ),
    row(
      'Recall',
      'share of the reals that lie among fakes: is the whole variety there?',
      words.percent(dcgan.get('recall')),
      words.percent(dcgan.get('recall_real')),
    ),
    row(
      'Likeness within a class (MS-SSIM)',
      'how alike two images of one class are; mark: within 0.1 of the reals’ interval',
      _number_with_interval(dcgan, 'ms_ssim_fake'),
      _number_with_interval(dcgan, 'ms_ssim_real'),
      'ms_ssim',
    ),
    row(
      'Gap of the power spectra',
      'mean difference in decades of power: coarse against fine structure',
      words.number(dcgan.get('spectrum_gap')),
      words.number(dcgan.get('spectrum_gap_real')),
    ),
    row(
      'Distance to the nearest training image',
      'beside that of unseen reals (1); well below 1 is memorising',
      words.number(dcgan.get('nearest_ratio'), 2),
      '1',
    ),
    row(
      'Near-copies of training images',
      f'of {words.count(n)} fakes; mark: at most a tenth of them',
      words.count(dcgan.get('memorised')),
      expected,
      'memorised',
    ),
    row(
      'Near-copies of each other',
      f'of {words.count(n)} fakes; mark: at most a tenth of them',
      words.count(dcgan.get('repeats')),
      expected,
      'repeats',
    ),
  ]
  return [r for r in rows if r['fakes'] != words.NONE]


def _number_with_interval(row: Row, key: str) -> str:
  text, bounds = words.number(row.get(key)), words.number_interval(row.get(f'{key}_ci95'))
  return text if bounds == words.NONE else f'{text} ({bounds})'
