"""Files of strangers, decoded in processes of their own: what kills a decoder costs one file.

Every file below a folder is tried, in order of name; each decoder process has a limit on memory
and each file one on time and pixels. Memory does not grow with the number of files. Worker
processes import this module, so it must not import JAX.
"""

import collections
import dataclasses
import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as TimedOut
from pathlib import Path
from typing import Any

import numpy as np
import pebble
from pydicom.misc import is_dicom

from ctfake_jax.data.preprocess import Preprocess, to_uint8
from ctfake_jax.types import Source, UnreadableImageError, UserError

CHUNK = 16  # files in one message to a worker
CHUNKS_AHEAD = 3  # for each worker


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of one decoder: pixels of an image, seconds of a file, MiB of a process, processes."""

  max_pixels: int
  seconds: float
  memory_mib: int
  workers: int

  @classmethod
  def from_config(cls, config: Any) -> 'Limits':
    """Reads `config.detection` and `config.data.max_pixels`."""
    c = config.detection
    workers = c.workers or len(os.sched_getaffinity(0))
    return cls(config.data.max_pixels, c.seconds_per_file, c.decoder_mib, workers)


@dataclasses.dataclass(frozen=True)
class Decoded:
  """One image of a file, or the reason why there is none.

  Attributes:
    path: relative to the input, `#frame` behind it where a file holds several.
    pixels: uint8[size, size] of the view, None if unreadable.
    unit: 'HU' or 'grey'.
    native_size: height and width as stored.
    patient_id: of a DICOM file.
    remarks: of the slice.
    synthetic: whether the file itself says so; the first remark says where.
  """

  path: str
  pixels: np.ndarray | None
  unit: str = ''
  reason: str = ''
  native_size: tuple[int, ...] = (0, 0)
  patient_id: str | None = None
  remarks: tuple[str, ...] = ()
  synthetic: bool = False


@dataclasses.dataclass(frozen=True)
class _Task:
  paths: list[str]
  future: Any


def decode_files(base: str, paths: list[str], view: Preprocess, max_pixels: int) -> list[Decoded]:
  """What a worker does with a chunk of files."""
  return [found for path in paths for found in _decode_file(Path(base), path, view, max_pixels)]


def decode_all(
  root: Path,
  view: Preprocess,
  limits: Limits,
  decode: Callable[[str, list[str], Preprocess, int], list[Decoded]] = decode_files,
) -> Iterator[Decoded]:
  """Every image below `root` (or the one file), in order; `decode` runs in the workers.

  Raises:
    UserError: there is nothing; at once, not with the first image.
  """
  if not root.exists():
    raise UserError(f'config.input = {root}: no such file or folder')
  return _decoded(root, view, limits, decode)


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


def _decoded(root: Path, view: Preprocess, limits: Limits, decode: Callable) -> Iterator[Decoded]:
  base = root if root.is_dir() else root.parent
  context = multiprocessing.get_context('spawn')
  with pebble.ProcessPool(
    max_workers=limits.workers,
    context=context,
    initializer=_limit_memory,
    initargs=(limits.memory_mib,),
  ) as pool:

    def submit(paths: list[str]) -> _Task:
      arguments = (str(base), paths, view, limits.max_pixels)
      return _Task(paths, pool.schedule(decode, args=arguments, timeout=limits.seconds))

    waiting: collections.deque[_Task] = collections.deque()
    for paths in _chunks(_files(root)):
      waiting.append(submit(paths))
      if len(waiting) >= CHUNKS_AHEAD * limits.workers:
        yield from _collect(waiting.popleft(), submit)
    while waiting:
      yield from _collect(waiting.popleft(), submit)


def _collect(task: _Task, submit: Callable[[list[str]], _Task]) -> Iterator[Decoded]:
  """What the worker found; if it died or hung over a chunk, each file is tried alone."""
  try:
    yield from task.future.result()
  except (TimedOut, pebble.ProcessExpired, MemoryError) as error:
    if len(task.paths) == 1:
      yield Decoded(_shown(task.paths[0]), None, reason=_cause(error))
      return
    for path in task.paths:
      yield from _collect(submit([path]), submit)


def _cause(error: BaseException) -> str:
  if isinstance(error, TimedOut):
    return 'took too long to decode'
  if isinstance(error, MemoryError):
    return 'took too much memory to decode'
  return 'its decoder crashed'


def _files(root: Path) -> Iterator[str]:
  """Paths relative to the root of all files, and links to folders, that are not hidden."""
  if root.is_file():
    yield root.name
    return
  closed: list[str] = []
  for folder, folders, names in os.walk(root, onerror=lambda error: closed.append(error.filename)):
    links = [name for name in folders if Path(folder, name).is_symlink()]
    folders[:] = sorted(name for name in folders if not name.startswith('.') and name not in links)
    for name in sorted([*names, *links]):
      if not name.startswith('.'):
        yield str(Path(folder, name).relative_to(root))
  # Folders that may not be read get a row each.
  yield from (str(Path(folder).relative_to(root)) for folder in closed)


def _chunks(paths: Iterator[str]) -> Iterator[list[str]]:
  chunk: list[str] = []
  for path in paths:
    chunk.append(path)
    if len(chunk) == CHUNK:
      yield chunk
      chunk = []
  if chunk:
    yield chunk


def _limit_memory(mebibytes: int) -> None:
  resource.setrlimit(resource.RLIMIT_AS, (mebibytes * 2**20, mebibytes * 2**20))


def _decode_file(base: Path, path: str, view: Preprocess, max_pixels: int) -> list[Decoded]:
  shown = _shown(path)
  whole = base / path
  try:
    if whole.is_symlink() and not whole.resolve().is_relative_to(base.resolve()):
      return [Decoded(shown, None, reason='is a link that leads out of the folder')]
    if whole.is_symlink() and whole.is_dir():
      return [Decoded(shown, None, reason='is a link to a folder, which is not followed')]
    if whole.is_dir():
      return [Decoded(shown, None, reason='is a folder that cannot be read')]
    if not whole.is_file():
      return [Decoded(shown, None, reason='is not a regular file')]
    source = _open(whole, max_pixels)
    frames = [_see(source, i, view) for i in range(len(source))]
  except MemoryError:
    return [Decoded(shown, None, reason='took too much memory to decode')]
  except OSError as error:
    return [Decoded(shown, None, reason=error.strerror or 'cannot be read')]
  except Exception as error:  # whatever it is, the other files are judged
    reason = str(error).replace(str(base), '').strip()
    return [Decoded(shown, None, reason=reason or type(error).__name__)]
  if len(frames) == 1:
    return [dataclasses.replace(frames[0], path=shown)]
  return [dataclasses.replace(f, path=f'{shown}#{i}') for i, f in enumerate(frames, 1)]


def _shown(path: str) -> str:
  return os.fsencode(path).decode('utf-8', 'replace')


def _open(path: Path, max_pixels: int) -> Source:
  if is_dicom(path):
    from ctfake_jax.data.dicom import DicomSource

    return DicomSource(path, labels_csv=None, max_pixels=max_pixels, synthetic_ok=True)
  from ctfake_jax.data.folders import FolderSource

  return FolderSource(path, max_pixels=max_pixels, unlabelled_ok=True)


def _see(source: Source, index: int, view: Preprocess) -> Decoded:
  try:
    image = source[index]
  except UnreadableImageError as error:
    return Decoded('', None, reason=error.reason)
  return Decoded(
    '',
    to_uint8(view(image))[..., 0],
    image.unit,
    native_size=image.pixels.shape,
    patient_id=source.records[index].patient_id,
    remarks=image.remarks,
    synthetic=image.synthetic,
  )
