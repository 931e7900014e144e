"""Every check in one command, `python -m tests`: linter, formatter, types, tests.

Extra arguments go to pytest: `python -m tests -m "not slow"`.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CODE = ['ctfake_jax', 'configs', 'tests', 'launch.py', 'docs']
CHECKS = [
  ['ruff', 'check', *CODE],
  ['ruff', 'format', '--check', *CODE],
  ['mypy'],
  ['pytest', '-n', '2', '--dist', 'loadgroup', '-q', '-rs', '--durations=10', *sys.argv[1:]],
]


def main() -> int:
  """0 where all checks pass; every check runs, whatever came of the others."""
  failed = []
  for check in CHECKS:
    print('+', *check, flush=True)
    if subprocess.run([sys.executable, '-m', *check], cwd=ROOT).returncode:
      failed.append(check[0])
  if failed:
    print('failed:', ', '.join(failed))
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
