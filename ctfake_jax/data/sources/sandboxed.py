"""Untrusted files, decoded in processes of their own: what kills a decoder costs one file.

Every file below a folder is tried, in order of name, or every image of a source; each decoder
process has a limit on memory and each file one on time and pixels. Memory does not grow with the
number of files. Worker processes import this module, so it must not import JAX.
"""

import collections
import dataclasses
import functools
import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as TimedOut
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pebble
from jaxtyping import Float, Float32, UInt8

from ctfake_jax.config.keys import Config
from ctfake_jax.data.preprocess import Preprocess, to_uint8
from ctfake_jax.data.sources import walker
from ctfake_jax.data.transforms import file_degradations
from ctfake_jax.data.transforms.file_degradations import RE_ENCODINGS
from ctfake_jax.runtime import processors
from ctfake_jax.types import Source, UnreadableImageError, UserError

CHUNK = 16  # files in one message to a worker
CHUNKS_AHEAD = 3  # for each worker
MOST_VOTERS = 256  # files of a folder that tell what its series need


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of one decoder: pixels of an image, seconds of a file, MiB of a process, processes."""

  max_pixels: int
  seconds: float
  memory_mib: int
  workers: int

  @classmethod
  def from_config(cls, config: Config) -> 'Limits':
    """Reads `config.detection` and `config.data.max_pixels`."""
    c = config.detection
    workers = c.workers or processors.count()
    return cls(config.data.max_pixels, c.seconds_per_file, c.decoder_mib, workers)


@dataclasses.dataclass(frozen=True)
class Decoded:
  """One image of a file, or the reason why there is none.

  Attributes:
    path: relative to the input as it is shown, `#frame` behind it where a file holds several.
    image: the view, in [-1, 1], None if unreadable.
    unit: 'HU' or 'grey'.
    native_size: height and width as stored.
    spacing_mm: side of a pixel, None where unknown.
    patient_id: of a DICOM file.
    re_encoded: the view of the slice after each of `RE_ENCODINGS` at its own size; None where
      nobody asked.
    remarks: of the slice.
    synthetic: whether the file itself says so; the first remark says where.
  """

  path: str
  image: Float32[np.ndarray, 'size size'] | None
  unit: str = ''
  reason: str = ''
  native_size: tuple[int, ...] = (0, 0)
  spacing_mm: float | None = None
  patient_id: str | None = None
  re_encoded: UInt8[np.ndarray, 'k size size'] | None = None
  remarks: tuple[str, ...] = ()
  synthetic: bool = False

  @property
  def pixels(self) -> UInt8[np.ndarray, 'size size'] | None:
    """The view in 8 bits, as real and fake were when a detector was trained."""
    return None if self.image is None else to_uint8(self.image)

  @property
  def views(self) -> UInt8[np.ndarray, 'views size size']:
    """The view and those after re-encodings, of an image with pixels."""
    assert self.image is not None
    assert self.re_encoded is not None
    return np.concatenate([to_uint8(self.image)[None], self.re_encoded])

  def wrong_unit(self, unit: str, who: str) -> list[str]:
    """Why `who` (the network, the detector), trained on `unit`, cannot judge it, if so."""
    same = self.unit == unit
    return [] if same else [f'{self.unit} values, the {who} was trained on {unit} values']


@runtime_checkable
class Work(Protocol):
  """What workers do with chunks of items; they are sent it once."""

  def decode(self, items: list, again: bool) -> list:
    """What becomes of items; `again` where each is tried alone, since a chunk failed."""

  def failed(self, item: Any, reason: str) -> Any:
    """What stands for an item whose decoder gave up."""


@dataclasses.dataclass(frozen=True)
class Known:
  """What is known of an item without looking."""

  result: Any


@dataclasses.dataclass(frozen=True)
class _Task:
  """Items given to a worker; or one of which all is known."""

  items: list
  future: Any = None
  known: Known | None = None


@dataclasses.dataclass(frozen=True)
class _Files:
  """What workers do with chunks of paths."""

  base: str
  view: Preprocess
  max_pixels: int
  how: Callable[..., list[Decoded]]
  alone: bool

  def decode(self, items: list[str], again: bool) -> list[Decoded]:
    return self.how(self.base, items, self.view, self.max_pixels, alone=self.alone or again)

  def failed(self, item: str, reason: str) -> Decoded:
    return Decoded(walker.shown(item), None, reason=reason)


@dataclasses.dataclass(frozen=True)
class _Rows:
  """The same of chunks of rows of a source."""

  source: Source
  view: Preprocess

  def decode(self, items: list[int], again: bool) -> list[Decoded]:
    del again
    return list(decode_rows(self.source, self.view, items))

  def failed(self, item: int, reason: str) -> Decoded:
    return Decoded(self.source.records[item].provenance, None, reason=reason)


def decode_files(
  base: str,
  paths: list[str],
  view: Preprocess,
  max_pixels: int,
  *,
  alone: bool = False,
  re_encode: bool = True,
) -> list[Decoded]:
  """What a worker does with a chunk of files.

  What a DICOM series needs is decided by all of it that lies in a folder, whatever the chunk;
  unless files are to be read `alone`, since no other was asked for, or one may kill the decoder.
  """
  root, seeing = Path(base), functools.partial(_see, view=view, re_encode=re_encode)
  dicom: dict[str, list[Decoded]] = {}
  if not alone:
    for folder, own in itertools.groupby(paths, lambda path: path.rpartition('/')[0]):
      files = [path for path in own if _is_dicom(root / path)]
      dicom |= _decode_dicom(root, folder, files, seeing, max_pixels)
  return [
    found
    for path in paths
    for found in dicom.get(path) or _decode_file(root, path, seeing, max_pixels)
  ]


def decode_all(
  root: Path,
  view: Preprocess,
  limits: Limits,
  decode: Callable[..., list[Decoded]] = decode_files,
  skipped: collections.Counter | None = None,
) -> Iterator[Decoded]:
  """Every image below `root` (or the one file), in order; `decode` runs in the workers.

  Every file that is not hidden has a row or more; hidden ones are counted in `skipped`.

  Raises:
    UserError: there is nothing; at once, not with the first image.
  """
  if not root.exists():
    raise UserError(f'config.input = {root}: no such file or folder')
  counted = collections.Counter() if skipped is None else skipped
  base = str(walker.base(root))
  work = _Files(base, view, limits.max_pixels, decode, alone=root.is_file())
  return in_processes(work, seen_files(root, counted, work.failed), limits)


def decode_rows(
  source: Source, view: Preprocess, rows: Sequence[int], limits: Limits | None = None
) -> Iterator[Decoded]:
  """The images at `rows` of a source, in order, without re-encodings.

  With `limits` they are decoded in the workers, as untrusted files are; else in this process.
  """
  if limits:
    return in_processes(_Rows(source, view), iter(rows), limits)
  return (_see(source, row, view, re_encode=False) for row in rows)


def judgeable(
  images: Iterator[Decoded],
  obstacles: Callable[[Decoded], list[str]],
  left_out: list[UnreadableImageError],
) -> Iterator[Decoded]:
  """Those with pixels and without obstacles; the others are added to `left_out`, with reasons."""
  for decoded in images:
    reason = decoded.reason or '; '.join(obstacles(decoded))
    if reason:
      left_out.append(UnreadableImageError(decoded.path, reason))
    else:
      yield decoded


def in_processes(work: Work, items: Iterator[Any | Known], limits: Limits) -> Iterator[Any]:
  """What the work makes of items, and what is known without it, in order."""
  with pebble.ProcessPool(
    max_workers=limits.workers,
    context=_clean_processes(),
    initializer=_set_up,
    initargs=(limits.memory_mib, work),
  ) as pool:

    def submit(chunk: list, again: bool = False) -> _Task:
      job = pool.schedule(_decode_chunk, args=(chunk, again), timeout=limits.seconds)
      return _Task(chunk, job)

    waiting: collections.deque[_Task] = collections.deque()
    for chunk in _chunks(items):
      waiting.append(_Task([], known=chunk) if isinstance(chunk, Known) else submit(chunk))
      if len(waiting) >= CHUNKS_AHEAD * limits.workers:
        yield from _collect(waiting.popleft(), submit, work)
    while waiting:
      yield from _collect(waiting.popleft(), submit, work)


def _clean_processes() -> multiprocessing.context.ForkServerContext:
  """Workers that share nothing with this process, forked from one that has imported this module."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['__main__', __name__])
  return context


