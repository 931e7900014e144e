"""The report, from a small made-up study: every number below is a fixture, none was measured."""

import copy
import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctfake_jax.report import plots, tables, words
from ctfake_jax.report import study as study_page
from ctfake_jax.types import UserError

HOSTILE = '<script>alert(1)</script>'
FORMULA = r'$\frac{1}$ "quoted" & <b>'
FOREIGN = '肺\n‮ group \udcff'
CLASSES = (HOSTILE, FORMULA, FOREIGN)
HEADINGS = (
  *('What was asked', 'What this is, and what it is not', 'Data'),
  *('Classifiers, and what needs none', 'Deepfakes', 'The fall, and its controls'),
  *('Beside the paper', 'Can a single image be told?'),
  *('How many images are needed to see a fall?', 'Training', 'How to repeat it'),
)


def made_up_report(accuracy: float, classes=CLASSES, n: int = 120) -> dict:
  each = n // len(classes)
  right = round(accuracy * each)
  confusion = np.full((len(classes), len(classes)), 0)
  np.fill_diagonal(confusion, right)
  for i in range(len(classes)):
    confusion[i, (i + 1) % len(classes)] += each - right
  return {
    'accuracy': accuracy,
    'ci95': [max(0, accuracy - 0.04), min(1, accuracy + 0.03)],
    'n': n,
    'groups': n // 4,
    'balanced_accuracy': accuracy,
    'per_class': dict.fromkeys(classes, accuracy),
    'auroc': 0.987,
    'confusion': confusion.tolist(),
  }


def made_up_results(classes=CLASSES) -> dict:
  def network(accuracy, folds=1):
    return {
      **made_up_report(accuracy, classes),
      'folds': folds,
      'validation_accuracy': accuracy,
      'accuracy_by_fold': [accuracy] * folds,
      'parameters': 1234567,
      'train_seconds': 61.7,
      'images_per_s': 812.3,
      'flops_per_image': 57.4e6,
      'peak_bytes': 1.5e9,
    }

  def row(accuracy, points):
    interval = [points - 2.2, points + 3.4]
    base = {'accuracy': accuracy, 'ci95': [accuracy - 0.03, accuracy + 0.02], 'n': 120}
    return base | {'points': points, 'ci99': interval, 'p_value': 0.25}

  baseline = {'accuracy': 0.3333, 'ci95': [0.25, 0.42], 'n': 120}
  decay = np.linspace(0, -4, 16)
  return {
    'data': {
      'images': 1200,
      'classes': dict.fromkeys(classes, 400),
      'patients': 300,
      'unit': 'HU',
      'image_size': 32,
      'unreadable': [{'path': f'{HOSTILE}/a.png', 'reason': 'truncated <i>'}],
    },
    'baselines': {
      'chance': baseline,
      'nearest_neighbour': {**baseline, 'accuracy': 0.71},
      'file_facts': {**baseline, 'accuracy': 0.36},
      'leak_audit': {
        'test_images': 120,
        'exact_duplicates': 0,
        'near_duplicates': 7,
        'near_duplicate_correlation': 0.95,
        'shared_groups': 0,
        'shared_patients': 0,
        'contradictions': 0,
        'near_contradictions': 3,
      },
      'split_by': 'patient',
    },
    'classifiers': {
      'cnn': network(0.975),
      'resnet18': network(0.95, folds=2),
      'resnet50': network(0.925),
      'mobilenetv2': network(0.9),
    },
    'best': 'cnn',
    'dcgan': {
      'best_step': 1000,
      'train_seconds': 100.0,
      'parameters': {'generator': 3000, 'discriminator': 2000},
      'train_images': 800,
      'frechet': 4.5,
      'frechet_real_real': 2.0,
      'extractor': 'made up',
      'n': 100,
      'kernel': 0.01,
      'kernel_ci95': [-0.002, 0.03],
      'kernel_real': 0.0,
      'kernel_real_ci95': [-0.01, 0.01],
      'precision': 0.6,
      'recall': 0.5,
      'precision_real': 0.8,
      'recall_real': 0.8,
      'ms_ssim_fake': 0.3,
      'ms_ssim_fake_ci95': [0.28, 0.32],
      'ms_ssim_real': 0.25,
      'ms_ssim_real_ci95': [0.23, 0.27],
      'spectrum_gap': 0.2,
      'spectrum_gap_real': 0.02,
      'spectrum_real': decay.tolist(),
      'spectrum_fake': (decay * 1.1).tolist(),
      'nearest_ratio': 0.97,
      'memorised': 2,
      'memorised_expected': 1.0,
      'repeats': 30,
      'marks': {'frechet': True, 'ms_ssim': True, 'repeats': False, 'memorised': True},
    },
    'originals': made_up_report(0.975, classes),
    'deepfakes': {
      'count': 120,
      **made_up_report(0.7, classes),
      'retrained': {**retrained(0.62), 'as_many_as_originals': retrained(0.66)},
    },
    'fall': {
      'points': 27.5,
      'ci99': [18.1, 36.4],
      'p_value': 1e-6,
      'originals': {'accuracy': 0.97, 'ci95': [0.9, 0.99], 'n': 60, 'groups': 15},
      'tested': {'accuracy': 0.69, 'ci95': [0.54, 0.8], 'n': 47, 'groups': 47},
      'required_sample_size': {'5': None, '10': 1234, '25': 31, '50': 9},
      'verdict': 'fall',
    },
    'controls': {
      'unchanged': row(0.975, 0.1),
      'jpeg_75': row(0.97, 0.5),
      'blur_1px': row(0.9, 7.5),
      'noise': row(0.95, 2.5),
      'other_scanner': row(0.96, 1.5),
      'fakes_random_labels_1': {'accuracy': 0.3, 'ci95': [0.26, 0.34], 'n': 120},
    },
    'per_image': {
      'max_softmax': {'auroc': 0.71, 'detection_at_1_percent': 0.08},
      'energy': {'auroc': 0.68, 'detection_at_1_percent': 0.05},
      'mahalanobis': {'auroc': 0.93, 'detection_at_1_percent': 0.55},
    },
    'seconds_of_last_call': 421.3,
  }


