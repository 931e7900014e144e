"""The task `forensics_bench`: the forensic network on kinds of edits and patients left out.

Kinds are dealt into `forensics_bench.kind_folds` groups. For each group, and each seed, a network
learns from the others on some patients, and edits of the group are made in slices of the rest.
Statistics by hand stand beside it on the same slices, and the mirrored place, which nobody edited,
as a control. Leaves `results.json` and `table.md`.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.stats

from ctfake_jax.config.keys import Config
from ctfake_jax.data.sources.native import Header
from ctfake_jax.forensics import benign, handmade, training, trial, volumes
from ctfake_jax.forensics.build import parts
from ctfake_jax.forensics.calibration import MAP_RATE
from ctfake_jax.forensics.edits import KINDS
from ctfake_jax.forensics.examine import (
  Examined,
  Maps,
  Triple,
  examine,
  examine_triples,
  frames_of,
  network_maps,
)
from ctfake_jax.forensics.pairs import WHOLE
from ctfake_jax.forensics.series import Evidence, gather
from ctfake_jax.forensics.trial import Edited
from ctfake_jax.forensics.untouched import Looks
from ctfake_jax.forensics.volumes import Volume
from ctfake_jax.models import registry
from ctfake_jax.runtime import progress_bar, streams
from ctfake_jax.tampering import sites
from ctfake_jax.types import UnreadableImageError
from ctfake_jax.workdir import files as workdir_lib

OURS = 'network'
RATES = 0.01, 0.05  # of false alarms
CONFIDENCE = 0.95
NODULES_MM = 5.0, 40.0  # dense round things of untouched slices
MOST_NODULES = 6  # of a series
UNTOUCHED = 'untouched'
FEWEST_SLICES = 5  # of a series that is tried as one


@dataclasses.dataclass(frozen=True)
class Slices:
  """What every method is tried on, the same for all.

  Attributes:
    edited: by kind.
    whole: made up as a whole.
    untouched: as they are.
    harmless: after each harmless change.
    nodules: untouched, each with the place of something dense and round.
    series: untouched, of several slices.
  """

  edited: dict[str, list[Edited]]
  whole: list[Triple]
  untouched: list[Triple]
  harmless: dict[str, list[Triple]]
  nodules: list[tuple[Triple, tuple[float, float]]]
  series: list[Volume]


def run(config: Config, workdir: Path) -> dict:
  """Trains a network for every group of kinds and seed, tries all; returns the results."""
  left_out: list[UnreadableImageError] = []
  found = list(volumes.of_folder(config, left_out)) if config.data.path else []
  found += list(volumes.of_phantom(config))
  learnt, held_out = parts(found, config)
  workdir_lib.record_config(workdir, config, {'series': {v.name: v.digest for v in found}})
  real = [volume for volume in held_out if not volume.phantom] or held_out
  slices = drawn(config, real, [v for v in held_out if len(v.rows) >= FEWEST_SLICES])
  seeds = range(config.forensics_bench.seeds)
  rows: dict[str, dict] = {}
  for name, statistic in handmade.STATISTICS.items():
    progress_bar.stage(name)
    rows[name] = measured(handmade.maps_of(statistic), slices, config.seed)
  ours = [_trained_and_tried(config, learnt, slices, workdir, seed) for seed in seeds]
  rows[OURS] = joined(ours)
  results = {
    'patients_learnt': len({v.patient for v in learnt if not v.phantom}),
    'patients_tried': len({v.patient for v in real}),
    'folds': folds(config),
    'rows': {name: summary(row) for name, row in rows.items()},
    'paired': paired(rows),
  }
  workdir_lib.write_results(workdir, results)
  (workdir / 'table.md').write_text(table(results))
  return results


def folds(config: Config) -> list[list[str]]:
  """Kinds that are left out together."""
  kinds, count = config.forensics.kinds, config.forensics_bench.kind_folds
  return [list(kinds[i::count]) for i in range(min(count, len(kinds)))]


def drawn(config: Config, real: Sequence[Volume], series: Sequence[Volume]) -> Slices:
  """By the seed, for every method."""
  of_each = config.forensics_bench.slices_of_each

  def count(_: Volume) -> int:
    return of_each

  def four_times(_: Volume) -> int:
    return 4 * of_each

  def rng(name: str) -> np.random.Generator:
    return streams.generator(config.seed, 'bench', name)

  return Slices(
    edited={
      kind: list(trial.edited_slices(real, {kind: KINDS[kind]}, count, rng(kind)))
      for kind in progress_bar.bar('edits', [k for k in config.forensics.kinds if k != WHOLE])
    },
    whole=list(trial.whole_slices(real, count, rng(WHOLE))),
    untouched=list(trial.changed_slices(real, lambda s, _: s, four_times, rng(UNTOUCHED))),
    harmless={
      name: list(trial.changed_slices(real, change, count, rng(name)))
      for name, change in benign.CHANGES.items()
    },
    nodules=list(_nodules(real)),
    series=list(series),
  )


def _nodules(real: Sequence[Volume]) -> Iterator[tuple[Triple, tuple[float, float]]]:
  """Slices through dense round things in the lungs, and where these are."""
  for volume in real:
    hu = volume.hu.astype(np.float32)
    found = sites.nodules(hu, volume.lung, volume.spacing_mm, NODULES_MM)[:MOST_NODULES]
    for site in found:
      row = round(site.centre[0])
      yield trial.triple_of(volume, volume.slab(row)), site.centre[1:]


def _trained_and_tried(
  config: Config, learnt: Sequence[Volume], slices: Slices, workdir: Path, seed: int
) -> dict:
  """One network for each group of kinds left out; each kind by the one that never saw it."""
  row: dict[str, list] = collections.defaultdict(list)
  c = config.forensics_bench
  for number, left_out in enumerate(folds(config)):
    kinds = tuple(kind for kind in config.forensics.kinds if kind not in left_out)
    own = dataclasses.replace(
      config,
      seed=streams.seed(config.seed, 'bench', seed, number),
      forensics=dataclasses.replace(
        config.forensics, kinds=kinds, updates=c.updates, eval_every=c.updates
      ),
    )
    name = f'seed{seed}_fold{number}'
    progress_bar.stage(f'{name}: without {", ".join(left_out)}')
    variables = training.train(own, learnt, workdir / name, name)
    maps = network_maps(registry.forensic_net(own.forensics), variables)
    part = dataclasses.replace(
      slices,
      edited={kind: slices.edited[kind] for kind in left_out if kind in slices.edited},
      whole=slices.whole if WHOLE in left_out else [],
    )
    for key, values in measured(maps, part, config.seed).items():
      row[key] += values
  return dict(row)


def measured(maps: Maps, slices: Slices, seed: int) -> dict[str, list]:
  """Figures of every slice, each with its patient and kind, by what they are of."""
  untouched = _scores(maps, slices.untouched)
  thresholds = {rate: _quantile(untouched, 1 - rate) for rate in RATES}

  def alarms(found: Iterable[tuple[str, float]], kind: str) -> list[dict]:
    return [
      {'patient': patient, 'kind': kind, **{f'at_{r}': float(s > thresholds[r]) for r in RATES}}
      for patient, s in found
    ]

  row: dict[str, list] = {'places': [], 'whole': [], 'harmless': [], 'nodules': []}
  for edited in slices.edited.values():
    for each, found in zip(edited, examine_triples(maps, (e.triple for e in edited))):
      if isinstance(found, Examined):
        row['places'].append(_place(each, found, untouched, thresholds))
  row['whole'] = alarms(_scores(maps, slices.whole), WHOLE)
  for name, triples in slices.harmless.items():
    row['harmless'] += alarms(_scores(maps, triples), name)
  row[UNTOUCHED] = alarms(untouched, UNTOUCHED)
  for (_, centre), found in zip(
    slices.nodules, examine_triples(maps, (triple for triple, _ in slices.nodules))
  ):
    if isinstance(found, Examined):
      place = trial.location(found, centre)
      row['nodules'].append({'patient': found.header.patient, 'kind': 'nodule', **place})
  row['series'] = list(_series(maps, slices, seed))
  return row


def _series(maps: Maps, slices: Slices, seed: int) -> Iterator[dict]:
  """Every series with an edit of every kind: whether it is found at 1 %, and how much of it."""
  looks, rng = Looks(), streams.generator(seed, 'bench', 'squares')
  for volume in progress_bar.bar('untouched series', slices.series):
    looks.take(examine(maps, frames_of(volume)), rng)
  if not looks.series:
    return
  threshold = _quantile(looks.series, 1 - RATES[0])
  limit = looks.map_limit(MAP_RATE)
  for kind in progress_bar.bar('edited series', slices.edited):
    for volume in slices.series:
      made = trial.edited_volume(
        volume, KINDS[kind], streams.generator(seed, 'bench', 'series', kind, volume.name)
      )
      if made is None:
        continue
      items = list(gather(examine(maps, frames_of(made[0]))))
      judged = [item for item in items if isinstance(item, Examined)]
      scores = [item.score for item in items if isinstance(item, Evidence) and item.judged]
      if scores:
        found = float(max(scores) > threshold)
        overlap = trial.overlap(judged, made[1], limit)
        yield {'patient': volume.patient, 'kind': kind, 'found': found, **overlap}


def _place(
  each: Edited, found: Examined, untouched: list[tuple[str, float]], thresholds: dict[float, float]
) -> dict:
  width = found.hu.shape[1]
  mirrored = trial.location(found, (each.centre[0], width - 1 - each.centre[1]))
  below = _weighted([(patient, float(score < found.score)) for patient, score in untouched])
  return {
    'patient': each.patient,
    'kind': each.kind,
    **trial.location(found, each.centre),
    'mirrored': mirrored['auroc'],
    'slice_auroc': below,
    **{f'at_{rate}': float(found.score > limit) for rate, limit in thresholds.items()},
  }


def _scores(maps: Maps, triples: Sequence[Triple]) -> list[tuple[str, float]]:
  found = examine_triples(maps, triples)
  return [(e.header.patient, e.score) for e in found if not isinstance(e, Header)]


def _weighted(values: list[tuple[str, float]]) -> float:
  """Mean, every patient weighing alike."""
  return trial.mean_by_patient([v for _, v in values], [patient for patient, _ in values])


def _quantile(scores: list[tuple[str, float]], level: float) -> float:
  """Every patient weighing alike."""
  counts = collections.Counter(patient for patient, _ in scores)
  order = sorted(scores, key=lambda pair: pair[1])
  mass = np.cumsum([1 / counts[patient] for patient, _ in order])
  return order[int(np.searchsorted(mass, level * mass[-1]).clip(0, len(order) - 1))][1]


def joined(rows: Sequence[dict[str, list]]) -> dict[str, list]:
  """Several seeds as one."""
  return {key: [each for row in rows for each in row[key]] for key in rows[0]}


def interval(rows: Sequence[dict], figure: str, least: float = 0.0) -> dict[str, float]:
  """Mean over patients of a figure from `least` to 1, and its interval by Student's t over them."""
  means = np.array(list(_means(rows, figure).values()))
  if not len(means):
    return {'value': float('nan'), 'low': float('nan'), 'high': float('nan')}
  half = float('inf')
  if len(means) > 1:
    spread = means.std(ddof=1) / np.sqrt(len(means))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(means) - 1) * spread)
  value = float(means.mean())
  return {'value': value, 'low': max(least, value - half), 'high': min(1.0, value + half)}


