"""The arrows between rooms point one way, and nothing reaches for TensorFlow or pickle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'ctfake_jax'
FILES = sorted(PACKAGE.rglob('*.py'))
BASE = {
  *('types', 'geometry', 'config', 'mesh', 'checkpoints', 'metrics', 'workdir', 'progress'),
  'streams',
}
LEAVES = {
  'export', 'inference', 'sampling', 'fakes', 'generate', 'evaluate', 'predict', 'controls',
  'figures', 'scores', 'fall', 'quality', 'yardstick', 'experiment',
}  # fmt: skip
# A room may import those named here, and itself.
MAY_IMPORT = {
  'geometry': set(),
  'types': {'geometry'},
  'streams': set(),
  'config': {'types'},
  'mesh': {'types'},
  'checkpoints': {'types', 'workdir'},
  'allocator': set(),
  'compilation_cache': set(),
  'cost': set(),
  'progress': set(),
  'batches': {'progress'},
  'preemption': {'types'},
  'side_by_side': {'preemption'},
  'metrics': {'types'},
  'workdir': {'types', 'config'},
  'models': set(),
  'data': BASE,
  'report': {'types'},
  **{leaf: BASE | LEAVES | {'batches', 'data', 'models'} for leaf in LEAVES},
  'train': BASE | LEAVES | {'data', 'models', 'preemption', 'cost'},
  'study': BASE | LEAVES | {'data', 'models', 'train', 'report', 'side_by_side'},
  'detector': BASE | LEAVES | {'batches', 'data', 'models', 'train', 'attribution', 'report'},
  'detector_bench': BASE | LEAVES | {'data', 'models', 'train', 'detector', 'report'},
  'attribution': {'types', 'models', 'streams'},
  'detect': BASE | {'data', 'detector'},
  'explain': BASE | {'data', 'inference', 'figures', 'attribution', 'detector'},
  'estimate': BASE | {'data', 'models', 'train', 'detector', 'detector_bench'},
  'benchmark': BASE | LEAVES | {'batches', 'data', 'models', 'train', 'cost'},
  'tasks': {'config'},
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
