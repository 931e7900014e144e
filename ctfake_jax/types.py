"""What passes between the rooms: slices, image sets, batches.

Shape letters used in every docstring: b batch, n images, h height, w width,
c channels or classes, z slices of a series.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ctfake_jax.geometry import AS_STORED, DisplayOrientation, Plane

Unit = Literal['HU', 'grey']
UNKNOWN_LABEL = -1


class UserError(ValueError):
  """A mistake in what the user gave: shown as one message, without a traceback."""


class PreemptedError(BaseException):
  """The run was asked to stop; the same command goes on where it stopped.

  No `Exception`: it may be raised in the middle of a decoder, whose errors are the file's.
  """


class UnreadableImageError(UserError):
  """One image that cannot be decoded; listed in the result, never silently dropped."""

  def __init__(self, path: str, reason: str):
    super().__init__(f'{path}: {reason}')
    self.path, self.reason = path, reason


@dataclasses.dataclass(frozen=True)
class Instance:
  """The DICOM object that an image is of. Its UIDs name an image of a patient: only hashed they
  may go into a file.

  Attributes:
    frame: its number from 1 where the object has several, else 0.
    synthetic: whether it says that it is.
  """

  sop_class_uid: str
  sop_instance_uid: str = dataclasses.field(repr=False)
  frame_of_reference_uid: str = dataclasses.field(repr=False)
  frame: int
  synthetic: bool


@dataclasses.dataclass(frozen=True)
class Record:
  """What a source knows of an image before decoding it.

  Attributes:
    label: index into the source's `class_names`, `UNKNOWN_LABEL` where none is given.
    patient_id: who was scanned, None where the source cannot know.
    provenance: path relative to the source's root as it is shown, with `#frame` where a file holds
      several; or the phantom's recipe.
    split: 'train', 'val' or 'test' where the source prescribes it, else None.
    path: of the file, relative to the source's root, as the file system spells it; '' of none.
    plane: where its pixels lie as they are stored, None where unknown.
    instance: the DICOM object that it is of, None where it is of none.
    simulated: whether a phantom was scanned, nobody else.
    remarks: of the slice, once it was decoded.
  """

  label: int
  patient_id: str | None
  provenance: str
  split: str | None = None
  path: str = dataclasses.field(default='', compare=False)
  plane: Plane | None = None
  instance: Instance | None = None
  simulated: bool = False
  remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Slice:
  """One decoded image.

  Attributes:
    pixels: float32[h, w]; HU, or grey in [0, 1] as stored (0 black, 1 the type's maximum).
    unit: 'HU' or 'grey'.
    spacing_mm: side of a (square) pixel in mm, None where unknown.
    white: the stored value that grey 1 stands for, the type's maximum; 1 of floats and where it is
      not known.
    significant_bits: of a stored value, where a PNG says so (sBIT).
    remarks: what had to be supposed or is hard to believe, each in a few words that are the same
      for all slices of its kind.
    orientation: how stored rows and columns were turned.
    synthetic: whether the file itself says so; the first remark says where.
  """

  pixels: np.ndarray
  unit: Unit
  spacing_mm: float | None
  white: int = 1
  significant_bits: int | None = None
  remarks: tuple[str, ...] = ()
  orientation: DisplayOrientation = AS_STORED
  synthetic: bool = False


@runtime_checkable
class Source(Protocol):
  """Random access to images with their facts; index i of `records` is index i of `[]`.

  `source[i]` raises `UnreadableImageError`; `unreadable` lists what could not even be indexed.
  Sources that walk folders also have `skipped`: how many files they did not read, by kind.
  """

  @property
  def class_names(self) -> tuple[str, ...]:
    """What a label means; () where nothing is labelled."""

  @property
  def records(self) -> Sequence[Record]:
    """Facts of every image, known before decoding."""

  @property
  def unreadable(self) -> Sequence[UnreadableImageError]:
    """Files that could not be indexed."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Slice: ...


@runtime_checkable
class ImagesOnDisk(Protocol):
  """What stands for an array of images that are read when they are indexed."""

  @property
  def shape(self) -> tuple[int, ...]:
    """n, h, w, 1."""

  def __len__(self) -> int: ...

  def __getitem__(self, key: Any) -> np.ndarray: ...

  @property
  def survey(self) -> Any:
    """What `data.survey.Survey.of` finds in them."""

  def subset(self, rows: np.ndarray) -> 'ImagesOnDisk':
    """The images at `rows`, unread."""


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """Preprocessed images, in host memory or read when they are indexed.

  Attributes:
    images: float32[n, h, w, 1] in [-1, 1].
    labels: int32[n].
    records: one per image, in order.
    native_sizes: int32[n, 2], height and width before resizing.
    class_names: what a label means.
    unit: of the pixels before the window.
    unreadable: what was left out and why.
    skipped: how many files were not read, by kind.
    grey_range: that the stored values of grey pictures use, LOW-HIGH/MAXIMUM; '' not known.
  """

  images: Any  # np.ndarray or ImagesOnDisk
  labels: np.ndarray
  records: tuple[Record, ...]
  native_sizes: np.ndarray
  class_names: tuple[str, ...]
  unit: Unit
  unreadable: tuple[UnreadableImageError, ...] = ()
  skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
  grey_range: str = ''

  def __len__(self) -> int:
    return len(self.labels)

  def take(self, indices: np.ndarray) -> 'ImageSet':
    """The images at `indices`, in that order; what is on disk stays there."""
    on_disk = isinstance(self.images, ImagesOnDisk)
    return dataclasses.replace(
      self,
      images=self.images.subset(indices) if on_disk else self.images[indices],
      labels=self.labels[indices],
      records=tuple(self.records[int(i)] for i in indices),
      native_sizes=self.native_sizes[indices],
    )

  def preceded_by(self, images: np.ndarray, labels: np.ndarray, kind: str) -> 'ImageSet':
    """A set with generated `images` of the same side first, their provenance named `kind`."""
    size = np.tile(np.array(images.shape[1:3], np.int32), (len(images), 1))
    records = tuple(Record(int(k), None, f'{kind} {i}') for i, k in enumerate(labels))
    return dataclasses.replace(
      self,
      images=np.concatenate([images, self.images]),
      labels=np.concatenate([labels, self.labels]).astype(np.int32),
      records=records + self.records,
      native_sizes=np.concatenate([size, self.native_sizes]),
    )