def retrained(accuracy: float) -> dict:
  return {
    'train_images': 102,
    'accuracy_on_deepfakes': accuracy,
    'ci95_on_deepfakes': [accuracy - 0.05, accuracy + 0.05],
    'accuracy_on_originals': accuracy - 0.1,
    'ci95_on_originals': [accuracy - 0.2, accuracy],
  }


RECORD = {
  'config': {
    'task': 'study',
    'seed': 3,
    'data': {
      'source': 'phantom',
      'path': '/home/Jane Doe/ct data',
      'labels_csv': '',
      'classes': [HOSTILE],
      'window_center_hu': -600.0,
      'window_width_hu': 1500.0,
    },
    'split': {'seed': 4},
    'phantom': {'seed': 5},
    'study': {'folds': 2},
    'mesh': {'coordinator': None},
  },
  'class_names': list(CLASSES),
  'data': 'abc123',
  'packages': {'jax': '0.0'},
  'python': '3.0',
  'devices': ['cpu:made up'],
  'threads': 2,
  'commit': None,
}


def write_study(workdir: Path, results: dict, record: dict = RECORD, rows: bool = True) -> Path:
  """A workdir as a study leaves it, with curves and pictures where `rows`."""
  workdir.mkdir(exist_ok=True)
  (workdir / 'results.json').write_text(json.dumps(results))
  (workdir / 'config.json').write_text(json.dumps(record))
  if not rows:
    return workdir
  for name, row in results['classifiers'].items():
    for fold in range(row['folds']):
      write_rows(workdir / 'classifiers' / name / f'fold{fold}', classifier_rows(0.3 + 0.1 * fold))
  write_rows(workdir / 'dcgan', gan_rows())
  for i in range(len(results['data']['classes'])):
    for kind in ('real', 'fake'):
      picture(workdir / 'figures' / f'{kind}_{i}.png', 34 * 8 - 2, 32)
  for step in (500, 1000, 1500):
    picture(workdir / 'dcgan' / 'samples' / f'step_{step:06d}.png', 34 * 8 - 2, 100)
  return workdir


