"""CT in DICOM files: single slices, whole series and multi-frame objects.

Enters a file or a folder; leaves a `types.Source` of slices as `frame` makes them. Building
it reads headers only, so that whatever a header can tell (wrong modality, senseless spacing, too
many pixels) is known before any long work; pixels are decoded one frame at a time, when asked for.

Messages quote sizes and codes of a header; of names and IDs only a hash is kept.
"""

import collections
import csv
import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import MediaStorageDirectoryStorage

from ctfake_jax.data.sources import layout, walker
from ctfake_jax.data.sources.dicom import frame as dicom_frame
from ctfake_jax.data.sources.dicom import header as dicom_header
from ctfake_jax.data.sources.dicom import kind as dicom_kind
from ctfake_jax.types import (
  UNKNOWN_LABEL,
  Instance,
  Plane,
  Record,
  Slice,
  Unit,
  UnreadableImageError,
  UserError,
)

BURNED_IN = 'text is burned into the pixels (0028,0301), which may name the patient'
_MOST_VOTERS = 16  # slices decoded to find what a series without Rescale Intercept needs


class _Frame(NamedTuple):
  path: str  # relative to the root, with forward slashes
  number: int  # from 0
  shown: str
  series: str
  patient_id: str | None
  study_alone: bool  # names a study and no patient
  plane: Plane
  unit: Unit
  lacks_intercept: bool
  instance_number: int
  instance: Instance


