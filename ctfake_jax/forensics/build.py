"""The task `forensics`: a detector of edits in CT at native resolution, from untouched series.

Leaves `detector.json`, `network.safetensors` and `MODEL_CARD.md`, which `detect` takes as
`--config.detector`, and the training's checkpoints, from which a stopped run goes on.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ctfake_jax import __version__
from ctfake_jax.config.keys import Config
from ctfake_jax.data.sources.native import Header
from ctfake_jax.detector import calibration as detector_calibration
from ctfake_jax.detector.calibration import UNSCALED, Scaling
from ctfake_jax.forensics import (
  benign,
  bundle,
  calibration,
  card,
  mini_set,
  training,
  trial,
  volumes,
)
from ctfake_jax.forensics.bundle import ForensicDetector
from ctfake_jax.forensics.edits import KINDS
from ctfake_jax.forensics.examine import (
  Examined,
  Triple,
  examine,
  examine_triples,
  frames_of,
  network_maps,
  texture,
)
from ctfake_jax.forensics.untouched import Looks
from ctfake_jax.forensics.volumes import Volume
from ctfake_jax.models import registry
from ctfake_jax.runtime import progress_bar, streams
from ctfake_jax.types import UnreadableImageError, UserError
from ctfake_jax.workdir import files as workdir_lib

TEXTURES_OF_EACH = 16  # slices of a volume that the domain is fitted to
TRIED_ALONE, TRIED = 2, 12  # edits of each kind in a slice without neighbours, and in a series


def run(config: Config, workdir: Path) -> dict:
  """Reads series, trains, calibrates, tries; leaves a detector in the workdir."""
  left_out: list[UnreadableImageError] = []
  found = _all(config, left_out)
  learnt, held_out = parts(found, config)
  identity = {'series': {volume.name: volume.digest for volume in found}}
  workdir_lib.record_config(workdir, config, identity)
  progress_bar.stage(f'training on {_count(learnt)}')
  variables = training.train(config, learnt, workdir, 'forensics')
  progress_bar.stage(f'calibrating on {_count(held_out)}')
  detector = calibrated(config, variables, learnt, held_out)
  progress_bar.stage('trying it on series that it never saw')
  detector = tried(config, detector, held_out)
  facts = {
    **detector.facts,
    'data_terms': config.forensics.data_terms,
    'mini_set': mini_set.figures(detector),
    'learnt': [_source(volume) for volume in learnt],
    'calibrated': [_source(volume) for volume in held_out],
  }
  bundle.save(dataclasses.replace(detector, facts=facts), workdir)
  card.write(bundle.load(workdir), workdir)
  results = {
    'left_out': [{'path': e.path, 'reason': e.reason} for e in left_out],
    'slices': vars(detector.slices.level(detector.false_alarm_rate)),
    'series': vars(detector.series.level(detector.false_alarm_rate)),
    'figures': detector.facts['figures'],
  }
  workdir_lib.write_results(workdir, results)
  return results


def _all(config: Config, left_out: list[UnreadableImageError]) -> list[Volume]:
  found = list(volumes.of_folder(config, left_out)) if config.data.path else []
  for error in left_out:
    print(f'left out: {error}', flush=True)
  return found + list(volumes.of_phantom(config))


def parts(found: Sequence[Volume], config: Config) -> tuple[list[Volume], list[Volume]]:
  """Volumes to learn from and to calibrate on, no patient in both.

  Of real patients every other one learns, those with many slices first; of phantoms the first
  `forensics.phantoms_to_learn`.

  Raises:
    UserError: a part would be empty.
  """
  sizes: collections.Counter[str] = collections.Counter()
  for volume in found:
    if not volume.phantom:
      sizes[volume.patient] += len(volume.rows)
  order = sorted(sizes, key=lambda patient: (-sizes[patient], patient))
  phantoms = sorted({volume.patient for volume in found if volume.phantom})
  chosen = {*order[::2], *phantoms[: config.forensics.phantoms_to_learn]}
  learnt = [volume for volume in found if volume.patient in chosen]
  held_out = [volume for volume in found if volume.patient not in chosen]
  if not learnt or not held_out:
    raise UserError(
      f'config.phantom.patients = {config.phantom.patients}: needs series of more patients, to '
      'learn from and to calibrate on'
    )
  return learnt, held_out


def calibrated(
  config: Config, variables: dict, learnt: Sequence[Volume], held_out: Sequence[Volume]
) -> ForensicDetector:
  """Thresholds and domain from untouched series; figures are still to come."""
  model, looks = registry.forensic_net(config.forensics), Looks()
  maps = network_maps(model, variables)
  rng = streams.generator(config.seed, 'squares')
  for volume in progress_bar.bar('judging untouched series', held_out):
    looks.take(examine(maps, frames_of(volume)), rng)
  phantoms = [volume.patient for volume in held_out if volume.phantom]
  slices, series = looks.untouched(config.seed, phantoms)
  textures = list(_textures(learnt, config.seed))
  domain = calibration.fit_domain(
    np.stack([texture for _, texture in textures]), np.array([patient for patient, _ in textures])
  )
  return ForensicDetector(
    model=model,
    variables=variables,
    width=config.forensics.width,
    slices=slices,
    series=series,
    scaling=UNSCALED,
    map_limit=looks.map_limit(calibration.MAP_RATE),
    domain=calibration.limited(domain, looks.distances(domain, config.seed, phantoms)),
    false_alarm_rate=detector_calibration.asked_rate(config),
    facts={'version': __version__, 'kinds': config.forensics.kinds, 'seed': config.seed},
  )


def _textures(found: Sequence[Volume], seed: int) -> Iterator[tuple[str, Float[np.ndarray, ' t']]]:
  for volume in progress_bar.bar('measuring textures', found):
    rng = streams.generator(seed, 'textures', volume.name)
    count = min(TEXTURES_OF_EACH, len(volume.rows))
    for row in rng.choice(volume.rows, count, replace=False):
      hu = volume.hu[row].astype(np.float32)
      yield volume.patient, texture(hu, volume.lung[row], volume.spacing_mm[1:])


def tried(
  config: Config, detector: ForensicDetector, held_out: Sequence[Volume]
) -> ForensicDetector:
  """With a scaling and figures from edits of the series that it was calibrated on."""
  real = [volume for volume in held_out if not volume.phantom] or list(held_out)
  rng = streams.generator(config.seed, 'trial')
  figures: dict = {'kinds': {}, 'harmless': {}, 'of_each': {'alone': TRIED_ALONE, 'series': TRIED}}
  scores: list[float] = []
  fake: list[bool] = []

  limit = detector.slices.level(detector.false_alarm_rate).value

  def of_each(volume: Volume) -> int:
    return TRIED if len(volume.rows) > 1 else TRIED_ALONE

  def judged(triples: Iterable[Triple]) -> list[Examined | Header]:
    return list(examine_triples(detector.maps, triples))

  def share(found: list[Examined | Header]) -> float:
    own = [e for e in found if isinstance(e, Examined)]
    return trial.mean_by_patient([e.score > limit for e in own], [e.header.patient for e in own])

  untouched = judged(trial.changed_slices(real, lambda slab, _: slab, of_each, rng))
  for name in progress_bar.bar('edits', [k for k in config.forensics.kinds if k in KINDS]):
    edited = list(trial.edited_slices(real, {name: KINDS[name]}, of_each, rng))
    found = judged(each.triple for each in edited)
    pairs = [(e, each) for e, each in zip(found, edited) if isinstance(e, Examined)]
    places = [trial.location(e, each.centre) for e, each in pairs]
    own = [each.patient for _, each in pairs]
    figures['kinds'][name] = {
      'slices': len(pairs),
      **{
        key: trial.mean_by_patient([place[key] for place in places], own)
        for key in ('auroc', 'pointed', 'chance')
      },
      'called_fake': share(found),
    }
    scores += [e.score for e, _ in pairs]
    fake += [True] * len(pairs)
  for name, change in progress_bar.bar('harmless changes', benign.CHANGES.items()):
    found = judged(trial.changed_slices(real, change, of_each, rng))
    figures['harmless'][name] = share(found)
  figures['whole'] = share(judged(trial.whole_slices(real, of_each, rng)))
  figures['untouched'] = share(untouched)
  kept = [e.score for e in untouched if isinstance(e, Examined)]
  scores, fake = [*scores, *kept], [*fake, *[False] * len(kept)]
  scaling: Scaling = detector_calibration.fit_scaling(np.array(scores), np.array(fake))
  facts = {**detector.facts, 'figures': figures}
  return dataclasses.replace(detector, facts=facts, scaling=scaling)


def _source(volume: Volume) -> dict:
  return {'name': volume.name, 'slices': len(volume.rows), 'sha256': volume.digest}


def _count(found: Sequence[Volume]) -> str:
  real = {volume.patient for volume in found if not volume.phantom}
  phantoms = {volume.patient for volume in found if volume.phantom}
  return f'{len(real)} patients and {len(phantoms)} phantoms'
