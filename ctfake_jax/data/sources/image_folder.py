"""Picture folders: `class/image` and `split/class/image` trees of PNG, JPEG, TIFF and BMP.

Enters a folder; leaves a `types.Source` of grey slices, float32[h, w] in [0, 1], without spacing.
Building it lists names only (a hundred thousand files take seconds); a file is opened when it is
asked for, so a broken one is found at `source[i]`, which raises `UnreadableImageError`.

What a file becomes:
  8-bit grey v / 255, 16-bit grey v / 65535, 12-bit TIFF v / 4095, 1-bit 0 or 1;
  colour and palettes the luma 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601-7, section 2.5.1), of
  which Pillow keeps the upper 8 bits where a channel has 16; alpha is left out, with a remark;
  float TIFF as it is, if finite and within [0, 1]; WhiteIsZero TIFF turned so that 1 is white;
  EXIF and TIFF orientation are applied.
Refused, with the reason: several pages or frames in one file (which of them bears the label is
unknown), signed and 32-bit integers (they have no fixed white), everything else.
"""

import hashlib
import os
import pathlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ctfake_jax.data.sources import layout, walker
from ctfake_jax.types import UNKNOWN_LABEL, Record, Slice, UnreadableImageError, UserError

_DICOM_AMONG_PICTURES = (
  'is DICOM among pictures; keep DICOM in a folder of its own and read it as DICOM'
)
_FORMATS = ('PNG', 'JPEG', 'TIFF', 'BMP')
SEE_THROUGH = 'its transparency is left out'
IN_COLOUR = 'in colour, read as its brightness: no CT as scanners store it'
COLOURED, SHARE_COLOURED = 32, 0.05  # channels so far apart, in so many pixels
HALF_READ = '16 bits a sample, in colour or with alpha: read at 8 bits; store it as 16-bit grey'
_GREY_MODES = ('1', 'L', 'LA', 'I;16', 'I;16L', 'I;16B', 'F')
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF 6.0, section 8


class FolderSource:
  """Images in a folder tree as a `types.Source`.

  The folders say classes and parts as `layout` reads them: `class/image`, `part/class/image` or
  `class/part/image`. Images may lie at any depth below their class folder; order is by name.
  What cannot be read, lies outside any class or is DICOM goes to `unreadable`, with the reason;
  files of other kinds and hidden ones are counted in `skipped`.

  Attributes:
    class_names: `classes`, or all class folders sorted by name; () where nothing is labelled.
    records: one per image, in order.
    unreadable: what bears an image's name but was not indexed, and why.
    skipped: how many files were not read, by kind.
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
      root: the folder; with `unlabelled_ok` also a single image file, whatever its name.
      classes: class folders to take, in the order of their labels; () takes all, sorted.
      max_pixels: an image with more (by its header) is refused before decoding. Above twice
        `PIL.Image.MAX_IMAGE_PIXELS` Pillow refuses in any case.
      unlabelled_ok: for prediction: all images below `root`, wherever they lie, without a label.
      patient_folders: the folder right below the class names the patient; the id is a hash of
        that name (a pseudonym: who can guess the name can check the guess).

    Raises:
      UserError: `root` is missing or holds no image, has one class or an empty class, lacks one
        of `classes`, has folders that look like parts and cannot be, masks beside images, or with
        `patient_folders` an image right below its class.
    """
    root = pathlib.Path(root)
    self._root, self._max_pixels = walker.base(root), max_pixels
    self.class_names: tuple[str, ...] = ()
    self.records: list[Record] = []
    self.unreadable: list[UnreadableImageError] = []
    if not root.exists():
      raise UserError(f'{root}: there is no such folder; check the path of the data')
    if not root.is_dir() and not unlabelled_ok:
      raise UserError(f'{root}: is a file; give the folder that holds the class folders')
    entries = list(walker.walk(root))
    if root.is_file():
      entries = [entry._replace(kind='picture') for entry in entries if not entry.reason]
    self.skipped = walker.count(e for e in entries if e.kind in ('other', walker.HIDDEN))
    self._list_what_is_refused(entries)
    pictures = [entry.path for entry in entries if entry.kind == 'picture']
    if unlabelled_ok:
      for path in pictures:
        self._add(path, UNKNOWN_LABEL, None, None)
    else:
      self._index(str(root), entries, pictures, classes, patient_folders)
    if not self.records:
      raise UserError(
        f'{root}: no image found; wanted are class folders that hold {", ".join(_FORMATS)} files'
        f'{_first_reason(self.unreadable)}{_brackets(walker.in_words(self.skipped))}'
      )

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Slice:
    """Decodes image `index`: pixels float32[h, w] in [0, 1], unit 'grey', no spacing."""
    shown = self.records[index].provenance
    try:
      return _decode(self._root / self.records[index].path, shown, self._max_pixels)
    except UnreadableImageError:
      raise
    except Exception as error:  # Pillow's parsers let through whatever a broken file sets off.
      path = self._root / self.records[index].path
      raise UnreadableImageError(shown, _reason(error, path)) from error

  def _list_what_is_refused(self, entries: list[walker.Entry]) -> None:
    for entry in entries:
      if reason := entry.reason or (_DICOM_AMONG_PICTURES if entry.kind == 'dicom' else ''):
        self.unreadable.append(UnreadableImageError(walker.shown(entry.path) or '.', reason))

  def _index(
    self,
    root: str,
    entries: list[walker.Entry],
    pictures: list[str],
    classes: tuple[str, ...],
    patient_folders: bool,
  ) -> None:
    closed = {entry.path for entry in entries if entry.kind == 'refused'}
    folders = [e.path for e in entries if e.kind == 'folder' and e.path not in closed]
    found = layout.Layout(root, folders, classes)
    self.class_names = found.class_names
    if len(self.class_names) == 1:
      raise UserError(
        f'{root}: only one class ({self.class_names[0]!r}), a classifier needs two or more;'
        f' put each class into a folder of its own{_first_reason(self.unreadable)}'
      )
    filled = set()
    for path in pictures:
      place = found.place(path)
      if place is None:
        self.unreadable.append(UnreadableImageError(walker.shown(path), layout.STRAY))
      elif place.name is not None:
        filled.add(place.folder)
        if patient_folders and not place.below:
          raise UserError(
            f'config.data.patient_folders: {walker.shown(path)} lies in no folder of a patient; '
            "put each patient's images into one of the class folder, or leave the key off"
          )
        patient = _pseudonym(place.below[0]) if patient_folders else None
        self._add(path, self.class_names.index(place.name), patient, place.part)
    layout.refuse_masks(root, [record.path for record in self.records], classes)
    if self.records:
      layout.refuse_empty(found, filled, _first_reason(self.unreadable))

  def _add(self, path: str, label: int, patient: str | None, split: str | None) -> None:
    self.records.append(Record(label, patient, walker.shown(path), split, path))


