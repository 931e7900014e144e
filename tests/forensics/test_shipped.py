"""The detector that comes with the package: its files, its size, its figures on the mini-set."""

import hashlib
import json

import numpy as np
import pytest

import ctfake_jax as ct
from ctfake_jax.forensics import bundle, mini_set
from ctfake_jax.types import UserError

MOST_BYTES = 5 * 2**20


def test_it_is_small_and_its_hash_is_its_cards():
  content = json.loads((bundle.SHIPPED / bundle.FACTS).read_text())
  tensors = (bundle.SHIPPED / bundle.NETWORK).read_bytes()
  assert hashlib.sha256(tensors).hexdigest() == content['network_sha256']
  assert sum(path.stat().st_size for path in bundle.SHIPPED.iterdir()) <= MOST_BYTES
  name = bundle.load().name
  assert name in (bundle.SHIPPED / 'MODEL_CARD.md').read_text()


def test_it_learnt_from_sets_whose_terms_allow_it():
  """TCIA's collections under CC BY, and the phantom."""
  facts = bundle.load().facts
  allowed = ('lidc_idri_0001/', 'cptac_c3n_00247/', 'lung_pet_ct_dx/', 'tcga_lung/', 'phantom-')
  for part in ('learnt', 'calibrated'):
    assert facts[part]
    assert all(source['name'].startswith(allowed) for source in facts[part])
  assert 'CC BY' in facts['data_terms']
  of = [{s['sha256'] for s in facts[part]} for part in ('learnt', 'calibrated')]
  assert not of[0] & of[1]


@pytest.mark.slow
def test_it_gives_its_figures_on_the_mini_set():
  detector = bundle.load()
  found = mini_set.figures(detector)
  stored = detector.facts['mini_set']
  assert [each['kind'] for each in found] == [each['kind'] for each in stored]
  for own, was in zip(found, stored):
    # The phantom and the network repeat but for rounding on other processors.
    assert own['score'] == pytest.approx(was['score'], abs=0.2)
    assert own['auroc'] == pytest.approx(was['auroc'], abs=0.05)
  assert np.mean([each['auroc'] for each in found]) > 0.8


@pytest.mark.slow
def test_a_real_series_is_judged_out_of_the_box(real_data):
  """A patient with pneumonia, of a source that it never saw."""
  found = list(ct.detect(real_data / 'dicom_hu' / 'covid_ct_md' / 'cap001'))
  assert len(found) == 60
  assert {each.verdict for each in found} <= {'real', 'fake', 'unsure'}
  assert np.mean([each.verdict == 'fake' for each in found]) < 0.1
  assert np.mean([each.verdict == 'unsure' for each in found]) < 0.05


def test_pictures_are_told_what_to_do(tmp_path):
  (tmp_path / 'a.png').write_bytes(b'\x89PNG\r\n\x1a\n')
  (found,) = ct.detect(tmp_path)
  assert found.verdict == 'not_judged'
  assert 'detector_folders' in found.reasons[0]


def test_a_missing_folder_is_named_at_once(tmp_path):
  with pytest.raises(UserError, match='no such file or folder'):
    ct.detect(tmp_path / 'nothing')
