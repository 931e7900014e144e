"""Picture folders: `class/image` and `split/class/image` trees of PNG, JPEG, TIFF and BMP.

Enters a folder; leaves a `types.Source` of grey slices, float32[h, w] in [0, 1], without spacing.
Building it lists names only (a hundred thousand files take seconds); a file is opened when it is
asked for, so a broken one is found at `source[i]`, which raises `UnreadableImageError`.

What a file becomes:
  8-bit grey v / 255, 16-bit grey v / 65535, 12-bit TIFF v / 4095, 1-bit 0 or 1;
  colour and palettes the luma 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601-7, section 2.5.1), of
  which Pillow keeps the upper 8 bits where a channel has 16; alpha is ignored;
  float TIFF as it is, if finite and within [0, 1]; WhiteIsZero TIFF turned so that 1 is white;
  EXIF and TIFF orientation are applied.
Refused, with the reason: several pages or frames in one file (which of them bears the label is
unknown), signed and 32-bit integers (they have no fixed white), everything else.
"""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.misc import is_dicom

from ctfake_jax.types import UNKNOWN_LABEL, Record, Slice, UnreadableImageError, UserError

_SPLITS = {
  'train': 'train',
  'training': 'train',
  'val': 'val',
  'valid': 'val',
  'validation': 'val',
  'test': 'test',
  'testing': 'test',
}
_SUFFIXES = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.tif', '.tiff', '.bmp', '.dib')
_FORMATS = ('PNG', 'JPEG', 'TIFF', 'BMP')
# Dot files, and the folder of resource forks that macOS puts into ZIP archives.
_HIDDEN = ('.', '__MACOSX')
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF 6.0, section 8


_DICOM_SUFFIXES = ('.dcm', '.dicom', '.ima')


class _ClassFolder(NamedTuple):
  path: pathlib.Path
  split: str | None
  name: str


class FolderSource:
  """Images in a folder tree as a `types.Source`.

  The layout is `split/class/image` where all top folders bear a split's name (train, training;
  val, valid, validation; test, testing), else `class/image`. Images may lie at any depth below
  their class folder; order is by name. Hidden files and files without an image's suffix are
  ignored; links that lead out of the root, and images outside any class, go to `unreadable`.

  Attributes:
    class_names: `classes`, or all class folders sorted by name; () where nothing is labelled.
    records: one per image, in order.
    unreadable: what bears an image's name but was not indexed, and why.
  """

  def __init__(
    self,
    root: pathlib.Path,
    *,
    classes: tuple[str, ...] = (),
    max_pixels: int,
    unlabelled_ok: bool = False,
    patient_folders: bool = False,
  ):
    """Lists the images below `root`; opens none.

    Args:
      root: the folder; with `unlabelled_ok` also a single image file.
      classes: class folders to take, in the order of their labels; () takes all, sorted.
      max_pixels: an image with more (by its header) is refused before decoding. Above twice
        `PIL.Image.MAX_IMAGE_PIXELS` Pillow refuses in any case.
      unlabelled_ok: for prediction: accept images directly in `root` (then nothing is labelled)
        and class folders that are alone or empty.
      patient_folders: the folder right below the class names the patient; the id is a hash of
        that name (a pseudonym: who can guess the name can check the guess).

    Raises:
      UserError: `root` is missing or holds no image, has one class or an empty class, lacks one
        of `classes`, mixes split and class folders, or holds a linked folder.
    """
    self._root, self._max_pixels = pathlib.Path(root), max_pixels
    self.class_names: tuple[str, ...] = ()
    self.records: list[Record] = []
    self.unreadable: list[UnreadableImageError] = []
    self._paths: list[pathlib.Path] = []
    if not self._root.exists():
      raise UserError(f'{root}: there is no such folder; check the path of the data')
    if self._root.is_file():
      self._index_file(unlabelled_ok)
    elif unlabelled_ok and _is_flat(self._root):
      self._index(_ClassFolder(pathlib.Path(), None, ''), patient_folders=False)
    else:
      self._index_classes(classes, unlabelled_ok, patient_folders)
    if not self.records:
      raise UserError(
        f'{root}: no image found; wanted are class folders that hold {", ".join(_FORMATS)} files'
        f'{_first_reason(self.unreadable)}'
      )

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Slice:
    """Decodes image `index`: pixels float32[h, w] in [0, 1], unit 'grey', no spacing."""
    shown = self.records[index].provenance
    try:
      pixels = _decode(self._root / self._paths[index], shown, self._max_pixels)
    except UnreadableImageError:
      raise
    except Exception as error:  # Pillow's parsers let through whatever a broken file sets off.
      raise UnreadableImageError(shown, _reason(error)) from error
    return Slice(pixels=pixels, unit='grey', spacing_mm=None)

  def _index_file(self, unlabelled_ok: bool) -> None:
    if not unlabelled_ok:
      raise UserError(f'{self._root}: is a file; give the folder that holds the class folders')
    name, self._root = self._root.name, self._root.parent
    self._add(pathlib.Path(name), UNKNOWN_LABEL, None, None)

  def _index_classes(
    self, classes: tuple[str, ...], unlabelled_ok: bool, patient_folders: bool
  ) -> None:
    folders = list(_class_folders(self._root, classes, self.unreadable))
    found = sorted({folder.name for folder in folders})
    if missing := [name for name in classes if name not in found]:
      raise UserError(
        f'{self._root}: no class folder named {_names(missing)}; have: {_names(found)}'
      )
    self.class_names = tuple(classes or found)
    if len(self.class_names) == 1 and not unlabelled_ok:
      raise UserError(
        f'{self._root}: only one class ({self.class_names[0]!r}), a classifier needs two or more;'
        f' put each class into a folder of its own{_first_reason(self.unreadable)}'
      )
    for folder in folders:
      if folder.name in self.class_names:
        before = len(self)
        self._index(folder, patient_folders)
        if len(self) == before and not unlabelled_ok:
          raise UserError(
            f'{_shown(folder.path)}: this class folder holds no image that can be taken; fill it,'
            f' remove it, or name the classes wanted{_first_reason(self.unreadable)}'
          )

  def _index(self, folder: _ClassFolder, patient_folders: bool) -> None:
    label = self.class_names.index(folder.name) if folder.name else UNKNOWN_LABEL
    for path in _images(self._root, folder.path, self.unreadable):
      below = path.relative_to(folder.path).parts
      patient = _pseudonym(below[0]) if patient_folders and len(below) > 1 else None
      self._add(path, label, patient, folder.split)

  def _add(self, path: pathlib.Path, label: int, patient: str | None, split: str | None) -> None:
    self._paths.append(path)
    self.records.append(Record(label, patient, _shown(path), split))


