"""What a run leaves behind: lock, resolved config, results, metric rows, events.

Every JSON is written to a temporary file and renamed, so that a reader sees a whole file or none.
"""

import contextlib
import importlib.metadata
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
import tensorboardX

from ctfake_jax import __version__
from ctfake_jax import config as config_lib
from ctfake_jax.config.keys import Config
from ctfake_jax.runtime import processors
from ctfake_jax.types import UserError

COMMAND = 'command.json'
_BEFORE_WORK = (
  'config.json',
  'split.json',
  'trained_on.json',
)  # what a run leaves before its first step
# With their full-width twins.
_FORMULAS = ('=', '+', '-', '@', '\t', '\r', '\n', '\uff1d', '\uff0b', '\uff0d', '\uff20')
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'ctfake-jax')


def write_json(path: Path, content: Any) -> None:
  """Atomic, by the main process; NaN and infinity become null, for any JSON reader."""
  if jax.process_index():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.tmp')
  temporary.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + '\n')
  temporary.replace(path)


def write_results(workdir: Path, results: dict) -> None:
  """results.json, with the version that they were made by."""
  write_json(workdir / 'results.json', {'version': __version__, **results})


def read_json(path: Path) -> Any:
  """The parsed file; UserError names it where it is missing or broken."""
  try:
    content = json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(f'{path} is missing: is this the workdir of a finished run?') from None
  except ValueError as error:  # of JSON or of UTF-8
    raise UserError(f'{path} is not valid JSON ({error}): restore it or start afresh') from None
  if not isinstance(content, dict):
    raise UserError(f'{path} holds no JSON object: restore it or start afresh')
  return content


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """Holds the workdir for one run; the system frees it when the owner, the main process, dies."""
  if jax.process_index():
    yield
    return
  try:
    str(workdir).encode()
  except UnicodeEncodeError:  # checkpoints could not be written there
    shown = str(workdir).encode(errors='backslashreplace').decode()
    raise UserError(f'--workdir={shown}: its name is no UTF-8; choose another one') from None
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(workdir / '.lock', timeout=0)
    lock.acquire()
  except filelock.Timeout:
    raise UserError(f'{workdir} is in use by another run: choose another --workdir') from None
  except OSError as error:
    raise UserError(f'--workdir={workdir}: cannot write there ({error.strerror})') from None
  try:
    yield
  finally:
    lock.release()


def record_config(workdir: Path, config: Config, facts: dict) -> None:
  """Writes config.json with `facts`, or checks that a run here may go on with these keys.

  A run that was stopped before it left anything else has not begun.
  """
  path, resolved = workdir / 'config.json', config_lib.as_dict(config)
  if path.exists() and _begun(workdir):
    saved = read_json(path)
    changed = config_lib.changed_keys(saved['config'], resolved)
    if changed:
      raise UserError(
        f'{workdir} was begun with other values of {", ".join(changed)}: '
        f'use the same values or another --workdir{_why_not_longer(changed)}'
      )
    if saved.get('data', facts.get('data')) != facts.get('data'):
      raise UserError(
        f'{workdir} was begun with other images: restore them or use another --workdir'
      )
    _warn_of_another_machine(saved)
  write_json(path, {'config': resolved, **facts, **environment()})


def _begun(workdir: Path) -> bool:
  return any(p.name not in _BEFORE_WORK and not p.name.startswith('.') for p in workdir.iterdir())


def _why_not_longer(changed: list[str]) -> str:
  if not set(changed) & config_lib.SCHEDULES.keys():
    return ''
  return ' (a run grows longer under a constant schedule alone: a falling one had other rates)'


def run_stage_once(folder: Path, config: Config, make: Callable[[], dict]) -> dict:
  """The results of a stage that was finished with this config, or `make()`, which writes them."""
  results, recorded = folder / 'results.json', folder / 'config.json'
  if results.exists() and recorded.exists():
    made_with = read_json(recorded)['config']
    if not config_lib.differing_keys(made_with, config_lib.as_dict(config)):
      return read_json(results)
  return make()