def classifier_rows(floor: float) -> list[dict]:
  rows = []
  for step in range(20, 201, 20):
    rows.append({'step': step, 'loss': floor + 20 / step, 'accuracy': 0.5, 'seconds': step / 10})
    rows.append({'step': step, 'val/accuracy': 1 - 8 / step, 'val/loss': None})
  return rows


def gan_rows() -> list[dict]:
  rows = []
  for step in range(20, 1501, 20):
    rates = {'accuracy_real': 0.8, 'accuracy_fake': 0.75}
    wave = 0.1 * np.sin(step / 30)
    rows.append(
      {'step': step, 'loss_discriminator': 0.9 + wave, 'loss_generator': 1.5 - wave, **rates}
    )
  for step in (500, 1000, 1500):
    rows.append({'step': step, 'val/frechet': 5000 / step, 'val/diversity': 0.9})
  return rows


def write_rows(folder: Path, rows: list[dict]) -> None:
  folder.mkdir(parents=True)
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text + '{"step": 99, "lo')


def picture(path: Path, width: int, height: int) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  noise = np.random.default_rng(0).integers(0, 255, (height, width), dtype=np.uint8)
  Image.fromarray(noise).save(path)


class Page(html.parser.HTMLParser):
  """Tags, attributes and text of a page."""

  def __init__(self, path: Path):
    super().__init__()
    self.tags: list[tuple[str, dict]] = []
    self.words: list[str] = []
    self.open: list[str] = []
    self.feed(path.read_text('utf-8'))

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in ('meta', 'img', 'br'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)

  @property
  def text(self) -> str:
    return re.sub(r'\s+', ' ', ''.join(self.words).replace('\u00a0', ' '))


@pytest.fixture(scope='module')
def study(tmp_path_factory) -> Path:
  workdir = write_study(tmp_path_factory.mktemp('study'), made_up_results())
  assert study_page.write(workdir) == workdir / 'report.html'
  return workdir


def test_page_is_whole_and_needs_nothing_from_outside(study):
  page = Page(study / 'report.html')
  assert not page.open
  for _, attributes in page.tags:
    assert not attributes.get('src', 'data:').startswith(('http', '//', 'file'))
    assert attributes.get('href', '#').startswith('#')
  pictures = [a for tag, a in page.tags if tag == 'img']
  assert len(pictures) == 7 + 2 * len(CLASSES) + 2
  assert all(a['src'].startswith('data:image/png;base64,') and a['alt'] for a in pictures)
  assert not [p for p in study.iterdir() if p.name.startswith('.')]


def test_headings_and_captions(study):
  source = (study / 'report.html').read_text('utf-8')
  assert tuple(re.findall(r'<h2 id="(?!answer)[^>]*>([^<]*)<', source)) == HEADINGS
  page = Page(study / 'report.html')
  tags = [tag for tag, _ in page.tags]
  assert tags.count('table') == tags.count('caption')
  assert tags.count('h1') == 1
  targets = {a['href'][1:] for tag, a in page.tags if tag == 'a'}
  assert targets <= {a['id'] for _, a in page.tags if 'id' in a}


def test_hostile_text_stays_text(study):
  source = (study / 'report.html').read_text('utf-8')
  page = Page(study / 'report.html')
  assert 'script' not in {tag for tag, _ in page.tags}
  assert not {'b', 'i'} & {tag for tag, _ in page.tags}
  assert HOSTILE not in source
  assert f'{HOSTILE}/a.png' in page.text
  assert any(HOSTILE in a.get('alt', '') for tag, a in page.tags if tag == 'img')
  assert 'Jane Doe' not in source
  assert "'YOUR_PATH/ct data'" in page.text


def test_numbers_reach_the_page(study):
  text = Page(study / 'report.html').text
  for shown in (
    '97.5 %',
    '93.5–100.0 %',
    '27.5',
    '18.1 to 36.4',
    'p < 0.001',
    '1\u202f234\u202f567'.replace('\u202f', ' '),
    '7 resemble one closely',
    '1 unreadable image was left out',
    '62.0 % (57.0–67.0 %)',
    '2.2 times as far',
    '7 min 1 s',
    '99.6 %',
    'training 3, split 4, phantom 5',
    'cpu:made up',
  ):
    assert shown in text, shown