def _class_folders(
  root: pathlib.Path, classes: tuple[str, ...], unreadable: list[UnreadableImageError]
) -> Iterator[_ClassFolder]:
  tops = _folders(root, pathlib.Path(), unreadable)
  splits = {name: _SPLITS[name.lower()] for name in tops if name.lower() in _SPLITS}
  if not splits or (classes and set(classes) <= set(tops)):
    yield from (_ClassFolder(pathlib.Path(name), None, name) for name in tops)
    return
  if others := [name for name in tops if name not in splits]:
    raise UserError(
      f'{root}: split folders ({_names(list(splits))}) lie beside others ({_names(others)});'
      ' use either split/class/image or class/image throughout, or name the classes wanted'
    )
  for top, split in splits.items():
    for name in _folders(root, pathlib.Path(top), unreadable):
      yield _ClassFolder(pathlib.Path(top, name), split, name)


def _folders(
  root: pathlib.Path, folder: pathlib.Path, unreadable: list[UnreadableImageError]
) -> list[str]:
  """Names of the folders in `folder`; images lying beside them belong to no class."""
  entries = _entries(root, folder)
  for entry in entries:
    if _is_named_image(entry):
      reason = 'lies outside any class folder; move it into one'
      unreadable.append(UnreadableImageError(_shown(folder / entry.name), reason))
  return [entry.name for entry in entries if entry.is_dir()]


def _images(
  root: pathlib.Path, folder: pathlib.Path, unreadable: list[UnreadableImageError]
) -> Iterator[pathlib.Path]:
  """Paths, relative to `root`, of the images at any depth below `root / folder`, by name."""
  for entry in _entries(root, folder):
    path = folder / entry.name
    if entry.is_dir():
      yield from _images(root, path, unreadable)
    elif _is_named_image(entry):
      if reason := _refusal(entry, root):
        unreadable.append(UnreadableImageError(_shown(path), reason))
      else:
        yield path
    elif _is_dicom(entry):
      reason = 'is DICOM among pictures; keep DICOM in a folder of its own and read it as DICOM'
      unreadable.append(UnreadableImageError(_shown(path), reason))


def _entries(root: pathlib.Path, folder: pathlib.Path) -> list[os.DirEntry[str]]:
  """What is visible in `root / folder`, by name."""
  try:
    with os.scandir(root / folder) as found:
      entries = [entry for entry in found if not entry.name.startswith(_HIDDEN)]
  except OSError as error:
    raise UserError(
      f'{_shown(folder)}: this folder cannot be listed ({error.strerror}); check its permissions'
    ) from error
  for entry in entries:
    if entry.is_symlink() and entry.is_dir():
      raise UserError(
        f'{_shown(folder / entry.name)}: is a link to a folder, and links are not followed;'
        ' put the folder itself there or remove the link'
      )
  return sorted(entries, key=lambda entry: entry.name)


