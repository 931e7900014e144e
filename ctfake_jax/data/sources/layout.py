"""What the folders of a data set mean: parts (train, val, test), classes, masks beside images.

Pictures and DICOM share these rules. Class folders lie in the root, in part folders
(`train/covid/...`), or above them (`covid/train/...`). What looks like parts and cannot be read as
such is refused: a classifier of train against test would be the result.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ctfake_jax.data.sources import walker
from ctfake_jax.types import UserError

_PARTS = {
  **dict.fromkeys(('train', 'training'), 'train'),
  **dict.fromkeys(('val', 'valid', 'validation', 'dev'), 'val'),
  **dict.fromkeys(('test', 'testing'), 'test'),
}
# What may stand before or after: train_data, Training set, testing-images, dataset_val, Test01.
_AROUND = '(?:data|sets?|images?|imgs?|img|pictures|slices|scans?|ct|split|png|jpe?g|dicom|dcm)*'
_PART = re.compile(f'{_AROUND}({"|".join(sorted(_PARTS, key=len, reverse=True))}){_AROUND}')
_FOLD = re.compile(r'(?:k-?|cv[-_ ]?)?(?:folds?|splits?)[-_ ]?(?:\d+|[a-j])', re.IGNORECASE)
# Words of parts without a fixed meaning, and how longer ones begin, in several languages.
_NEARLY = {
  *('tr', 'trn', 'te', 'ts', 'tst', 'eval', 'evaluation', 'holdout', 'heldout', 'unseen'),
  *('entrenamiento', 'treino', 'apprentissage', 'entrainement', 'prueba', 'teste'),
}
_BEGINNINGS = {'train': 'train', 'test': 'test', 'valid': 'val'}
_ANNOTATION = 'masks?|msks?|segmentations?|annot(?:ation)?s?'
_ORGAN = '(?:lung|lesion|infection|tumou?r|nodule|gt)?'
_MASKS = re.compile(f'{_ORGAN}(?:{_ANNOTATION})|segmented|groundtruths?')
# These are masks beside what is called images only.
_PERHAPS = 'labels?|segs?|gts?|contours?|rois?'
_PERHAPS_MASKS = re.compile(
  f'{_PERHAPS}|overlays?|targets?|lesions?|infections?|heatmaps?|binary|truths?'
)
_PICTURE = (
  'images?|imgs?|pictures?|pics?|photos?|scans?|slices?|frames?|cts?|data|raw|originals?|inputs?'
)
_FORMATS = '(?:png|jpe?g|tiff?|bmp|dicom|dcm)'
_IMAGES = re.compile(f'(?:ct|original|source|raw|{_FORMATS})*(?:{_PICTURE}|{_FORMATS}){_FORMATS}?')


def _about(words: str) -> re.Pattern[str]:
  """Matches a name with one of these words before or after it, which is its group 1 or 2."""
  return re.compile(rf'(.+?)[-_. ]?(?:{words})|(?:{words})[-_. ]?(.+)', re.IGNORECASE)


_MASK_NAME = _about(f'{_ORGAN}[-_. ]?(?:{_ANNOTATION}|{_PERHAPS})')
_IMAGE_NAME = _about(_PICTURE)


STRAY = 'lies outside any class folder; move it into one'


class Place(NamedTuple):
  """Where a file lies.

  Attributes:
    name: of its class; None where that class was not asked for.
    part: 'train', 'val' or 'test', None where there are no parts.
    folder: of the class, relative to the root.
    below: folders between that of the class (and part) and the file.
  """

  name: str | None
  part: str | None
  folder: str
  below: tuple[str, ...]


class Layout:
  """The meaning of the folders below a root.

  Attributes:
    class_names: as asked for, else all class folders by name.
  """

  def __init__(self, root: str, folders: Iterable[str], classes: Sequence[str] = ()):
    """Reads the layout off the paths of all `folders` below `root`, which messages name.

    Raises:
      UserError: one of `classes` is missing, or folders look like parts and cannot be.
    """
    paths = [tuple(path.split('/')) for path in folders]
    tops = sorted({path[0] for path in paths})
    asked = {*map(walker.spelling, classes)}
    # Of classes that were not asked for nothing is read.
    named = asked & {*map(walker.spelling, tops)}
    kept = [p for p in paths if len(p) > 1 and (not named or walker.spelling(p[0]) in named)]
    seconds = sorted({path[1] for path in kept})
    self._class_at, self._part_at = _order(root, tops, seconds, classes)
    found = sorted({path[self._class_at] for path in paths if len(path) > self._class_at})
    chosen = {_resolved(root, name, found): name for name in classes}
    self._names: Mapping[str, str] = chosen or {name: walker.shown(name) for name in found}
    self.class_names = tuple(self._names.values())
    self._folders = {p[: self._depth] for p in paths if len(p) >= self._depth}

  @property
  def _depth(self) -> int:
    """How many folders say class and part."""
    return max(self._class_at, -1 if self._part_at is None else self._part_at) + 1

  def place(self, path: str) -> Place | None:
    """Where a file lies; None outside any class."""
    folders = tuple(path.split('/')[:-1])
    if len(folders) < self._depth:
      return None
    name = self._names.get(folders[self._class_at])
    part = None if self._part_at is None else part_of(folders[self._part_at])
    folder, below = folders[: self._depth], folders[self._depth :]
    return Place(name, part, '/'.join(folder), below)

  def class_folders(self) -> list[str]:
    """Every folder of a class asked for (of each part), by name."""
    chosen = (folder for folder in self._folders if folder[self._class_at] in self._names)
    return sorted('/'.join(folder) for folder in chosen)


def part_of(name: str) -> str | None:
  """'train', 'val' or 'test' for a folder called so in one of the usual spellings."""
  letters = re.sub(r'[\W\d_]+', '', name.casefold())
  found = _PART.fullmatch(letters)
  return _PARTS[found[1]] if found else None


def parts_alone(root: str, tops: Iterable[str]) -> bool:
  """Whether the folders in the root are parts, where something else says the classes.

  Raises:
    UserError: several are parts, but not all, or all seem to be.
  """
  tops = sorted(tops)
  parts = [part_of(name) for name in tops]
  if not all(parts) and all(map(_mentioned, tops)) and len(set().union(*map(_mentioned, tops))) > 1:
    raise UserError(
      f'{root}: {_names(tops)} look like parts of a data set; call part folders train, val and test'
    )
  if len({*parts} - {None}) > 1 and None in parts:
    raise UserError(
      f'{root}: part folders (train, val, test) lie beside {parts.count(None)} others; put '
      'everything into part folders, or nothing'
    )
  return bool(parts) and None not in parts


def refuse_empty(layout: Layout, filled: set[str], remark: str) -> None:
  """Raises UserError where a class folder is not among those that images were taken from."""
  for folder in layout.class_folders():
    if folder not in filled:
      raise UserError(
        f'{walker.shown(folder)}: this class folder holds no image that can be taken; fill it,'
        f' remove it, or name the classes wanted with data.classes{remark}'
      )


def refuse_masks(root: str, paths: Iterable[str], chosen: Sequence[str] = ()) -> None:
  """Raises UserError where images at `paths` lie in a folder of masks beside other images.

  Or where one is called as another and a word for masks, `1_mask.png` beside `1.png`.

  Folders in `chosen`, the classes that the user named, are taken at their word.
  """
  paths = list(paths)
  _refuse_masks_by_name(root, paths)
  beside: dict[tuple[str, ...], set[str]] = {}
  for path in paths:
    folders = tuple(path.split('/'))
    for depth in range(len(folders)):
      is_file = depth == len(folders) - 1
      beside.setdefault(folders[:depth], set()).add('' if is_file else folders[depth])
  for parent, names in sorted(beside.items()):
    images = any(_IMAGES.fullmatch(_letters(name)) for name in names) or '' in names
    for name in sorted(names - {'', *chosen}):
      if len(names) > 1 and _says_masks(name, perhaps=images):
        others = ', '.join(repr(walker.shown(n)) for n in sorted(names - {name, ''})[:3])
        raise UserError(
          f'{root}: {walker.shown("/".join((*parent, name)))!r} looks like masks or annotations, '
          f'beside {others or "images"}; {_remedy(parent)}'
        )


def _says_masks(name: str, *, perhaps: bool) -> bool:
  words = [*_words(name), _letters(name)]
  return any(_MASKS.fullmatch(w) or (perhaps and _PERHAPS_MASKS.fullmatch(w)) for w in words)


def _remedy(parent: tuple[str, ...]) -> str:
  if parent:  # below a class: its folder is taken whole
    return 'move the masks out of the folder of the class'
  return (
    "name the folders that hold classes with --config.data.classes=\"('a','b')\", or give a "
    'folder without it'
  )


def _refuse_masks_by_name(root: str, paths: Iterable[str]) -> None:
  """Raises UserError where a file is called as another one beside it, and a word for masks."""
  images: dict[tuple[str, str], str] = {}
  masks: dict[tuple[str, str], str] = {}
  for path in paths:
    folder, _, name = path.rpartition('/')
    stem = name.rpartition('.')[0] or name
    images[folder, stem] = path
    if found := _MASK_NAME.fullmatch(stem):
      masks[folder, found[1] or found[2]] = path
    elif found := _IMAGE_NAME.fullmatch(stem):
      images[folder, found[1] or found[2]] = path
  for place in sorted(masks.keys() & images.keys()):
    if masks[place] != images[place]:
      raise UserError(
        f'{root}: {walker.shown(masks[place])!r} looks like a mask of '
        f'{walker.shown(images[place])!r}; keep masks in another folder'
      )


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
  """Names that differ by case, blanks, punctuation inside or Unicode form alone, together."""
  same: dict[str, list[str]] = {}
  for name in names:
    folded = unicodedata.normalize('NFKC', name).casefold()
    same.setdefault(re.sub(r'[\s_.]+|(?<=\w)-(?=\w)', '', folded), []).append(name)
  return [tuple(group) for group in same.values() if len(group) > 1]


def _order(
  root: str, tops: Sequence[str], seconds: Sequence[str], classes: Sequence[str]
) -> tuple[int, int | None]:
  """At which depth the folders of classes and of parts lie; None: there are no parts."""
  if not {*map(walker.spelling, classes)} & {*map(walker.spelling, tops)}:
    if tops and all(map(part_of, tops)):
      if not seconds:
        raise UserError(
          f'{root}: the part folders {_names(tops)} hold no class folders; sort the images into '
          'part/class/image, or take the images of each class into one folder'
        )
      return 1, 0
    _refuse_unclear(root, tops)
  if {*map(part_of, seconds)} & {'train'} and {*map(part_of, seconds)} & {'val', 'test'}:
    if all(map(part_of, seconds)):
      return 0, 1
    parts = [name for name in seconds if part_of(name)]
    raise UserError(
      f'{root}: class folders hold part folders ({_names(parts)}) beside '
      f'{len(seconds) - len(parts)} others; use class/part/image throughout, or no part folders'
    )
  _refuse_unclear_below(root, seconds)
  return 0, None


def _refuse_unclear_below(root: str, seconds: Sequence[str]) -> None:
  """Raises UserError where all folders of classes hold seem to be parts, or are folds."""
  if len(seconds) < 2:
    return
  mentioned = [_mentioned(name) for name in seconds]
  parts = all(mentioned) and len(set().union(*mentioned)) > 1
  if parts or all(_FOLD.fullmatch(name) for name in seconds):
    raise UserError(
      f'{root}: class folders hold {_names(seconds)}, which look like parts of a data set; call '
      'them train, val and test, or take the images of each class into one folder'
    )


def _refuse_unclear(root: str, tops: Sequence[str]) -> None:
  """Raises UserError where some, not all, are parts, or several seem to be."""
  parts = [name for name in tops if part_of(name)]
  others = [name for name in tops if not part_of(name)]
  if parts and others:
    raise UserError(
      f'{root}: split folders ({_names(parts)}) lie beside others ({_names(others)});'
      ' use either split/class/image or class/image throughout, or name the classes wanted with'
      " --config.data.classes=\"('a','b')\""
    )
  if len(others) > 1 and all(_FOLD.fullmatch(name) for name in others):
    raise UserError(
      f'{root}: {_names(others)} look like folds, which are not classes; put the images of each '
      'class into one folder (split.folds makes folds), or, if these are classes, name them with'
      " --config.data.classes=\"('a','b')\""
    )
  seeming = {name: _mentioned(name) for name in others if _mentioned(name)}
  if len(set().union(*seeming.values())) > 1:
    raise UserError(
      f'{root}: {_names(sorted(seeming))} look like parts of a data set, which are not classes; '
      'call part folders train, val and test, or, if these are classes, name them with'
      " --config.data.classes=\"('a','b')\""
    )


def _mentioned(name: str) -> set[str]:
  """Parts that words of a name stand for."""
  return {part for word in _words(name) if (part := _meant(word))}


def _meant(word: str) -> str | None:
  """The part that a word stands for, or itself where it stands for one without a fixed meaning."""
  begun = (part for start, part in _BEGINNINGS.items() if word.startswith(start))
  return part_of(word) or (word if word in _NEARLY else next(begun, None))


def _resolved(root: str, name: str, found: Sequence[str]) -> str:
  """The folder of a class, whose accents may be stored in another Unicode form."""
  if name in found:
    return name
  same = [folder for folder in found if walker.spelling(folder) == walker.spelling(name)]
  if len(same) != 1:
    raise UserError(f'{root}: no class folder named {name!r}; have: {_names(found)}')
  return same[0]


def _words(name: str) -> list[str]:
  """Lower-case words, parted by whatever is no letter and by capitals."""
  parted = re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', name)
  return [word.casefold() for word in re.split(r'[\W\d_]+', parted) if word]


def _letters(name: str) -> str:
  return ''.join(_words(name))


def _names(names: Iterable[str]) -> str:
  return ', '.join(repr(walker.shown(name)) for name in names) or 'none'