def test_plots_are_left_in_figures(study):
  names = {path.name for path in (study / 'figures').glob('plot_*.png')}
  assert names == {
    f'plot_{name}.png'
    for name in (
      *('accuracy', 'confusion', 'fall', 'spectra', 'gan_losses', 'gan_quality', 'training'),
    )
  }
  for name in names:
    with Image.open(study / 'figures' / name) as image:
      assert np.asarray(image.convert('L')).std() > 5


def test_optional_parts_may_be_missing(tmp_path):
  results = made_up_results(('only',))
  del results['deepfakes']['retrained'], results['seconds_of_last_call']
  del results['baselines']['leak_audit'], results['fall']['required_sample_size']
  results['controls'] = {}
  results['fall']['verdict'] = 'fall_without_controls'
  results['classifiers']['cnn'] |= {'auroc': None, 'validation_accuracy': None}
  results['originals']['auroc'] = results['per_image']['energy']['auroc'] = None
  results['dcgan'] = {'frechet': None, 'frechet_real_real': 2.0, 'ms_ssim_fake': None}
  results['data'] |= {'patients': None, 'unit': 'grey', 'unreadable': []}
  workdir = write_study(tmp_path / 'study', results, rows=False)
  text = Page(study_page.write(workdir)).text
  assert 'Reading 2 was not part of this study' in text
  assert 'Every image could be read' in text
  assert 'whose patients are not known' in text
  assert 'None' not in text
  assert 'nan' not in text.split()


def test_writing_again_gives_the_same_page(study, tmp_path):
  first = (study / 'report.html').read_bytes()
  again = tmp_path / 'again'
  shutil.copytree(study, again)
  assert study_page.write(again).read_bytes() == first


@pytest.mark.parametrize(
  ('verdict', 'must', 'must_not'),
  [
    ('fall', ('no harmless change', 'remains an inference', '“Originals, blurred'), ('no proof',)),
    ('fall_but_controls_fall_too', ('no proof of fakery', 'are genuine'), ('sets the deepfakes',)),
    ('fall_without_controls', ('cannot tell', 'no proof of fakery'), ('sets the deepfakes',)),
    ('no_fall', ('valid result', 'no proof that images are genuine'), ('sets the deepfakes',)),
    ('may_be_guessing', ('may be guessing', 'cannot fall far'), ('valid result', 'sets the')),
    ('undecided', ('Undecided', 'repetitions differ'), ('sets the deepfakes', 'no proof')),
  ],
)
def test_words_fit_the_verdict(verdict, must, must_not):
  results = made_up_results()
  controls = {} if verdict == 'fall_without_controls' else results['controls']
  headline, sentences = words.verdict({**results['fall'], 'verdict': verdict}, controls)
  text = ' '.join([headline, *sentences]).replace('\u00a0', ' ')
  assert all(part in text for part in must)
  assert not any(part in text for part in must_not)
  assert '27.5 points' in text
  assert '18.1 to 36.4' in text
  assert 'p < 0.001' in text
  assert '{' not in text


def test_repetitions_are_listed_where_there_are_several(tmp_path, study):
  again = tmp_path / 'again'
  shutil.copytree(study, again)
  results = json.loads((again / 'results.json').read_text())
  row = {key: results['fall'][key] for key in ('points', 'ci99', 'p_value')}
  row |= {'seed': 0, 'originals': 0.9, 'deepfakes': 0.8, 'verdict': 'fall'}
  for rows, shown in (([row], False), ([row, row | {'verdict': 'no_fall', 'points': 1.2}], True)):
    results['repetitions'] = rows
    (again / 'results.json').write_text(json.dumps(results))
    page = study_page.write(again).read_text()
    assert ('trained again with other seeds' in page) == shown
  assert 'no fall shown' in page


