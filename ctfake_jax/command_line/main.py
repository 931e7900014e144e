"""The one door: flags in, a task run in its workdir, an exit code out."""

import errno
import gc
import itertools
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from ctfake_jax.config import files as config_files
from ctfake_jax.types import PreemptedError, UserError

CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file; see configs/.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Where results go; default runs/CONFIG_NAME.')
EXIT_ERROR = 1
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: schedulers requeue the job
EXIT_INTERRUPTED = 130  # by Ctrl-C, as shells have it
KEYS = flags.DEFINE_bool('keys', False, 'Print every key that --config reads, and stop.')
DEBUG = flags.DEFINE_bool('debug', False, 'Show the traceback of a user error.')


def parse(argv: list[str]) -> list[str]:
  """Flags, with what absl and ml_collections raise over one turned into one message."""
  if {'-h', '--help'} & set(argv[1:]):
    _usage()
    raise SystemExit(0)
  try:
    return flags.FLAGS([_with_path(*pair) for pair in itertools.pairwise(['', *argv])])
  except Exception as error:  # a config file is code, and may raise anything
    if '--debug' in argv:
      raise
    raise SystemExit(_fail(_mistake(error))) from None


def _with_path(before: str, argument: str) -> str:
  """An argument and the one before it; `--config=study` means the config file of that name."""
  flag, equals, value = argument.partition('=')
  if flag == '--config' and equals:
    return f'{flag}={config_files.path_of(value)}'
  return config_files.path_of(argument) if before == '--config' else argument


def _mistake(error: Exception) -> str:
  """What is wrong with a flag or a config file, in one line."""
  if isinstance(error, SyntaxError) and error.filename:
    return f'--config={error.filename}: line {error.lineno} is not Python ({error.msg})'
  reason = str(error.args[0] if len(error.args) == 1 else error) or type(error).__name__
  if reason[:1] in ('"', "'") and reason[-1:] == reason[:1]:
    reason = reason[1:-1]
  if isinstance(error, (KeyError, AttributeError)):
    reason = f'no such key in the config: {reason}; --keys lists them{_new_names()}'
  return 'flags: ' + reason.replace('\\n', '; ').replace("\\'", "'")


def _new_names() -> str:
  """What keys of the command line are called today."""
  from ctfake_jax.config import RENAMED

  given = [argument.partition('=')[0].removeprefix('--config.') for argument in sys.argv]
  return ''.join(f'; {key} is now {RENAMED[key]}' for key in given if key in RENAMED)


def main(argv: list[str]) -> int:
  """Runs the task; 1 after a user error, 75 after SIGTERM, 130 after Ctrl-C."""
  # What Orbax logs as errors of its threads reaches us as exceptions, too.
  logging.set_verbosity(logging.ERROR if DEBUG.value else logging.FATAL)
  if len(argv) > 1:
    return _fail(f'unexpected argument {argv[1]!r}: flags look like --config.key=value')
  if CONFIG.value is None and not flags.FLAGS['config'].present:
    return _usage()
  if not Path(named := config_flags.get_config_filename(flags.FLAGS['config'])).is_file():
    return _fail(
      f'--config={named}: no such file; {_program()} without arguments lists the configs'
    )
  if CONFIG.value is None:
    return _fail(f'--config={named}: its get_config() returns nothing')
  if KEYS.value:
    return _list_keys()
  from ctfake_jax.runtime import malloc

  malloc.reuse_freed_memory()
  from ctfake_jax.runtime import mesh, preemption

  try:
    _run()
  except PreemptedError as error:  # of all processes at the same step
    preemption.settled()
    print(f'{error}; run the same command again', file=sys.stderr)
    if not mesh.together():  # XLA may be compiling, and crashes where Python ends meanwhile
      mesh.leave(EXIT_PREEMPTED)
    return EXIT_PREEMPTED
  except BaseException as error:
    code = None if DEBUG.value else _reported(error)
    if mesh.together() or _a_thread_remains():
      if code is None:
        traceback.print_exc()
      mesh.leave(code or EXIT_ERROR)
    if code is None:
      raise
    return code
  return 0


