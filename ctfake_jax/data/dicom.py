"""CT in DICOM files: single slices, whole series and multi-frame objects.

Enters a file or a folder; leaves a `types.Source` of slices as `dicom_frame` makes them. Building
it reads headers only, so that whatever a header can tell (wrong modality, senseless spacing, too
many pixels) is known before any long work; pixels are decoded one frame at a time, when asked for.

Messages quote sizes and codes of a header; of names and IDs only a hash is kept.
"""

import collections
import csv
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import MediaStorageDirectoryStorage

from ctfake_jax.data import dicom_frame, dicom_header, dicom_kind
from ctfake_jax.geometry import Plane
from ctfake_jax.types import (
  UNKNOWN_LABEL,
  Instance,
  Record,
  Slice,
  Unit,
  UnreadableImageError,
  UserError,
)

_SUFFIXES = ('.dcm', '.dicom', '.ima')


class _Frame(NamedTuple):
  path: str  # relative to the root, with forward slashes
  number: int  # from 0
  shown: str
  series: str
  patient_id: str | None
  plane: Plane
  unit: Unit
  instance_number: int
  instance: Instance


class DicomSource:
  """CT images below a file or folder as a `types.Source`.

  Series follow each other by path; within a series slices are sorted by position along the slice
  normal, or by Instance Number where a slice has no position. Every frame of a multi-frame object
  is an image of its own, `path#frame`, frames counted from 1.

  Files that are not DICOM are ignored, unless their suffix says that they should be.

  Attributes:
    class_names: labels of the CSV, or the folders directly below the root, sorted; () if neither.
    records: one per frame, in order; `patient_id` is a hash of Patient ID (of Study Instance UID
      where that is empty): a pseudonym, which who can guess the ID can check.
    unreadable: what is DICOM, or claims to be, and cannot be used, with the reason.
  """

  def __init__(
    self,
    root: pathlib.Path,
    *,
    labels_csv: pathlib.Path | None,
    max_pixels: int,
    synthetic_ok: bool = False,
  ):
    """Reads all headers below `root`.

    Args:
      root: a folder, or one DICOM file. Links out of it are not followed.
      labels_csv: a table with the columns `label` and either `SeriesInstanceUID` or `path`, the
        latter relative to `root`, of a file or of a folder for all that is in it. None takes the
        first folder of each path as its label, if no CT file lies directly in `root`.
      max_pixels: a frame with more, before or after resampling, is refused before decoding.
      synthetic_ok: whether what says that it is synthetic is taken; it is no original.

    Raises:
      UserError: no such root, no CT in it, or labels that do not fit the files.
    """
    if not root.exists():
      raise UserError(f'{root}: there is no such file or folder; check the path of the data')
    self._root = root if root.is_dir() else root.parent
    self._max_pixels, self._synthetic_ok = max_pixels, synthetic_ok
    self._last: tuple[str, pydicom.Dataset] | None = None
    self.unreadable: list[UnreadableImageError] = []
    # What a CSV row may name without an image: labels of refused files are no mistake.
    self._known_keys: set[str] = set()
    found: list[_Frame] = []
    for path in sorted(self._walk(root)):
      found.extend(self._index(path))
    if not found:
      raise UserError(f'{root}: no usable CT image in DICOM format found{self._first_reasons()}')
    self._frames = _sorted(self._of_one_unit(found))
    table = None if labels_csv is None else _read_csv(labels_csv)
    labels = _folder_labels(self._frames) if table is None else self._csv_labels(table)
    self.class_names = tuple(sorted({label for label in labels if label is not None}))
    numbers = {None: UNKNOWN_LABEL} | {name: i for i, name in enumerate(self.class_names)}
    self.records = [
      Record(
        numbers[label],
        frame.patient_id,
        frame.shown,
        plane=frame.plane,
        instance=frame.instance,
      )
      for frame, label in zip(self._frames, labels, strict=True)
    ]

  def __len__(self) -> int:
    return len(self._frames)

  def __getitem__(self, index: int) -> Slice:
    """Decodes frame `index`: float32[h, w] in HU (or grey, see `dicom_frame`), square pixels."""
    frame = self._frames[index]
    try:
      with dicom_header.quiet_pydicom():
        image = dicom_frame.decode(self._open(frame.path), frame.number)
        return _marked(image, dicom_kind.synthetic(self._open(frame.path), frame.number))
    except Exception as error:  # decoders raise whatever a broken file sets off
      raise UnreadableImageError(frame.shown, _reason(error)) from error

  def _open(self, path: str) -> pydicom.Dataset:
    """The file with its pixels still encoded; the last one is kept for its other frames."""
    if self._last is None or self._last[0] != path:
      self._last = path, dicom_header.read(self._root / path, self._max_pixels)
    return self._last[1]

  def _walk(self, root: pathlib.Path) -> Iterator[str]:
    """Relative paths of regular files; links that lead out go to `unreadable`."""
    if root.is_file():
      yield root.name
      return
    inside = root.resolve()
    for folder, folders, names in os.walk(root):
      for name in folders + names:
        path = pathlib.Path(folder, name)
        shown = path.relative_to(root).as_posix()
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
          self._refuse(shown, shown, 'a link out of the input folder, not followed')
        elif path.is_file():
          yield shown

  def _index(self, path: str) -> list[_Frame]:
    """What the header tells of each usable frame; the others go to `unreadable`."""
    file = self._root / path
    with dicom_header.quiet_pydicom():
      try:
        header = dicom_header.read(file, self._max_pixels, stop_before_pixels=True)
        if header.get('SOPClassUID') == MediaStorageDirectoryStorage:
          return []
        self._known_keys.add(_series(header, path))
        count = dicom_header.check_file(header, file.stat().st_size, self._max_pixels)
      except InvalidDicomError:
        if path.lower().endswith(_SUFFIXES):
          self._refuse(path, path, 'not a DICOM file (no DICM prefix)')
        return []
      except Exception as error:  # as in __getitem__
        self._refuse(path, path, _reason(error))
        return []
      return [
        frame
        for number in range(count)
        if (frame := self._index_frame(header, path, number, count))
      ]

  def _index_frame(
    self, header: pydicom.Dataset, path: str, number: int, count: int
  ) -> _Frame | None:
    shown = path if count == 1 else f'{path}#{number + 1}'
    try:
      plane = dicom_kind.check_axial(header, number)
      self._check_resampled(plane)
      synthetic = self._check_original(header, number)
      return _Frame(
        path,
        number,
        shown,
        _series(header, path),
        _pseudonym(header),
        plane,
        dicom_header.unit(header, number),
        int((dicom_header.numbers(header, number, 'InstanceNumber') or (0,))[0]),
        _instance(header, number, count, synthetic),
      )
    except Exception as error:  # as in __getitem__
      self._refuse(path, shown, _reason(error))
      return None

  def _check_resampled(self, plane: Plane) -> None:
    rows, columns = plane.square_shape
    if rows * columns > self._max_pixels:
      raise dicom_header.RefusalError(
        f'with square pixels {rows} x {columns} is above data.max_pixels = {self._max_pixels}'
      )

  def _check_original(self, header: pydicom.Dataset, number: int) -> bool:
    """Whether the frame is synthetic, as it says; raises where that rules it out."""
    says = dicom_kind.synthetic(header, number)
    if says and not self._synthetic_ok:
      raise dicom_header.RefusalError(f'{says}: no original; data.synthetic_ok=True takes it')
    return bool(says)

  def _of_one_unit(self, frames: list[_Frame]) -> list[_Frame]:
    """Those in the unit that most of their series have, HU if as many; the others are refused."""
    votes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for frame in frames:
      votes[frame.series][frame.unit] += 1
    kept = []
    for frame in frames:
      counts = votes[frame.series]
      usual: Unit = 'HU' if 2 * counts['HU'] >= counts.total() else 'grey'
      if frame.unit == usual:
        kept.append(frame)
      else:
        self._refuse(frame.path, frame.shown, f'{frame.unit} values in a series of {usual} values')
    return kept

  def _refuse(self, path: str, shown: str, reason: str) -> None:
    self.unreadable.append(UnreadableImageError(shown, reason))
    self._known_keys.update(_path_keys(path))

  def _first_reasons(self) -> str:
    reasons = '; '.join(str(error) for error in self.unreadable[:3])
    return f' ({len(self.unreadable)} refused: {reasons})' if reasons else ''

  def _csv_labels(self, table: Mapping[str, str]) -> list[str]:
    """The label of each frame; every frame needs one, every row an image."""
    labels, used = [], set(self._known_keys)
    unlabelled, torn = [], []
    for frame in self._frames:
      keys = {frame.series, *_path_keys(frame.path)} & table.keys()
      found = {table[key] for key in keys}
      used |= keys
      labels.append(min(found, default=''))
      if not found:
        unlabelled.append(frame.shown)
      elif len(found) > 1:
        torn.append(frame.shown)
    _complain(unlabelled, 'images have no row in the CSV of labels; add them')
    _complain(torn, 'images have several labels in the CSV; leave one each')
    unused = [key for key in table if key not in used]
    _complain(
      unused, 'rows of the CSV of labels match no file (paths are relative to the data folder)'
    )
    return labels


