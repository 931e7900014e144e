"""The task `tamper`: lesions put into, taken out of or copied within whole CT series.

Leaves `series/<name>/0001.dcm` ..., which say that they are edited; `masks/<name>.npz`, the changed
voxels by slice, row and column as stored; `manifest.json`; of a phantom also `originals/`. Values
outside of the mask are those of the source, bit by bit.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from ctfake_jax import __version__
from ctfake_jax.config.keys import Config
from ctfake_jax.data import lungs
from ctfake_jax.data import series as series_lib
from ctfake_jax.data.series import CtSeries
from ctfake_jax.data.sources.dicom import statements
from ctfake_jax.data.sources.dicom.pseudonyms import Pseudonyms
from ctfake_jax.data.sources.dicom.writer import Statement
from ctfake_jax.runtime import progress_bar, streams
from ctfake_jax.tampering import methods, sites
from ctfake_jax.tampering.methods import Place
from ctfake_jax.tampering.sites import Site
from ctfake_jax.types import UnreadableImageError, UserError
from ctfake_jax.workdir import files as workdir_lib

MANIFEST = 'manifest.json'
# Of nodules of the source, whose figures stand beside those of the changes.
MOST_CANDIDATES, CANDIDATES_MM = 5, (5.0, 40.0)
LEAST_CONTRAST_TO_NOISE = 1.0  # of a lesion that counts
_DONE = {
  'inject': 'A lesion was put into the series',
  'remove': 'A lesion was taken out of the series',
  'copy_move': 'A part of the series was replaced by a copy of another part of it',
}


def run(config: Config, workdir: Path) -> dict:
  """Changes every series of the input; returns the manifest."""
  workdir_lib.check_same_command(workdir, config)
  c = config.tamper
  method = c.method or next(iter(methods.METHODS[c.action]))
  table = sites.read(Path(c.sites_csv)) if c.sites_csv else []
  digest = hashlib.sha256(Path(c.sites_csv).read_bytes()).hexdigest() if table else None
  _refuse_another_table(workdir, digest)
  left_out: list[UnreadableImageError] = []
  pseudonyms = Pseudonyms.of(workdir)
  listed, used = [], set()
  for series in _inputs(config, left_out):
    print(f'{series.name}: {len(series.stored)} slices', flush=True)
    try:
      asked = sites.of_table(table, series)
      used |= set(asked)
      sites.refuse_outside(asked, series)
      listed.append(_tamper(config, method, workdir, series, list(asked.values()), pseudonyms))
    except UserError as error:
      print(f'careful: {series.name} is left as it is: {error}', flush=True)
      left_out.append(UnreadableImageError(series.records[0].provenance, str(error)))
  unused = [line for line, _ in enumerate(table, sites.FIRST_LINE) if line not in used]
  for line in unused:
    print(f'careful: config.tamper.sites_csv, line {line}: no series of the input is named there')
  if not listed:
    reasons = '; '.join(map(str, left_out[:3])) or 'the input has none'
    raise UserError(f'tamper: no series was changed; {reasons}')
  workdir_lib.record_command(workdir, config)
  manifest = {
    'version': __version__,
    'seed': config.seed,
    'action': c.action,
    'method': method,
    'sites_sha256': digest,
    'unused_lines': unused,
    'series': listed,
    'left_out': [{'path': e.path, 'reason': e.reason} for e in left_out],
  }
  workdir_lib.write_json(workdir / MANIFEST, manifest)
  return manifest


def _refuse_another_table(workdir: Path, digest: str | None) -> None:
  path = workdir / MANIFEST
  if path.exists() and workdir_lib.read_json(path).get('sites_sha256') != digest:
    raise UserError(
      f'config.tamper.sites_csv: {workdir} was made by another table; choose another --workdir'
    )


def _tamper(
  config: Config,
  method: str,
  workdir: Path,
  series: CtSeries,
  given: list[Site],
  pseudonyms: Pseudonyms,
) -> dict:
  """Changes and writes a series; its row of the manifest. UserError where it cannot be changed."""
  hu = series.hu
  lung = lungs.lung_mask(hu, series.spacing_mm)
  asked = given if config.tamper.sites_csv else _sites(config, series, hu, lung)
  if not asked:
    raise UserError('there is no place for this in it')
  if not config.tamper.sites_csv and len(asked) < config.tamper.count:
    print(f'careful: {series.name}: {len(asked)} places of {config.tamper.count} were found')
  changed, rows = _change(config, method, series, hu, lung, asked)
  return {
    'series': series.name,
    'source': series.records[0].provenance,
    'slices': len(series.stored),
    'spacing_mm': series.spacing_mm,
    'remarks': series.remarks,
    'sites': rows,
    'nodules_of_source': _candidates(series, hu, lung),
    **_write(config, method, workdir, series, changed, asked, pseudonyms),
  }


def _inputs(config: Config, left_out: list[UnreadableImageError]) -> Iterator[CtSeries]:
  """The series of the phantom, of DICOM, or of NIfTI and MetaImage."""
  data = config.data
  if data.source == 'dicom':
    yield from series_lib.of_dicom(Path(data.path), data.max_pixels, data.synthetic_ok, left_out)
  elif data.source == 'volumes':
    yield from series_lib.of_volumes(Path(data.path), data.max_pixels, left_out)
  else:
    yield from (series for series, _ in series_lib.of_phantom(config))


def _sites(
  config: Config,
  series: CtSeries,
  hu: Float32[np.ndarray, 'n h w'],
  lung: Bool[np.ndarray, 'n h w'],
) -> list[Site]:
  """`tamper.count` places that do not touch each other."""
  c = config.tamper
  sizes = c.smallest_mm, c.largest_mm
  rng = streams.generator(config.seed, 'tampering, sites', series.name)
  if c.action == 'remove':
    found: Iterator[Site] = iter(sites.nodules(hu, lung, series.spacing_mm, sizes))
  else:
    found = sites.free(hu, lung, series.spacing_mm, sizes, rng)
  taken: list[Site] = []
  for site in found:
    if len(taken) == c.count:
      break
    if all(sites.apart(site, other, series.spacing_mm) for other in taken):
      taken.append(site)
  return taken


def _candidates(
  series: CtSeries, hu: Float32[np.ndarray, 'n h w'], lung: Bool[np.ndarray, 'n h w']
) -> list[dict]:
  """What may be nodules in the source, the roundest, with the same figures as the changes."""
  found = []
  for site in sites.nodules(hu, lung, series.spacing_mm, CANDIDATES_MM)[:MOST_CANDIDATES]:
    place = Place.of(hu, lung, series.spacing_mm, site)
    found.append(dataclasses.asdict(site) | methods.contrast_to_noise(hu, place))
  return found


def _change(
  config: Config,
  method: str,
  series: CtSeries,
  hu: Float32[np.ndarray, 'n h w'],
  lung: Bool[np.ndarray, 'n h w'],
  asked: list[Site],
) -> tuple[CtSeries, list[dict]]:
  """The series after all changes, and what each is like."""
  how = methods.METHODS[config.tamper.action][method]
  rows, current = [], series
  takes_out = config.tamper.action == 'remove'
  for number, site in enumerate(progress_bar.bar('changing', asked)):
    rng = streams.generator(config.seed, 'tampering, change', series.name, number)
    before = current.hu
    place = Place.of(before, lung, series.spacing_mm, site)
    after = current.changed(methods.apply(how, place, rng))
    voxels = int((after.stored != current.stored).sum())
    facts = methods.contrast_to_noise(before if takes_out else after.hu, place)
    counts = abs(facts['contrast_to_noise']) >= LEAST_CONTRAST_TO_NOISE
    in_lung = bool(lung[tuple(round(c) for c in site.centre)])
    if not counts or not in_lung:
      what = 'shows no lesion' if in_lung else 'lies outside of the lungs'
      print(f'careful: {series.name}: the place {tuple(map(round, site.centre))} {what}')
    rows.append({
      'centre': site.centre,
      'diameter_mm': site.diameter_mm,
      'in_lung': in_lung,
      'changed_mm3': voxels * float(np.prod(series.spacing_mm)),
      **facts,
      'counts': counts,
    })  # fmt: skip
    current = after
  return current, rows


def _write(
  config: Config,
  method: str,
  workdir: Path,
  series: CtSeries,
  changed: CtSeries,
  asked: list[Site],
  pseudonyms: Pseudonyms,
) -> dict:
  """Files of a changed series; their hashes."""
  mask = changed.stored != series.stored
  number = f'{series.name}/{config.seed}/{config.tamper.action}/{method}/{asked}'

  def statement(row: int) -> Statement:
    """Of an edited slice."""
    share = float(mask[row].mean())
    change = statements.Change(_DONE[config.tamper.action], share, resampled=False, range_hu=None)
    return statements.edited(
      series.records[row],
      change,
      made_by=f'ctfake_jax tamper, {method}',
      version=__version__,
      label=None,
      number=number,
      pseudonyms=pseudonyms,
    )

  digests = series_lib.write(changed, workdir / 'series' / series.name, statement)
  if series.simulated:
    series_lib.write_simulated(series, workdir / 'originals' / series.name)
  path = workdir / 'masks' / f'{series.name}.npz'
  path.parent.mkdir(exist_ok=True)
  np.savez_compressed(path, allow_pickle=False, mask=mask)
  return {
    'changed_voxels': int(mask.sum()),
    'pixels_sha256': hashlib.sha256(changed.stored.tobytes()).hexdigest(),
    'source_pixels_sha256': hashlib.sha256(series.stored.tobytes()).hexdigest(),
    'mask_sha256': hashlib.sha256(np.packbits(mask).tobytes()).hexdigest(),
    'files': digests,
  }