def _a_thread_remains() -> bool:
  """Whether an ordinary end would wait for another thread, as for Orbax's after a failed save."""
  return any(t is not threading.main_thread() and not t.daemon for t in threading.enumerate())


def _reported(error: BaseException) -> int | None:
  """The exit code, once the user is told; None for what is unexpected."""
  if isinstance(error, KeyboardInterrupt):
    print(
      'interrupted; run the same command again: a training goes on from its last checkpoint',
      file=sys.stderr,
    )
    return EXIT_INTERRUPTED
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
    return _fail(
      f'{error}: the disk is full or files may not be longer, make room and run the same command'
    )
  if isinstance(error, OSError) and error.filename:
    return _fail(f'{error.filename}: {error.strerror}')
  if isinstance(error, UserError):
    return _fail(str(error))
  return None


def _run() -> None:
  from ctfake_jax import config as config_lib
  from ctfake_jax.runtime import compilation_cache, mesh, preemption
  from ctfake_jax.tasks import registry

  config = config_lib.resolve(CONFIG.value)
  config_lib.validate(config)
  given = config_flags.get_override_values(flags.FLAGS['config'])
  if unread := config_lib.unread(config, given):
    print(f'careful: {config.task} does not read {", ".join(unread)}', file=sys.stderr)
  mesh.start(config)
  compilation_cache.enable()
  preemption.install()
  name = Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
  folder = Path(WORKDIR.value or Path('runs') / name)
  if config.dry_run:
    from ctfake_jax.tasks import dry_run

    for line in dry_run.describe(config):
      print(line, flush=True)
    return
  registry.find(config.task)  # imports its module
  gc.freeze()  # what imports made stays: tracing, which makes much garbage, is a fifth faster
  registry.run_resolved(config, folder)
  if mesh.is_main_process():
    print(f'results: {folder}')


def _stop_early(*_) -> NoReturn:
  """SIGTERM before anything is begun; `preemption` takes over later.

  No exception: imports run finalisers, which would drop it.
  """
  os._exit(EXIT_PREEMPTED)


def _list_keys() -> int:
  """Every key that the task reads: value, meaning, rule; in the order in which data flow."""
  from ctfake_jax import config as config_lib

  _quiet_pipe()
  values = dict(config_lib.leaves(CONFIG.value.to_dict()))
  task = CONFIG.value.task
  passed_over = set(config_lib.unread_by_task(task, config_lib.KEYS))
  for key, row in config_lib.KEYS.items():
    if key not in passed_over:
      print(f'--config.{key}={values.get(key)}\n    {row.meaning}; {row.rule.allowed}')
  print(f'\n{len(passed_over)} more keys are read by other tasks than {task}')
  return 0


def _program() -> str:
  """What this was started as."""
  return 'ctfake' if Path(sys.argv[0]).stem == 'ctfake' else 'launch.py'


def _quiet_pipe() -> None:
  """A list that is piped into `head` may end early, without a traceback."""
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _usage() -> int:
  _quiet_pipe()
  print(f'{_program()} --config=NAME [--workdir=DIR] [--config.key=value ...]\n')
  print('  --config=NAME       one of these, or the path of a file like them')
  print('  --workdir=DIR       where results go; runs/NAME where it is left out')
  print('  --config.key=value  sets a key')
  print('  --keys              lists the keys that --config=NAME reads, with what they mean')
  print('  --debug             shows the traceback of a mistake\n')
  for name, path in config_files.named().items():
    print(f'  {name:18s} {config_files.summary(path)}')
  return EXIT_ERROR


def _fail(message: str) -> int:
  print(f'error: {message}', file=sys.stderr)
  return EXIT_ERROR


def start() -> NoReturn:
  """Runs the program; leaves with its exit code."""
  signal.signal(signal.SIGTERM, _stop_early)
  app.run(main, flags_parser=parse)
  raise AssertionError('app.run ends the process')
