"""What lies below a folder of somebody else's: every entry once, in order of name, with its kind.

All that reads folders walks them here, so that pictures and DICOM, training and `detect` skip the
same things and name the same obstacles. Nothing is decoded; a file whose name does not tell its
kind gives its first bytes.

A path is kept as the file system spells it, which may be bytes that are no UTF-8; `shown` makes
text of it that any terminal, table and encoder takes.
"""

import collections
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

Kind = Literal['folder', 'picture', 'dicom', 'other', 'hidden', 'refused']
PICTURE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.tif', '.tiff', '.bmp', '.dib')
DICOM_SUFFIXES = ('.dcm', '.dicom', '.ima')
HIDDEN: Literal['hidden'] = 'hidden'
NO_SUFFIX = 'without suffix'
# What systems leave among files: of Windows, macOS, Synology and QNAP, and of file systems.
_SYSTEM = {
  *('thumbs.db', 'ehthumbs.db', 'desktop.ini', '$recycle.bin', 'recycler'),
  *('system volume information', '__macosx', 'icon\r', 'lost+found'),
  *('@eadir', '@tmp', '@recycle', '@recently-snapshot', '#recycle', '#snapshot'),
}
_PREFIX_ENDS = 132  # 128 bytes of preamble and DICM (DICOM PS3.10, section 7.1)
# Line breaks, control characters, bytes that are no UTF-8, and what turns the writing direction.
_UNSHOWABLE = ('Cc', 'Cs', 'Zl', 'Zp')
_TURNS = frozenset('\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069')


_ARCHIVES = {b'\x1f\x8b': 'gzip', b'PK\x03\x04': 'zip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz'}


class Entry(NamedTuple):
  """Something below the root.

  Attributes:
    path: relative to the root, with forward slashes, as the file system spells it.
    kind: 'folder' (listed next), 'picture', 'dicom', 'other', 'hidden' (not looked into) or
      'refused'.
    reason: why it cannot be read, of what is refused.
  """

  path: str
  kind: Kind
  reason: str = ''

  @property
  def sort(self) -> str:
    """What it is counted as where it is not read: 'hidden', a suffix, or 'without suffix'."""
    if self.kind == HIDDEN:
      return HIDDEN
    suffix = PurePosixPath(self.path).suffix.lower()
    # What follows the last dot of a UID, or of a date, is no suffix.
    return suffix if re.fullmatch(r'\.(?!\d+$)[a-z0-9]{1,8}', suffix) else NO_SUFFIX


def base(root: Path) -> Path:
  """The folder that the paths of `walk(root)` start from."""
  return root if root.is_dir() else root.parent


def walk(root: Path) -> Iterator[Entry]:
  """Every entry below `root`, or the one file: a folder before what is in it, by name.

  Links to files within the root are taken; all other links, what is no regular file and what may
  not be read are refused, with the reason.
  """
  if not root.is_dir():
    yield _guarded(_file, root, root.name)
    return
  inside = os.path.realpath(root)
  pending = [_listed(root, '', inside)]
  while pending:
    entry = next(pending[-1], None)
    if entry is None:
      pending.pop()
    else:
      yield entry
      if entry.kind == 'folder':
        pending.append(_listed(root, entry.path, inside))


def count(entries: Iterable[Entry]) -> dict[str, int]:
  """How many of each sort."""
  return dict(collections.Counter(entry.sort for entry in entries))


def in_words(skipped: Mapping[str, int]) -> str:
  """One line on what was not read, '' where that is nothing."""
  sorts = sorted(skipped.items() - {(HIDDEN, skipped.get(HIDDEN))}, key=lambda s: (-s[1], s[0]))
  files = 'not read: ' + ', '.join(f'{number} {sort}' for sort, number in sorts) if sorts else ''
  hidden = f'hidden: {skipped[HIDDEN]}' if skipped.get(HIDDEN) else ''
  return '; '.join(filter(None, (files, hidden)))


def say(skipped: Mapping[str, int]) -> None:
  """Prints `in_words`, where there is something to say."""
  if words := in_words(skipped):
    print(words, flush=True)


def packed_by(path: Path) -> str:
  """The program that packed a file, by its first bytes; '' where it is no archive."""
  with path.open('rb') as file:
    head = file.read(5)
  return next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), '')


