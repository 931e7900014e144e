"""Twenty questions of somebody new, to be answered from `git ls-files` alone; the answers exist.

Whoever renames or moves a file keeps its name telling: a reader is given the list of files and the
questions, no contents, and should find eighteen.
"""

import pytest
from door import ROOT

QUESTIONS = {
  'Where is the JPEG re-encoding that controls and robustness use?': (
    'ctfake_jax/data/transforms/file_degradations.py',
  ),
  'Where is DICOM pixel padding handled?': ('ctfake_jax/data/sources/dicom/frame.py',),
  'Where does it say which folder of the package may import which?': (
    'tests/test_architecture.py',
    'docs/design.md',
  ),
  'Where are the default and the rule of a config key?': ('ctfake_jax/config/keys.py',),
  'Where are old names of config keys translated?': (
    'ctfake_jax/config/names.py',
    'ctfake_jax/config/saved.py',
  ),
  'Where are images split by patient?': ('ctfake_jax/data/splits.py',),
  "Where is the DCGAN's generator defined?": ('ctfake_jax/models/dcgan.py',),
  'Where is the training step of GANs?': ('ctfake_jax/train/gan.py',),
  'Where does a training save and restore its state?': ('ctfake_jax/workdir/checkpoints.py',),
  'Where is SIGTERM dealt with?': ('ctfake_jax/runtime/preemption.py',),
  'Where is the random seed of each use derived?': ('ctfake_jax/runtime/streams.py',),
  'Where is the DICOM file of a generated image written?': (
    'ctfake_jax/data/sources/dicom/writer.py',
    'ctfake_jax/data/sources/dicom/statements.py',
    'ctfake_jax/fakes/generation.py',
  ),
  'Where are local edits (in-painting, copy-move) of real slices made?': (
    'ctfake_jax/fakes/local_edits.py',
  ),
  "Where is the detector's threshold for false alarms computed?": (
    'ctfake_jax/detector/calibration.py',
  ),
  'Where is decided whether an image is outside of what the detector knows?': (
    'ctfake_jax/detector/domain.py',
  ),
  'Where is a detector fitted to another hospital?': (
    'ctfake_jax/detector/recalibration.py',
    'ctfake_jax/detector/site_adaptation.py',
  ),
  'Where is the fall in accuracy on deepfakes tested?': ('ctfake_jax/evaluation/accuracy_drop.py',),
  'Where are Grad-CAM and LIME?': ('ctfake_jax/evaluation/attribution.py',),
  "Where is the HTML of the study's report?": (
    'ctfake_jax/report/study.html',
    'ctfake_jax/report/study.py',
  ),
  'Where are files of strangers decoded with limits on time and memory?': (
    'ctfake_jax/data/sources/sandboxed.py',
  ),
}


def test_there_are_twenty():
  assert len(QUESTIONS) == 20


@pytest.mark.parametrize('question', QUESTIONS)
def test_the_answer_is_a_file(question):
  for path in QUESTIONS[question]:
    assert (ROOT / path).is_file()
