"""The arrows between rooms point one way, and nothing reaches for TensorFlow or pickle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'ctfake_jax'
FILES = sorted(PACKAGE.rglob('*.py'))
TASKS = sorted((PACKAGE / 'tasks').rglob('*.py'))
BASE = {'types', 'config', 'runtime', 'workdir'}
MODEL = {'data', 'models', 'inference', 'evaluation'}
# A room may import those named here, and itself.
MAY_IMPORT = {
  'types': set(),
  'config': {'types'},
  'runtime': {'types', 'config'},
  'workdir': {'types', 'config', 'runtime'},
  'data': BASE - {'workdir'},
  'models': {'config'},
  'inference': BASE | {'data', 'models'},
  'evaluation': {'types', 'config', 'runtime', 'data', 'models'},
  'train': BASE | MODEL,
  'fakes': BASE | MODEL,
  'tampering': BASE | {'data'},
  'report': {'types'},
  'detector': BASE | MODEL | {'train', 'fakes', 'report'},
  'detector_bench': BASE | MODEL | {'train', 'detector', 'report'},
  'forensics': BASE | MODEL | {'train', 'tampering', 'detector'},
  'tasks': BASE
  | MODEL
  | {'train', 'fakes', 'tampering', 'detector', 'detector_bench', 'forensics', 'report'},
  'command_line': {'types', 'config', 'runtime', 'tasks'},
}
FORBIDDEN = {'tensorflow', 'pickle', 'clu', 'torch'}


def room(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ''
      yield base
      yield from (f'{base}.{alias.name}' for alias in node.names)


def test_only_types_stands_beside_the_rooms():
  assert {path.name for path in PACKAGE.glob('*.py')} == {'__init__.py', 'types.py'}


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
  own = room(path)
  if own == '__init__':
    allowed = set()
  else:
    assert own in MAY_IMPORT, f'say in this test what {own} may import'
    allowed = MAY_IMPORT[own] | {own}
  rooms = {p.removesuffix('.py') for p in map(room, FILES)} - {'__init__'}
  ours = {name.split('.')[1] for name in imports(path) if name.startswith('ctfake_jax.')} & rooms
  assert ours <= allowed
  assert not {name.split('.')[0] for name in imports(path)} & FORBIDDEN


def module_name(path):
  parts = ['ctfake_jax', *path.relative_to(PACKAGE).with_suffix('').parts]
  return '.'.join(parts).removesuffix('.__init__')


@pytest.mark.parametrize('path', TASKS, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_task_imports_no_task(path):
  """But for the parts of one, which share a folder; what tasks share lies in another room."""
  own = path.relative_to(PACKAGE / 'tasks').parts[0].removesuffix('.py')
  others = {name.split('.')[2] for name in imports(path) if name.startswith('ctfake_jax.tasks.')}
  assert others <= {own}


def test_no_module_imports_in_a_circle():
  modules = {module_name(path): path for path in FILES}
  done, active = set(), []

  def visit(name):
    assert name not in active, ' -> '.join([*active, name])
    if name in done:
      return
    active.append(name)
    found = set(imports(modules[name])) & set(modules) - {'ctfake_jax', name}
    # `from package.room import module` names both; the module is what is wanted.
    for other in found - {module.rpartition('.')[0] for module in found}:
      visit(other)
    active.pop()
    done.add(name)

  for name in modules:
    visit(name)