_WORK: list[Work] = []  # of this process, where it is a worker


def _set_up(mebibytes: int, work: Work) -> None:
  _limit_memory(mebibytes)
  _WORK[:] = [work]


def _decode_chunk(items: list, again: bool) -> list:
  return _WORK[0].decode(items, again)


def _collect(task: _Task, submit: Callable[..., _Task], work: Work) -> Iterator[Any]:
  """What the worker found; if it died or hung over a chunk, each item is tried alone."""
  if task.known:
    yield task.known.result
    return
  try:
    yield from task.future.result()
  except (TimedOut, pebble.ProcessExpired, MemoryError) as error:
    if len(task.items) == 1:
      yield work.failed(task.items[0], _cause(error))
      return
    for item in task.items:
      yield from _collect(submit([item], again=True), submit, work)


def _cause(error: BaseException) -> str:
  if isinstance(error, TimedOut):
    return 'took too long to decode'
  if isinstance(error, MemoryError):
    return 'took too much memory to decode'
  return 'its decoder crashed'


def seen_files(
  root: Path, skipped: collections.Counter, failed: Callable[[str, str], Any]
) -> Iterator[str | Known]:
  """In order, paths of files to be tried, and what is `failed(path, reason)` since it cannot be.

  Hidden ones are counted in `skipped`.
  """
  for entry in walker.walk(root):
    if entry.kind == walker.HIDDEN:
      skipped[entry.sort] += 1
    elif entry.reason:
      yield Known(failed(entry.path or '.', entry.reason))
    elif entry.kind != 'folder':
      yield entry.path