def _marked(image: Slice, synthetic: str) -> Slice:
  """With what the file says of being synthetic, if anything, as its first remark."""
  if not synthetic:
    return image
  return dataclasses.replace(image, remarks=(synthetic, *image.remarks), synthetic=True)


def _reason(error: Exception) -> str:
  """One short line without absolute paths."""
  if isinstance(error, OSError):
    text = error.strerror or type(error).__name__
  elif isinstance(error, dicom_header.RefusalError):
    text = str(error)
  else:
    text = f'cannot be decoded, damaged or truncated ({type(error).__name__}: {error})'
  line = ' '.join(text.split())
  return line if len(line) <= 200 else f'{line[:197]}...'


def _series(header: pydicom.Dataset, path: str) -> str:
  return str(header.get('SeriesInstanceUID') or pathlib.PurePosixPath(path).parent)


def _instance(header: pydicom.Dataset, number: int, count: int, synthetic: bool) -> Instance:
  return Instance(
    sop_class_uid=str(header.SOPClassUID),
    sop_instance_uid=str(header.get('SOPInstanceUID') or ''),
    frame_of_reference_uid=str(header.get('FrameOfReferenceUID') or ''),
    frame=number + 1 if count > 1 else 0,
    synthetic=synthetic,
  )


def _pseudonym(header: pydicom.Dataset) -> str | None:
  key = str(header.get('PatientID') or '').strip() or str(header.get('StudyInstanceUID') or '')
  return hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()[:12] if key else None