def _warn_of_another_machine(saved: dict) -> None:
  """Bits are repeated on the same devices with the same number of threads only."""
  now = environment()
  for key in ('devices', 'threads'):
    if saved.get(key) != now[key]:
      print(
        f'warning: begun with {key} {saved.get(key)}, going on with {now[key]}: '
        'the rest will equal an undisturbed run to rounding, not bit for bit',
        file=sys.stderr,
      )


def environment() -> dict:
  """Package versions, devices, threads and the code's commit."""
  versions = {}
  for package in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[package] = importlib.metadata.version(package)
  return {
    'packages': versions,
    'python': platform.python_version(),
    'devices': [f'{d.platform}:{d.device_kind}' for d in jax.devices()],
    'threads': processors.count(),
    'commit': _commit(),
  }


def check_same_command(workdir: Path, config: Config) -> None:
  """For a task that leaves results, no training: the same command may be repeated, no other.

  Raises:
    UserError: the workdir holds a training, or what was signed with other values.
  """
  path = workdir / COMMAND
  if path.exists():
    changed = config_lib.changed_keys(read_json(path), config_lib.as_dict(config))
    if changed:
      raise UserError(
        f'--workdir={workdir} holds results of other values of {", ".join(changed)}: '
        'choose another one'
      )
  elif (workdir / 'config.json').exists():
    raise UserError(f'--workdir={workdir} holds a training: choose another one')


def record_command(workdir: Path, config: Config) -> None:
  """Leaves which command the results that follow are of."""
  write_json(workdir / COMMAND, config_lib.as_dict(config))


def refuse_inside(workdir: Path, images: Path) -> None:
  """Raises UserError where what a run writes would be among the images that it reads."""
  if workdir.resolve().is_relative_to(images.resolve()):
    raise UserError(f'--workdir={workdir} lies in config.input = {images}: choose one outside')


class MetricLog:
  """metrics.jsonl and TensorBoard events; rows after `from_step` of an earlier run are dropped.

  The main process alone writes.
  """

  def __init__(self, workdir: Path, from_step: int):
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    self._path = workdir / 'metrics.jsonl'
    kept = [row for row in read_rows(self._path) if row['step'] <= from_step]
    workdir.mkdir(parents=True, exist_ok=True)
    self._path.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    self._events = tensorboardX.SummaryWriter(str(workdir / 'events'), purge_step=from_step)

  def write(self, step: int, values: dict[str, float]) -> None:
    """One row; values are plain numbers."""
    if not self._writes:
      return
    row = {'step': step, **_finite(values)}
    with open(self._path, 'a') as handle:
      handle.write(json.dumps(row) + '\n')
    for key, value in values.items():
      self._events.add_scalar(key, value, step)

  def close(self) -> None:
    """Flushes the events."""
    if self._writes:
      self._events.close()


def read_rows(path: Path) -> list[dict]:
  """Rows of a metrics.jsonl; a torn or altered line is passed over."""
  rows = []
  for line in path.read_bytes().splitlines() if path.exists() else ():
    with contextlib.suppress(ValueError):
      rows.append(json.loads(line))
  return [row for row in rows if isinstance(row, dict) and 'step' in row]


def csv_safe(text: str) -> str:
  """Text that no spreadsheet takes for a formula (OWASP, CSV Injection)."""
  return "'" + text if text[:1] in _FORMULAS else text


def _finite(value: Any) -> Any:
  if isinstance(value, dict):
    return {str(k): _finite(v) for k, v in value.items()}
  if isinstance(value, np.ndarray):
    return _finite(value.tolist())
  if isinstance(value, Sequence) and not isinstance(value, str):
    return [_finite(v) for v in value]
  if isinstance(value, np.generic):
    return _finite(value.item())
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _commit(package: Path = Path(__file__).parents[1]) -> str | None:
  """That of the checkout whose package this is; None where it was installed into another's tree."""
  command = ['git', '-C', str(package), 'rev-parse', '--show-toplevel', 'HEAD']
  with contextlib.suppress(OSError, subprocess.CalledProcessError):
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    root, commit = found.splitlines()
    if Path(root).resolve() == package.parent.resolve():
      return commit
  return None