class DicomSource:
  """CT images below a file or folder as a `types.Source`.

  Series follow each other by path; within a series slices are sorted by position along the slice
  normal, or by Instance Number where a slice has no position. Every frame of a multi-frame object
  is an image of its own, `path#frame`, frames counted from 1.

  Pictures, text and other files are counted in `skipped`; what is DICOM or seems to be, and a file
  without a suffix that is no text, is listed in `unreadable` where it cannot be read.

  Attributes:
    class_names: labels of the CSV, or the class folders as `layout` reads them; () if neither.
    records: one per frame, in order; `patient_id` is a hash of Patient ID (of Study Instance UID
      where that is empty): a pseudonym, which who can guess the ID can check.
    unreadable: what is DICOM, or claims to be, and cannot be used, with the reason.
    skipped: how many files were not read, by kind.
  """

  def __init__(
    self,
    root: pathlib.Path,
    *,
    labels_csv: pathlib.Path | None,
    max_pixels: int,
    classes: tuple[str, ...] = (),
    unlabelled_ok: bool = False,
    synthetic_ok: bool = False,
    files: Sequence[str] | None = None,
    beside: 'DicomSource | None' = None,
  ):
    """Reads all headers below `root`.

    Args:
      root: a folder, or one DICOM file. Links out of it are not followed.
      labels_csv: a table with the columns `label` and either `SeriesInstanceUID` or `path`, the
        latter relative to `root`, of a file or of a folder for all that is in it. None takes
        folders as classes, if there are any; what lies outside them is then unreadable.
      max_pixels: a frame with more, before or after resampling, is refused before decoding.
      classes: class folders to take, in the order of their labels; () takes all, sorted.
      unlabelled_ok: for prediction: all below `root`, wherever it lies, without a label; there
        may be nothing but refused files.
      synthetic_ok: whether what says that it is synthetic is taken; it is no original.
      files: paths of the DICOM files to take; None for all.
      beside: another source below the same root, with more of the same series: what a series
        needs is decided by its slices, and by those here only of a series that it has not.

    Raises:
      UserError: no such root, no CT in it, labels that do not fit the files, folders that look
        like parts and cannot be, or masks beside images.
    """
    if not root.exists():
      raise UserError(f'{root}: there is no such file or folder; check the path of the data')
    self._root = walker.base(root)
    self._max_pixels, self._synthetic_ok = max_pixels, synthetic_ok
    self._last: tuple[str, pydicom.Dataset] | None = None
    self._beside = beside
    self._intercepts: dict[str, float | None] = {}  # found for series that lack one
    self.unreadable: list[UnreadableImageError] = []
    self.skipped: collections.Counter[str] = collections.Counter()
    # What a CSV row may name without an image: labels of refused files are no mistake.
    self._known_keys: set[str] = set()
    found: list[_Frame] = []
    folders: list[str] = []
    entries = walker.walk(root) if files is None else (walker.Entry(f, 'dicom') for f in files)
    for entry in entries:
      if entry.kind == 'folder':
        folders.append(entry.path)
      else:
        found.extend(self._take(entry))
    if not found and not (unlabelled_ok and self.unreadable):
      raise UserError(f'{root}: no usable CT image in DICOM format found{self._remarks()}')
    self._indexed = found
    self._frames = _sorted(self._of_one_unit(found))
    self.class_names: tuple[str, ...] = ()
    if labels_csv is not None:
      labels, splits = self._table_labels(labels_csv, root, folders)
    elif not unlabelled_ok and any('/' in frame.path for frame in self._frames):
      labels, splits = self._folder_labels(str(root), folders, classes)
    else:
      labels, splits = [UNKNOWN_LABEL] * len(self._frames), [None] * len(self._frames)
    self.records = [
      Record(
        label,
        frame.patient_id,
        frame.shown,
        split,
        frame.path,
        plane=frame.plane,
        instance=frame.instance,
      )
      for frame, label, split in zip(self._frames, labels, splits, strict=True)
    ]

  def __len__(self) -> int:
    return len(self._frames)

  @property
  def without_patient_id(self) -> int:
    """How many images have a study, which stands for the patient, and no Patient ID."""
    return sum(frame.study_alone for frame in self._frames)

  def __getitem__(self, index: int) -> Slice:
    """Decodes frame `index`: float32[h, w] in HU (or grey, see `frame`), square pixels."""
    frame = self._frames[index]
    try:
      with dicom_header.quiet_pydicom():
        intercept = self._intercept(frame.series) if frame.lacks_intercept else None
        file = self._open(frame.path)
        image = dicom_frame.decode(file, frame.number, intercept)
        if dicom_kind.burned_in(file):
          image = dataclasses.replace(image, remarks=(*image.remarks, BURNED_IN))
        return _marked(image, dicom_kind.synthetic(file, frame.number))
    except Exception as error:  # decoders raise whatever a broken file sets off
      raise UnreadableImageError(frame.shown, _reason(error)) from error

  @property
  def series(self) -> list[str]:
    """What tells the series of each image from others."""
    return [frame.series for frame in self._frames]

  def stored(self, index: int) -> dicom_frame.StoredFrame:
    """Frame `index` as its file holds it; raises UnreadableImageError."""
    frame = self._frames[index]
    try:
      with dicom_header.quiet_pydicom():
        return dicom_frame.stored(self._open(frame.path), frame.number)
    except Exception as error:  # as in __getitem__
      raise UnreadableImageError(frame.shown, _reason(error)) from error

  def _intercept(self, series: str) -> float | None:
    """What the slices of a series without Rescale Intercept need, by a vote of some of them."""
    if self._beside is not None and self._beside.has(series):
      return self._beside._intercept(series)
    if series not in self._intercepts:
      voters = [f for f in self._frames if f.series == series and f.lacks_intercept]
      step = -(-len(voters) // _MOST_VOTERS)
      self._intercepts[series] = dicom_frame.intercept_of_series(map(self._vote, voters[::step]))
    return self._intercepts[series]

  def has(self, series: str) -> bool:
    """Whether slices of this series lie here."""
    return any(frame.series == series for frame in self._indexed)

  def _vote(self, frame: _Frame) -> list[float]:
    try:
      return dicom_frame.plausible_intercepts(self._open(frame.path), frame.number)
    except Exception:  # named when the slice itself is asked for
      return []

  def _open(self, path: str) -> pydicom.Dataset:
    """The file with its pixels still encoded; the last one is kept for its other frames."""
    if self._last is None or self._last[0] != path:
      self._last = path, dicom_header.read(self._root / path, self._max_pixels)
    return self._last[1]

  def _take(self, entry: walker.Entry) -> list[_Frame]:
    """The frames of a file that is DICOM; others are counted or refused."""
    file = self._root / entry.path
    if entry.kind == 'refused':
      self._refuse(entry.path, walker.shown(entry.path) or '.', entry.reason)
    elif entry.kind == 'dicom' or (entry.kind == 'picture' and _is_dicom(file)):
      return self._index(entry.path)
    elif entry.sort == walker.NO_SUFFIX and not _is_text(file):
      reason = 'no DICOM file: neither a DICM prefix nor a readable header'
      self._refuse(entry.path, walker.shown(entry.path), reason)
    else:
      self.skipped[entry.sort] += 1
    return []

  def _index(self, path: str) -> list[_Frame]:
    """What the header tells of each usable frame; the others go to `unreadable`."""
    file = self._root / path
    with dicom_header.quiet_pydicom():
      try:
        header = dicom_header.read(file, self._max_pixels, stop_before_pixels=True)
        if header.get('SOPClassUID') == MediaStorageDirectoryStorage:
          self.skipped['DICOMDIR'] += 1
          return []
        self._known_keys.add(_series(header, path))
        count = dicom_header.check_file(header, file.stat().st_size, self._max_pixels)
      except InvalidDicomError:
        reason = 'not a DICOM file (no DICM prefix, and no header of a CT image without one)'
        self._refuse(path, walker.shown(path), reason)
        return []
      except Exception as error:  # as in __getitem__
        self._refuse(path, walker.shown(path), _reason(error))
        return []
      return [
        frame
        for number in range(count)
        if (frame := self._index_frame(header, path, number, count))
      ]

  def _index_frame(
    self, header: pydicom.Dataset, path: str, number: int, count: int
  ) -> _Frame | None:
    shown = walker.shown(path) + ('' if count == 1 else f'#{number + 1}')
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
        _study_alone(header),
        plane,
        dicom_header.unit(header, number),
        dicom_header.lacks_intercept(header, number),
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
    votes = _units(frames)
    if self._beside is not None:
      votes |= _units(self._beside._indexed)
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

  def _remarks(self) -> str:
    """What stands in the way, in brackets."""
    reasons = '; '.join(str(error) for error in self.unreadable[:3])
    refused = f'{len(self.unreadable)} refused: {reasons}' if reasons else ''
    text = '; '.join(filter(None, (refused, walker.in_words(self.skipped))))
    return f' ({text})' if text else ''

  def _table_labels(
    self, labels_csv: pathlib.Path, root: pathlib.Path, folders: Sequence[str]
  ) -> tuple[list[int], list[str | None]]:
    """Label and part of each frame by a table; sets `class_names`."""
    names = self._csv_labels(_read_csv(labels_csv))
    self.class_names = tuple(sorted(set(names)))
    return [self.class_names.index(name) for name in names], self._parts(root, folders)

  def _parts(self, root: pathlib.Path, folders: Sequence[str]) -> list[str | None]:
    """The part of each frame, by the folder in the root that it lies in."""
    if not layout.parts_alone(str(root), {path.partition('/')[0] for path in folders}):
      return [None] * len(self._frames)
    return [layout.part_of(frame.path.partition('/')[0]) for frame in self._frames]

  def _folder_labels(
    self, root: str, folders: Sequence[str], classes: Sequence[str]
  ) -> tuple[list[int], list[str | None]]:
    """Label and part of each frame of a class asked for; the other frames are left out."""
    closed = {error.path for error in self.unreadable}
    found = layout.Layout(root, (f for f in folders if walker.shown(f) not in closed), classes)
    places = [(frame, found.place(frame.path)) for frame in self._frames]
    for frame, place in places:
      if place is None:
        self.unreadable.append(UnreadableImageError(frame.shown, layout.STRAY))
    taken = [(frame, place) for frame, place in places if place and place.name is not None]
    self._frames = [frame for frame, _ in taken]
    layout.refuse_masks(root, [frame.path for frame in self._frames], classes)
    layout.refuse_empty(found, {place.folder for _, place in taken}, self._remarks())
    self.class_names = found.class_names
    labels = [found.class_names.index(str(place.name)) for _, place in taken]
    return labels, [place.part for _, place in taken]

  def _csv_labels(self, table: Mapping[str, str]) -> list[str]:
    """The label of each frame; every frame needs one, every row an image."""
    labels, used = [], set(self._known_keys)
    unlabelled, torn = [], []
    by_spelling: dict[str, set[str]] = {}
    for key in table:
      by_spelling.setdefault(walker.spelling(key), set()).add(key)
    respelled = set()
    for frame in self._frames:
      own = {frame.series, *_path_keys(frame.path)}
      keys = own & table.keys()
      if not keys:  # the same name, its accents stored in another Unicode form
        keys = set().union(*(by_spelling.get(walker.spelling(key), ()) for key in own))
        respelled |= keys
      found = {table[key] for key in keys}
      used |= keys
      labels.append(min(found, default=''))
      if not found:
        unlabelled.append(frame.shown)
      elif len(found) > 1:
        torn.append(frame.shown)
    _complain(unlabelled, 'images have no row in the CSV of labels; add them')
    _complain(
      torn,
      'images have several labels in the CSV; leave one each (names that look the same may differ '
      'in how accents are stored)',
    )
    unused = [walker.shown(key) for key in table if key not in used]
    _complain(
      unused, 'rows of the CSV of labels match no file (paths are relative to the data folder)'
    )
    if respelled:
      print(
        f'{len(respelled)} rows of the CSV of labels store accents otherwise than the file names '
        '(Unicode NFC and NFD); they are taken as the same'
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


def _study_alone(header: pydicom.Dataset) -> bool:
  return not _patient_id(header) and bool(header.get('StudyInstanceUID'))


def _patient_id(header: pydicom.Dataset) -> str:
  return str(header.get('PatientID') or '').strip()


def _pseudonym(header: pydicom.Dataset) -> str | None:
  key = _patient_id(header) or str(header.get('StudyInstanceUID') or '')
  return hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()[:12] if key else None


def _units(frames: list[_Frame]) -> dict[str, collections.Counter]:
  """How many frames of each series are in which unit."""
  votes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
  for frame in frames:
    votes[frame.series][frame.unit] += 1
  return votes


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


def _is_dicom(file: pathlib.Path) -> bool:
  try:
    return walker.starts_as_dicom(file)
  except OSError:
    return False


def _is_text(file: pathlib.Path) -> bool:
  """Whether a file has content without a zero byte in its beginning: LICENSE, VERSION, sums."""
  try:
    with file.open('rb') as opened:
      head = opened.read(512)
  except OSError:
    return False
  return bool(head) and b'\0' not in head


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