def _sorted(frames: list[_Frame]) -> list[_Frame]:
  series: dict[str, list[_Frame]] = {}
  for frame in frames:  # they come by path, and so do the series
    series.setdefault(frame.series, []).append(frame)
  result = []
  for members in series.values():
    heights = {frame: frame.plane.height_mm for frame in members}
    placed = None not in heights.values()
    result += sorted(
      members, key=lambda f: (heights[f] if placed else 0, f.instance_number, f.path, f.number)
    )
  return result


def _folder_labels(frames: list[_Frame]) -> list[str] | list[None]:
  if any('/' not in frame.path for frame in frames):
    return [None] * len(frames)
  return [frame.path.partition('/')[0] for frame in frames]


def _path_keys(path: str) -> list[str]:
  """What a CSV may call a file: its path, or any folder it is in ('.' for the root)."""
  pure = pathlib.PurePosixPath(path)
  return [path, *map(str, pure.parents)]


def _read_csv(path: pathlib.Path) -> dict[str, str]:
  """Label by Series Instance UID or by normalised path."""
  try:
    with path.open(newline='', encoding='utf-8-sig') as file:
      rows = list(csv.reader(file, strict=True))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f'{path.name}: cannot be read as a CSV of labels: {_reason(error)}') from error
  header = [name.strip().lower() for name in rows[0]] if rows else []
  keys = [i for i, name in enumerate(header) if name in ('seriesinstanceuid', 'path')]
  if len(keys) != 1 or header.count('label') != 1:
    raise UserError(
      f"{path.name}: columns {header}; need 'label' and either 'SeriesInstanceUID' or 'path'"
    )
  key_column, label_column = keys[0], header.index('label')
  table: dict[str, str] = {}
  for line, row in enumerate(rows[1:], start=2):
    if not any(cell.strip() for cell in row):
      continue
    cells = [cell.strip() for cell in row]
    if len(cells) != len(header) or not cells[key_column] or not cells[label_column]:
      raise UserError(f'{path.name}, row {line}: need {len(header)} cells, key and label not empty')
    key, label = _normal(cells[key_column]), cells[label_column]
    if table.setdefault(key, label) != label:
      raise UserError(f'{path.name}, row {line}: {key} has two labels; leave one')
  return table


def _normal(key: str) -> str:
  return str(pathlib.PurePosixPath(key.replace('\\', '/')))


def _complain(items: list[str], what: str) -> None:
  if items:
    more = ' ...' if len(items) > 3 else ''
    raise UserError(f'{len(items)} {what}: {", ".join(items[:3])}{more}')