def _is_flat(root: pathlib.Path) -> bool:
  return any(_is_named_image(entry) for entry in _entries(root, pathlib.Path()))


def _is_named_image(entry: os.DirEntry[str]) -> bool:
  return entry.name.lower().endswith(_SUFFIXES) and not entry.is_dir()


def _is_dicom(entry: os.DirEntry[str]) -> bool:
  """By its suffix, or, of a file without one, by the prefix that DICOM PS3.10 gives it."""
  if pathlib.PurePath(entry.name).suffix or not entry.is_file():
    return entry.name.lower().endswith(_DICOM_SUFFIXES)
  with contextlib.suppress(OSError):
    return is_dicom(entry.path)
  return False


def _refusal(entry: os.DirEntry[str], root: pathlib.Path) -> str:
  if not entry.is_file():
    return 'is not a regular file, or a link that leads nowhere'
  if entry.is_symlink() and not pathlib.Path(entry.path).resolve().is_relative_to(root.resolve()):
    return 'is a link that leads out of the data folder; put the file itself there'
  return ''


def _decode(path: pathlib.Path, shown: str, max_pixels: int) -> np.ndarray:
  """The file's grey picture, float32[h, w] in [0, 1]."""
  with path.open('rb') as file, Image.open(file, formats=_FORMATS) as image:
    if image.width * image.height > max_pixels:
      raise UnreadableImageError(
        shown, f'{image.width} x {image.height} is above data.max_pixels = {max_pixels}'
      )
    if (frames := getattr(image, 'n_frames', 1)) > 1:
      raise UnreadableImageError(shown, f'has {frames} pages; save each as a file of its own')
    tags = dict(getattr(image, 'tag_v2', {}))
    pixels = _grey(ImageOps.exif_transpose(image), tags)
  if not (pixels.min() >= 0 and pixels.max() <= 1):  # so written that NaN fails too
    raise UnreadableImageError(shown, 'has float values outside [0, 1] or NaN; rescale them')
  return pixels


def _grey(image: Image.Image, tags: dict) -> np.ndarray:
  """Grey float32[h, w], 1 the type's maximum; `tags` are those of a TIFF."""
  match image.mode:
    case '1' | 'L' | 'LA':
      return np.asarray(image.convert('L'), np.float32) / np.float32(255)
    case 'I;16' | 'I;16L' | 'I;16B':
      bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
      pixels = np.asarray(image).astype(np.float32) / np.float32(2**bits - 1)
    case 'F':
      pixels = np.array(image, np.float32)
    case 'P' | 'PA':  # by way of RGBA: the straight way warns where a palette has transparency
      return _luma(image.convert('RGBA'))
    case 'RGB' | 'RGBA' | 'RGBX' | 'CMYK' | 'YCbCr':
      return _luma(image)
    case mode:
      raise ValueError(f'pixel type {mode} is not supported; save as 8- or 16-bit grey or as RGB')
  # Pillow turns WhiteIsZero round for 1 and 8 bits only.
  return 1 - pixels if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else pixels


def _luma(image: Image.Image) -> np.ndarray:
  """ITU-R BT.601 luma of a colour image, float32[h, w] in [0, 1]; drops alpha.

  Whole weights keep every sum exact in float32, so that grey stored as colour gives the very
  numbers that grey stored as grey gives.
  """
  rgb = np.asarray(image.convert('RGB'), np.float32)
  return rgb @ np.array([299, 587, 114], np.float32) / np.float32(255 * 1000)


def _reason(error: Exception) -> str:
  """What went wrong, without the file's absolute path."""
  if isinstance(error, UnidentifiedImageError):
    return f'is not a readable {", ".join(_FORMATS)} file; replace or remove it'
  if isinstance(error, OSError) and error.strerror:
    return f'cannot be read ({error.strerror})'
  return f'cannot be decoded ({error or type(error).__name__}); replace or remove it'


def _shown(path: pathlib.Path) -> str:
  """A relative path as text that any encoder takes, whatever bytes the name has."""
  return os.fsencode(path.as_posix()).decode('utf-8', 'replace')


def _pseudonym(name: str) -> str:
  return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]


def _names(names: list[str]) -> str:
  return ', '.join(map(repr, names)) or 'none'


def _first_reason(unreadable: list[UnreadableImageError]) -> str:
  return f' (left out, for one: {unreadable[0]})' if unreadable else ''
