"""Numbers and findings in words. In go plain numbers of results.json, out comes text.

Everything returned is plain text without markup: the template escapes it. None, which stands for
a number that was not finite or could not be had, becomes a dash.
"""

from collections.abc import Sequence
from typing import Any

from ctfake_jax.types import UserError

NONE = '–'
_SPACE = '\u00a0'
_MINUS = '\u2212'

NETWORKS = {
  'cnn': 'Custom CNN',
  'resnet18': 'ResNet18',
  'resnet50': 'ResNet50',
  'mobilenetv2': 'MobileNetV2',
}
BASELINES = {
  'chance': 'Always the commonest class',
  'nearest_neighbour': 'Nearest neighbour on small pixels',
  'file_facts': 'Size and file format alone',
}
CONTROLS = {
  'unchanged': 'Originals of other patients, unchanged',
  'jpeg_75': 'Originals, JPEG quality 75',
  'blur_1px': 'Originals, blurred (1 pixel)',
  'noise': 'Originals, noise added',
  'other_scanner': 'Originals, another scanner',
}
SCORES = {
  'max_softmax': ('Unsureness', '1 − the largest class probability'),
  'energy': ('Energy', '−log sum exp of the class scores'),
  'mahalanobis': ('Mahalanobis', 'distance of the features from the nearest class of training'),
}
FAMILIES = {
  'real': 'Originals',
  'dcgan': 'DCGAN',
  'resize_gan': 'GAN with resize-convolutions',
  'vae': 'VAE, samples',
  'vae_reconstruction': 'VAE, originals rebuilt',
  'diffusion': 'Diffusion, samples',
  'diffusion_reconstruction': 'Diffusion, originals rebuilt',
  'autoencoder_reconstruction': 'Autoencoders, originals rebuilt',
  'blended': 'Local edit, blended',
  'inpainted': 'Local edit, inpainted',
  'copied': 'Local edit, copied patch',
  'folder': 'The folder of fakes',
}
BENCH_METHODS = {
  'fall_of_50': 'The paper’s fall, batches of 50 with labels',
  'max_softmax': 'Maximum softmax of the classifier',
  'energy': 'Energy of the classifier',
  'mahalanobis': 'Mahalanobis distance of its features',
  'neighbours': 'Nearest neighbours of its features',
  'spectrum': 'Radial power spectrum, logistic',
  'svm': 'Support vector machine, named features',
  'random_forest': 'Random forest, named features',
  'decision_tree': 'Decision tree, named features',
  'reservoir': 'Convolutional reservoirs',
  'diffusion_residual': 'Residual of a reverse diffusion step',
  'resnet101': 'ResNet101',
  'densenet121': 'DenseNet121',
  'densenet201': 'DenseNet201',
  'vgg19': 'VGG19',
  'detector': 'The shipped detector',
  **NETWORKS,
}
CHANGES = {
  'unchanged': 'Nothing',
  'jpeg': 'Stored picture: JPEG quality',
  'blur': 'Stored picture: blur, σ in its pixels',
  'resize': 'Stored picture: resized, factor',
  'noise': 'Stored picture: noise, σ of the range',
  'contrast': 'Network’s view: contrast, factor',
  'level': 'Network’s view: level, of half the range',
  'flip': 'Network’s view: mirrored',
  'crop': 'Network’s view: cropped to, share of the side',
}
GROUPS = {
  'patient': 'patients',
  'duplicates': 'groups of near-duplicates',
  'slice': 'single images',
  'given': 'groups, in the parts that the source prescribes',
}


def name(key: str, names: dict[str, str]) -> str:
  """What a key is called; a key without a name is shown as it is, without underscores."""
  return names.get(key, key.replace('_', ' '))


def control(key: str) -> str:
  """What a row of the controls is called."""
  shuffle = key.removeprefix('fakes_random_labels_')
  return f'Deepfakes, labels shuffled ({shuffle})' if shuffle != key else name(key, CONTROLS)


def percent(share: float | None) -> str:
  """0.9871 -> 98.7 %."""
  return NONE if share is None else f'{100 * share:.1f}{_SPACE}%'


def percent_interval(ci95: Sequence[float | None] | None) -> str:
  """[0.97, 0.99] -> 97.0–99.0 %."""
  if ci95 is None or None in ci95:
    return NONE
  low, high = (percent(bound).rstrip('%' + _SPACE) for bound in ci95)
  return f'{low}–{high}{_SPACE}%'


def number(value: float | None, digits: int = 3) -> str:
  """A plain number with a true minus sign; from 1000 on without decimals."""
  if value is None:
    return NONE
  text = count(value) if abs(value) >= 1000 else f'{value:.{digits}f}'
  return text.replace('-', _MINUS)


def number_interval(ci95: Sequence[float | None] | None, digits: int = 3) -> str:
  """[-1.2, 3] -> −1.2 to 3.0."""
  if ci95 is None or None in ci95:
    return NONE
  return ' to '.join(number(bound, digits) for bound in ci95)


def count(value: float | None) -> str:
  """Whole numbers with narrow spaces between thousands."""
  return NONE if value is None else f'{round(value):,}'.replace(',', '\u202f')


def millions(value: float | None) -> str:
  """A large number in millions."""
  return count(value / 1e6) if value else NONE


def gigabytes(value: float | None) -> str:
  """Bytes as GB, one decimal."""
  return f'{value / 1e9:.1f} GB' if value else NONE


def p_value(p: float | None) -> str:
  """Three decimals, or < 0.001."""
  if p is None:
    return NONE
  return '< 0.001' if p < 0.001 else f'{p:.3f}'