def summary(row: dict[str, list]) -> dict:
  """Of a method: means with intervals; of every kind the means."""
  places = row['places']
  figures = ('auroc', 'pointed', 'chance', 'mirrored', 'slice_auroc', *(f'at_{r}' for r in RATES))
  kinds = sorted({place['kind'] for place in places})
  changes = sorted({each['kind'] for each in row['harmless']})
  first = f'at_{RATES[0]}'
  return {
    'all': {name: interval(places, name) for name in figures},
    'kinds': {
      kind: {name: interval(_of(places, kind), name)['value'] for name in figures} for kind in kinds
    },
    'whole': interval(row['whole'], first),
    'untouched': interval(row[UNTOUCHED], first),
    'harmless': {name: interval(_of(row['harmless'], name), first)['value'] for name in changes},
    'nodules': interval(row['nodules'], 'auroc'),
    'series': {name: interval(row['series'], name) for name in ('found', 'f1', 'iou')},
  }


def _of(rows: Sequence[dict], kind: str) -> list[dict]:
  return [row for row in rows if row['kind'] == kind]


def paired(rows: dict[str, dict]) -> dict:
  """The network less the best statistic by hand, patient by patient: location AUROC."""
  hand = [name for name in rows if name != OURS]
  best = max(hand, key=lambda name: interval(rows[name]['places'], 'auroc')['value'])
  own, other = (_means(rows[name]['places'], 'auroc') for name in (OURS, best))
  differences = [
    {'patient': patient, 'difference': own[patient] - other[patient]}
    for patient in own.keys() & other.keys()
  ]
  return {'best_by_hand': best, **interval(differences, 'difference', -1.0)}


