"""The tour's cells run, at sizes of seconds; it is shown with outputs of its own sizes."""

from pathlib import Path

import nbclient
import nbformat
import pytest
from door import ROOT, environment

TOUR = ROOT / 'docs' / 'tour.ipynb'
TINY = """
from pathlib import Path
WORKDIR = Path({workdir!r})
PATIENTS = 100
CLASSIFIER = {{'train.epochs': 1, 'model.cnn.widths': (4,)}}
GENERATOR = {{
  'gan.width': 2,
  'gan.latent': 4,
  'gan.batch_size': 8,
  'gan.updates': 2,
  'gan.eval_every': 2,
  'gan.quality_images': 16,
}}
DETECTOR = {{
  'detection.width': 4,
  'detection.batch_size': 8,
  'detection.updates': 2,
  'detection.eval_every': 2,
  'detection.train_fakes_per_family': 16,
  'detection.eval_fakes_per_family': 8,
  'detection.families': ('copied',),
}}
"""


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
  for name, value in environment().items():
    monkeypatch.setenv(name, value)
  notebook = nbformat.read(TOUR, as_version=4)
  (parameters,) = (c for c in notebook.cells if 'parameters' in c.metadata.get('tags', []))
  parameters.source = TINY.format(workdir=str(tmp_path / 'tour'))
  nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': ROOT}}).execute()
  *_, verdicts, maps = code_cells(notebook)
  assert "'fake':" in verdicts.outputs[-1]['text']
  assert any('image/png' in output.get('data', {}) for output in maps.outputs)
  assert (Path(tmp_path) / 'tour' / 'detector' / 'MODEL_CARD.md').exists()


def test_it_is_shown_with_what_came_out():
  notebook = nbformat.read(TOUR, as_version=4)
  cells = code_cells(notebook)
  assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
  outputs = [output for cell in cells for output in cell.outputs]
  assert sum('image/png' in output.get('data', {}) for output in outputs) == 3
  assert not any(output.output_type == 'error' for output in outputs)
  assert str(ROOT) not in TOUR.read_text()