def shown(path: str) -> str:
  r"""A path or name as text: what cannot be shown stands as its code, a line break as `\x0a`."""
  if path.isascii() and path.isprintable():
    return path
  text = os.fsencode(path).decode('utf-8', 'surrogateescape')
  return ''.join(_code(c) if _is_unshowable(c) else c for c in text)


def spelling(name: str) -> str:
  """A name in one Unicode form (NFC): macOS takes accents apart, keyboards put them together."""
  return unicodedata.normalize('NFC', name)


def is_dicom(path: Path) -> bool:
  """Whether a file is DICOM, or claims to be by its suffix; raises OSError."""
  return path.name.lower().endswith(DICOM_SUFFIXES) or starts_as_dicom(path)


def starts_as_dicom(path: Path) -> bool:
  """Whether the first bytes of a file are DICOM's, with or without preamble; raises OSError."""
  with path.open('rb') as file:
    head = file.read(_PREFIX_ENDS)
  return head[128:] == b'DICM' or _is_element(head)


def _is_element(head: bytes) -> bool:
  """Whether bytes begin with an element of group 2 or 8, which stand first (PS3.5, 7.1).

  Group and element are followed by two letters that name the type, or by a length of four bytes.
  """
  if len(head) < 8 or head[:2] not in (b'\x02\0', b'\x08\0', b'\0\x02', b'\0\x08'):
    return False
  order: Literal['little', 'big'] = 'little' if head[1] == 0 else 'big'
  letters = head[4:6].isalpha() and head[4:6].isupper()
  return letters or int.from_bytes(head[4:8], order) < 2**16


def _listed(root: Path, folder: str, inside: str) -> Iterator[Entry]:
  """The entries of one folder, by name; one that is refused where it cannot be listed."""
  try:
    with os.scandir(root / folder) as found:
      entries = sorted(found, key=lambda entry: entry.name)
  except OSError as error:
    yield Entry(folder, 'refused', f'is a folder that cannot be listed ({error.strerror})')
    return
  for entry in entries:
    path = f'{folder}/{entry.name}' if folder else entry.name
    if entry.name.startswith(('.', '~$')) or entry.name.lower() in _SYSTEM:
      yield Entry(path, HIDDEN)
    else:
      yield _guarded(_entry, Path(entry.path), path, inside)


def _guarded(look: Callable[..., Entry], file: Path, path: str, *arguments: str) -> Entry:
  try:
    return look(file, path, *arguments)
  except OSError as error:
    return Entry(path, 'refused', f'cannot be read ({error.strerror or type(error).__name__})')


def _entry(file: Path, path: str, inside: str) -> Entry:
  mode = file.lstat().st_mode
  if stat.S_ISDIR(mode):
    return Entry(path, 'folder')
  if stat.S_ISLNK(mode):
    return _link(file, path, inside)
  return _file(file, path)


def _link(file: Path, path: str, inside: str) -> Entry:
  try:
    target = os.path.realpath(file, strict=True)
  except FileNotFoundError:
    return Entry(path, 'refused', 'is a link that leads nowhere')
  except OSError as error:
    return Entry(path, 'refused', f'is a link that cannot be followed ({error.strerror})')
  if not Path(target).is_relative_to(inside):
    return Entry(
      path, 'refused', 'is a link that leads out of the folder; put the file itself there'
    )
  if os.path.isdir(target):
    return Entry(path, 'refused', 'is a link to a folder, which is not followed')
  return _file(file, path)


def _file(file: Path, path: str) -> Entry:
  if not stat.S_ISREG(file.stat().st_mode):
    return Entry(path, 'refused', 'is not a regular file')
  if path.lower().endswith(PICTURE_SUFFIXES):
    return Entry(path, 'picture')
  return Entry(path, 'dicom' if is_dicom(file) else 'other')


def _is_unshowable(character: str) -> bool:
  return character in _TURNS or unicodedata.category(character) in _UNSHOWABLE


def _code(character: str) -> str:
  number = ord(character)
  if 0xDC80 <= number <= 0xDCFF:  # a byte that is no UTF-8, as PEP 383 keeps it
    number -= 0xDC00
  return f'\\x{number:02x}' if number < 0x100 else f'\\u{number:04x}'