def _chunks(found: Iterator[Any | Known]) -> Iterator[list | Known]:
  chunk: list = []
  for item in found:
    if not isinstance(item, Known):
      chunk.append(item)
    if chunk and (isinstance(item, Known) or len(chunk) == CHUNK):
      yield chunk
      chunk = []
    if isinstance(item, Known):
      yield item
  if chunk:
    yield chunk


def _limit_memory(mebibytes: int) -> None:
  if sys.platform == 'linux':  # others know no such limit, or do not keep it
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (mebibytes * 2**20, mebibytes * 2**20))


def _is_dicom(path: Path) -> bool:
  try:
    return walker.is_dicom(path)
  except OSError:
    return False


def _decode_dicom(
  base: Path, folder: str, paths: list[str], seeing: Callable, max_pixels: int
) -> dict[str, list[Decoded]]:
  """Rows of the DICOM files of a folder that show something; the others are tried alone."""
  if not paths:
    return {}
  try:
    source = _dicom(base, max_pixels, paths, _voters(base, folder, max_pixels))
    found: dict[str, list[Decoded]] = {}
    for i, record in enumerate(source.records):
      found.setdefault(record.path, []).append(seeing(source, i))
    refused_frames = {f'{walker.shown(path)}#': rows for path, rows in found.items()}
    for error in source.unreadable:
      path, _, number = error.path.rpartition('#')
      if number.isdigit() and f'{path}#' in refused_frames:
        refused_frames[f'{path}#'].append(Decoded(error.path, None, reason=error.reason))
    return found
  except Exception:  # whatever it is, it is one file's, which will say so itself
    return {}


def _dicom(
  base: Path, max_pixels: int, files: list[str] | None = None, beside: Any = None
) -> Source:
  from ctfake_jax.data.sources.dicom.source import DicomSource

  return DicomSource(
    base,
    labels_csv=None,
    max_pixels=max_pixels,
    unlabelled_ok=True,
    synthetic_ok=True,
    files=files,
    beside=beside,
  )


@functools.lru_cache(maxsize=4)
def _voters(base: Path, folder: str, max_pixels: int) -> Source | None:
  """DICOM files of a folder, evenly spaced by name; None where there are none that can be read."""
  with os.scandir(base / folder) as entries:
    names = sorted(e.name for e in entries if e.is_file(follow_symlinks=False))
  names = names[:: -(-len(names) // MOST_VOTERS) or 1]
  paths = [f'{folder}/{name}' if folder else name for name in names]
  try:
    return _dicom(base, max_pixels, [path for path in paths if _is_dicom(base / path)])
  except UserError:
    return None


def _decode_file(base: Path, path: str, seeing: Callable, max_pixels: int) -> list[Decoded]:
  shown = walker.shown(path)
  try:
    source = _open(base / path, max_pixels)
    frames = [seeing(source, i) for i in range(len(source))]
    frames += [Decoded(e.path, None, reason=e.reason) for e in source.unreadable]
  except MemoryError:
    return [Decoded(shown, None, reason='took too much memory to decode')]
  except OSError as error:
    return [Decoded(shown, None, reason=error.strerror or 'cannot be read')]
  except Exception as error:  # whatever it is, the other files are judged
    reason = walker.shown(str(error).replace(str(base), '').strip())
    return [Decoded(shown, None, reason=reason or type(error).__name__)]
  folder = shown.rpartition('/')[0]
  return [dataclasses.replace(f, path=f'{folder}/{f.path}' if folder else f.path) for f in frames]


def _open(path: Path, max_pixels: int) -> Source:
  if walker.is_dicom(path):
    return _dicom(path, max_pixels)
  from ctfake_jax.data.sources.image_folder import FolderSource

  return FolderSource(path, max_pixels=max_pixels, unlabelled_ok=True)


def _see(source: Source, index: int, view: Preprocess, re_encode: bool) -> Decoded:
  record = source.records[index]
  try:
    image = source[index]
  except UnreadableImageError as error:
    return Decoded(record.provenance, None, reason=error.reason)
  if obstacle := view.obstacle(image):
    return Decoded(record.provenance, None, reason=obstacle)
  found = seen(view.levels(image), view, image.unit, re_encode)
  return dataclasses.replace(
    found,
    path=record.provenance,
    patient_id=record.patient_id,
    spacing_mm=image.spacing_mm,
    remarks=view.remarks(image),
    synthetic=image.synthetic,
  )


def seen(
  levels: Float[np.ndarray, 'h w'], view: Preprocess, unit: str, re_encode: bool = True
) -> Decoded:
  """What is judged of a slice's `view.levels`: its view, and those after harmless re-encodings."""
  image, others = view.frame(levels)[..., 0], None
  if re_encode:
    jpegs = [view.frame(file_degradations.jpeg(levels, quality)) for quality in RE_ENCODINGS]
    others = to_uint8(np.stack(jpegs))[..., 0]
  return Decoded('', image, unit, native_size=levels.shape, re_encoded=others)