def _decode(path: pathlib.Path, shown: str, max_pixels: int) -> Slice:
  """The file's grey picture."""
  with path.open('rb') as file, Image.open(file, formats=_FORMATS) as image:
    if image.width * image.height > max_pixels:
      raise UnreadableImageError(
        shown, f'{image.width} x {image.height} is above data.max_pixels = {max_pixels}'
      )
    if (frames := getattr(image, 'n_frames', 1)) > 1:
      raise UnreadableImageError(shown, f'has {frames} pages; save each as a file of its own')
    tags = dict(getattr(image, 'tag_v2', {}))
    bits = _significant_bits(path) if image.format == 'PNG' else None
    white = _white(image.mode, tags)
    remarks = _remarks(image, path)
    pixels = _grey(ImageOps.exif_transpose(image), tags)
  if not (pixels.min() >= 0 and pixels.max() <= 1):  # so written that NaN fails too
    raise UnreadableImageError(shown, 'has float values outside [0, 1] or NaN; rescale them')
  return Slice(pixels, 'grey', None, white, bits, remarks)


def _remarks(image: Image.Image, path: pathlib.Path) -> tuple[str, ...]:
  """What of a picture is not read."""
  found = [SEE_THROUGH] if _see_through(image) else []
  if _share_coloured(image) > SHARE_COLOURED:
    found.append(IN_COLOUR)
  if image.format == 'PNG' and not image.mode.startswith('I') and _png_bit_depth(path) == 16:
    found.append(HALF_READ)
  return tuple(found)


def _share_coloured(image: Image.Image) -> float:
  """Of pixels whose channels differ by more than `COLOURED` of 255."""
  if image.mode in _GREY_MODES:
    return 0.0
  channels = np.asarray(image.convert('RGBA').convert('RGB'), np.int16)
  return float(np.mean(np.ptp(channels, axis=2) > COLOURED))


def _png_bit_depth(path: pathlib.Path) -> int:
  """Of a sample, from the header chunk (PNG, third edition, 11.2.1)."""
  with path.open('rb') as file:
    return file.read(25)[24]


def _see_through(image: Image.Image) -> bool:
  """Whether its alpha channel hides something."""
  if not image.has_transparency_data:
    return False
  return bool(np.asarray(image.convert('RGBA').getchannel('A')).min() < 255)


def _white(mode: str, tags: dict) -> int:
  """The stored value that is white; 1 of floats."""
  if mode.startswith('I;16'):
    return 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
  return 1 if mode == 'F' else 255


def _significant_bits(path: pathlib.Path) -> int | None:
  """What a PNG's sBIT chunk says of its first channel (PNG, third edition, 11.3.2.4)."""
  with path.open('rb') as file:
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] not in (b'IDAT', b'PLTE'):
      length = int.from_bytes(head[:4], 'big')
      if head[4:] == b'sBIT' and 1 <= length <= 4:
        return file.read(1)[0]
      file.seek(length + 4, os.SEEK_CUR)
  return None


def _grey(image: Image.Image, tags: dict) -> np.ndarray:
  """Grey float32[h, w], 1 the type's maximum; `tags` are those of a TIFF."""
  match image.mode:
    case '1' | 'L' | 'LA':
      return np.asarray(image.convert('L'), np.float32) / np.float32(255)
    case 'I;16' | 'I;16L' | 'I;16B':
      pixels = np.asarray(image).astype(np.float32) / np.float32(_white(image.mode, tags))
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


def _reason(error: Exception, path: pathlib.Path) -> str:
  """What went wrong, without the file's absolute path."""
  if isinstance(error, UnidentifiedImageError):
    if program := walker.packed_by(path):
      return f'is packed by {program}: unpack it'
    if path.suffix.lower() not in walker.PICTURE_SUFFIXES:
      return f'is neither DICOM nor a {", ".join(_FORMATS)} file'
    return f'is not a readable {", ".join(_FORMATS)} file; replace or remove it'
  if isinstance(error, OSError) and error.strerror:
    return f'cannot be read ({error.strerror})'
  return f'cannot be decoded ({error or type(error).__name__}); replace or remove it'


def _pseudonym(name: str) -> str:
  return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]


def _first_reason(unreadable: list[UnreadableImageError]) -> str:
  return f' (left out, for one: {unreadable[0]})' if unreadable else ''


def _brackets(text: str) -> str:
  return f' ({text})' if text else ''