def p_equation(p: float | None) -> str:
  """A p-value as it stands in a sentence."""
  text = p_value(p)
  return f'p{_SPACE}{text}' if text.startswith('<') else f'p{_SPACE}={_SPACE}{text}'


def duration(seconds: float | None) -> str:
  """Seconds as 12 s, 3 min 20 s or 2 h 5 min."""
  if seconds is None:
    return NONE
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes_left = divmod(minutes, 60)
  if hours:
    return f'{hours}{_SPACE}h {minutes_left}{_SPACE}min'
  return f'{minutes}{_SPACE}min {rest}{_SPACE}s' if minutes else f'{rest}{_SPACE}s'


def outcome(verdict: str) -> str:
  """A verdict in a few words, for a table."""
  return _OUTCOMES[verdict]


def verdict(fall: dict[str, Any], controls: dict[str, dict[str, Any]]) -> tuple[str, list[str]]:
  """Headline and sentences for a fall, given the controls of results.json.

  Raises:
    UserError: the verdict is none that this report has words for.
  """
  if fall['verdict'] not in _VERDICTS:
    raise UserError(
      f'results.json: fall.verdict = {fall["verdict"]!r} is unknown; have: {", ".join(_VERDICTS)}'
    )
  headline, sentences = _VERDICTS[fall['verdict']]
  harmless = {key: row for key, row in controls.items() if row.get('points') is not None}
  facts = {
    'points': number(fall['points'], 1),
    'interval': number_interval(fall['ci99'], 1),
    'p': p_equation(fall['p_value']),
    'most': number((fall['ci99'] or [None, None])[1], 1),
    'harmless': len(harmless.keys() - {'unchanged'}),
    'deepest': _deepest(harmless),
  }
  return headline, [sentence.format(**facts) for sentence in sentences]


def _deepest(harmless: dict[str, dict[str, Any]]) -> str:
  if not harmless:
    return 'none'
  key = max(harmless, key=lambda k: harmless[k]['points'])
  return f'“{control(key)}”, {number(harmless[key]["points"], 1)} points'


_OUTCOMES = {
  'fall': 'a fall, none by harmless changes',
  'fall_but_controls_fall_too': 'a fall, but no proof',
  'fall_without_controls': 'a fall without controls',
  'no_fall': 'no fall shown',
  'may_be_guessing': 'may be guessing',
}
_FALL = 'Accuracy is {points} points lower on the deepfakes (99\u00a0% interval {interval}; {p}). '
_BATCH = (
  'The finding is about this batch as a whole. It says nothing certain of any one image, and '
  'nothing of fakes from another generator.'
)
_VERDICTS: dict[str, tuple[str, list[str]]] = {
  'fall': (
    'Accuracy falls on the deepfakes, and no harmless change is seen to do the same',
    [
      _FALL + 'For none of the {harmless} harmless changes to originals was a fall shown, and '
      'each was measured finely enough to exclude one as deep (the deepest: {deepest}).',
      'Here the fall sets the deepfakes apart from originals. That it is due to their being '
      'fakes remains an inference: a change that was not tried could still explain it.',
      _BATCH,
    ],
  ),
  'fall_but_controls_fall_too': (
    'Accuracy falls on the deepfakes, but that is no proof of fakery',
    [
      _FALL + 'But at least one harmless change to originals makes accuracy fall as well, or was '
      'measured too coarsely to exclude a fall as deep (the deepest: {deepest}).',
      'Images that a re-encoding, a blur, noise or another scanner has touched are genuine. A '
      'fall that such changes can cause too shows that images differ from the training data, '
      'not that they are fakes.',
      _BATCH,
    ],
  ),
  'fall_without_controls': (
    'Accuracy falls on the deepfakes; why, this study cannot tell',
    [
      _FALL + 'No harmless change to originals was tried beside it.',
      'Without such controls a fall is no proof of fakery: any difference from the training '
      'data, such as another scanner, may cause it.',
      _BATCH,
    ],
  ),
  'no_fall': (
    'No fall in accuracy is shown',
    [
      'The difference between originals and deepfakes is {points} points (99\u00a0% interval '
      '{interval}; {p}). The interval does not lie above 0, so that no lower accuracy on the '
      'deepfakes is shown; in at most one study of a hundred it would by chance. Falls of up to '
      '{most} points remain compatible with these data.',
      'This is a valid result. A conditional generator that works draws images in which a '
      'classifier finds the class asked for, and may cause no fall at all.',
      'The lack of a fall says nothing where the classifier is hardly better than guessing on '
      'originals, or where the fakes would not be taken for CT: both are shown below.',
      'It is no proof that images are genuine: fakes that cause no fall cannot be found by '
      'looking for one.',
    ],
  ),
  'undecided': (
    'Undecided: trained again with other seeds, the same experiment ends otherwise',
    [
      'In the first of the trainings accuracy is {points} points lower on the deepfakes '
      '(99\u00a0% interval {interval}; {p}), but the verdicts of the repetitions differ; they are '
      'listed below.',
      'What hangs on the seed of a training is no property of the deepfakes. More seeds, more '
      'patients or longer trainings may decide it.',
    ],
  ),
  'may_be_guessing': (
    'Nothing is shown: the classifier may be guessing',
    [
      'On originals it is not shown to be better than always giving the commonest answer, so it '
      'cannot fall far. The difference between originals and deepfakes is {points} points '
      '(99\u00a0% interval {interval}; {p}).',
      'Train longer or on more images before asking about a fall. Nothing here speaks for or '
      'against the images being genuine.',
    ],
  ),
}