def test_unknown_verdict_is_refused():
  with pytest.raises(UserError, match=r'fall\.verdict = .maybe'):
    words.verdict({'verdict': 'maybe'}, {})


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('results.json', None, 'results.json is missing'),
    ('config.json', None, 'config.json is missing'),
    ('results.json', '{"data": ', 'results.json is damaged'),
    ('results.json', '[]', 'results.json holds no table'),
    ('results.json', '{"accuracy": 1}', 'has no data, baselines, classifiers'),
  ],
)
def test_what_is_no_study_is_refused(tmp_path, name, content, message):
  workdir = write_study(tmp_path / 'study', made_up_results(), rows=False)
  (workdir / name).unlink()
  if content is not None:
    (workdir / name).write_text(content)
  with pytest.raises(UserError, match=message):
    study_page.write(workdir)
  assert not (workdir / 'report.html').exists()


def test_a_picture_that_is_none_is_left_out(tmp_path):
  workdir = write_study(tmp_path / 'study', made_up_results())
  (workdir / 'figures' / 'real_0.png').write_bytes(b'<svg onload="alert(1)">')
  page = Page(study_page.write(workdir))
  assert 'Real, held out: no picture was left.' in page.text


def test_number_formats():
  space, minus = '\u00a0', '\u2212'
  assert words.percent(0.98765) == f'98.8{space}%'
  assert words.percent_interval([0, 1]) == f'0.0–100.0{space}%'
  assert words.percent_interval([0.1, None]) == words.percent(None) == '–'
  assert words.number(-1.25, 1) == f'{minus}1.2'
  assert words.number(-12345.6) == f'{minus}12\u202f346'
  assert words.number_interval([-1, 2], 1) == f'{minus}1.0 to 2.0'
  assert [words.p_value(p) for p in (0.0009, 0.001, 0.25, None)] == [
    '< 0.001',
    '0.001',
    '0.250',
    '–',
  ]
  assert words.duration(59.6) == f'1{space}min 0{space}s'
  assert words.duration(7384) == f'2{space}h 3{space}min'


def test_class_rows_count_from_the_confusion():
  results = made_up_results(('a', 'b'))
  results['deepfakes']['confusion'] = [[9, 3], [0, 0]]
  first, second = tables.per_class(results)
  assert (first['deepfakes'], first['deepfakes_right']) == ('12', words.percent(0.75))
  assert (second['deepfakes'], second['deepfakes_right']) == ('0', '–')


def test_a_rise_is_written_with_a_minus():
  results = made_up_results()
  results['fall'] |= {'points': -1.4, 'ci99': [-4.0, 1.0], 'p_value': 0.9, 'verdict': 'no_fall'}
  _, sentences = words.verdict(results['fall'], results['controls'])
  assert '\u22121.4 points' in sentences[0]
  assert words.p_equation(0.9) in sentences[0]


def test_labels_fit_to_draw():
  assert plots.label('a\nb\x00') == 'a·b·'
  assert plots.label('$x$') == r'\$x\$'
  assert len(plots.label('y' * 99)) == 30


def test_the_report_loads_without_jax():
  code = 'import sys, ctfake_jax.report; sys.exit("jax" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)


def chromium(profile: Path, page: Path, *flags: str) -> str:
  command = [
    *('chromium', '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run'),
    *('--disable-background-networking', '--disable-component-update', '--disable-sync'),
    *(f'--user-data-dir={profile}', *flags, page.as_uri()),
  ]
  return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('chromium'), reason='chromium is not installed')
def test_opens_in_a_browser(study, tmp_path):
  page = study / 'report.html'
  dom = chromium(tmp_path / 'first', page, '--dump-dom')
  for heading in HEADINGS:
    assert heading in dom
  assert '<script' not in dom
  picture = tmp_path / 'page.png'
  chromium(tmp_path / 'second', page, f'--screenshot={picture}', '--window-size=1200,2000')
  with Image.open(picture) as image:
    grey = np.asarray(image.convert('L'))
  assert grey.shape == (2000, 1200)
  assert len(np.unique(grey)) > 20
  assert grey.std() > 5


def test_fixture_is_not_changed_by_reading():
  results = made_up_results()
  before = copy.deepcopy(results)
  words.verdict(results['fall'], results['controls'])
  tables.quality(results)
  plots.fall(results)
  assert results == before