def _means(rows: Sequence[dict], figure: str) -> dict[str, float]:
  """Of each patient."""
  return trial.means_by_patient([r[figure] for r in rows], [r['patient'] for r in rows])


def table(results: dict) -> str:
  """As Markdown."""

  def shown(found: dict) -> str:
    if np.isnan(found['value']):
      return '–'
    return f'{found["value"]:.2f} ({found["low"]:.2f}–{found["high"]:.2f})'

  lines = [
    '| method | location AUROC | lowest kind | pointed | slice AUROC | found at 1 % | at 5 % '
    '| whole slices at 1 % | nodules | mirrored | series at 1 % | F1 | IoU |',
    '|---' * 13 + '|',
  ]
  for name, row in results['rows'].items():
    whole, lowest = row['all'], min(kind['auroc'] for kind in row['kinds'].values())
    lines.append(
      f'| {name} | {shown(whole["auroc"])} | {lowest:.2f} | {shown(whole["pointed"])} '
      f'| {shown(whole["slice_auroc"])} | {shown(whole["at_0.01"])} | {shown(whole["at_0.05"])} '
      f'| {shown(row["whole"])} | {shown(row["nodules"])} | {shown(whole["mirrored"])} '
      + ''.join(f'| {shown(row["series"][key])} ' for key in ('found', 'f1', 'iou'))
      + '|'
    )
  ours = results['rows'][OURS]
  lines += ['', '| kind left out | location AUROC | pointed | slice AUROC | found at 1 % |']
  lines.append('|---' * 5 + '|')
  for kind, row in ours['kinds'].items():
    lines.append(
      f'| {kind} | {row["auroc"]:.2f} | {row["pointed"]:.2f} | {row["slice_auroc"]:.2f} '
      f'| {row["at_0.01"]:.2f} |'
    )
  harmless = ', '.join(f'{name} {share:.2f}' for name, share in ours['harmless'].items())
  lines += ['', f'Harmless changes above the threshold of 1 %: {harmless}.']
  difference = results['paired']
  lines.append(
    f'The network less {difference["best_by_hand"]}, patient by patient: {shown(difference)}.'
  )
  return '\n'.join(lines) + '\n'
