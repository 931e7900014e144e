"""The task `predict`: class probabilities for an image or a folder, as CSV and JSON.

Takes PNG, JPEG, TIFF, BMP and DICOM, side by side, decoded as `detect` decodes them; a checkpoint
trained on HU sees DICOM through the window that it was trained with. Every file has its row, in
order; what cannot be read, or has values of another unit than the network was trained on, one with
the reason.
"""

import collections
import csv
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ctfake_jax.config.keys import Config
from ctfake_jax.data.sources import walker
from ctfake_jax.data.sources.sandboxed import Decoded, Limits, decode_all, decode_files
from ctfake_jax.inference import classifier as inference
from ctfake_jax.runtime import batching, progress_bar
from ctfake_jax.types import UserError
from ctfake_jax.workdir import files as workdir_lib

FEW_REASONS = 3  # on the screen; results have all
Row = tuple[Decoded, str, np.ndarray | None]  # an image, why it has no answer, its probabilities


def run(config: Config, workdir: Path) -> dict:
  """Writes predictions.csv (path, prediction, one column a class, ...) and results.json."""
  workdir_lib.check_same_command(workdir, config)
  trained = inference.load(Path(config.checkpoint))
  skipped: collections.Counter = collections.Counter()
  images = decode_all(
    Path(config.input),
    trained.view,
    Limits.from_config(config),
    functools.partial(decode_files, re_encode=False),
    skipped=skipped,
  )
  counts: collections.Counter = collections.Counter()
  remarks: collections.Counter = collections.Counter()
  left_out: list[dict] = []
  unfinished = workdir / '.predictions.csv.tmp'  # whole or not at all
  with open(unfinished, 'w', newline='', encoding='utf-8') as handle:
    writer = csv.writer(handle)
    writer.writerow(_header(trained.class_names))
    for decoded, reason, probabilities in progress_bar.bar('predicting', _rows(images, trained)):
      writer.writerow(_cells(decoded, reason, probabilities, trained.class_names))
      if probabilities is None:
        left_out.append({'path': decoded.path, 'reason': reason})
      else:
        counts[trained.class_names[int(np.argmax(probabilities))]] += 1
        remarks.update(decoded.remarks)
  walker.say(skipped)
  first = '; '.join(f'{row["path"]}: {row["reason"]}' for row in left_out[:FEW_REASONS])
  if not counts:
    unfinished.unlink()
    raise UserError(f'config.input = {config.input}: no readable image; {first or "it is empty"}')
  if left_out:
    more = '; ...' if len(left_out) > FEW_REASONS else ''
    print(f'unreadable images, left out: {len(left_out)} ({first}{more})')
  for remark, count in remarks.items():
    print(f'{count} images: {remark}')
  workdir_lib.record_command(workdir, config)
  unfinished.replace(workdir / 'predictions.csv')
  results = {
    'images': counts.total(),
    'unit': trained.unit,
    'class_names': list(trained.class_names),
    'per_class': {name: counts[name] for name in trained.class_names},
    'unreadable': left_out,
    'skipped': dict(skipped),
  }
  workdir_lib.write_results(workdir, results)
  return results


def _rows(images: Iterator[Decoded], trained: inference.Trained) -> Iterator[Row]:
  """Every image in order; those that can be judged go through the network in batches."""
  while batch := list(itertools.islice(images, batching.BATCH_SIZE)):
    reasons = [d.reason or '; '.join(d.wrong_unit(trained.unit, 'network')) for d in batch]
    taken = [d.image for d, reason in zip(batch, reasons) if d.image is not None and not reason]
    found = iter(trained.predict(np.stack(taken)[..., None])) if taken else iter(())
    for decoded, reason in zip(batch, reasons):
      yield decoded, reason, None if reason else next(found)


def _header(class_names: tuple[str, ...]) -> list[str]:
  safe = workdir_lib.csv_safe
  return ['path', 'prediction', *(safe(f'p_{name}') for name in class_names), 'error', 'remarks']


def _cells(
  decoded: Decoded, reason: str, probabilities: np.ndarray | None, class_names: tuple[str, ...]
) -> list[str]:
  safe = workdir_lib.csv_safe
  if probabilities is None:
    return [safe(decoded.path), '', *([''] * len(class_names)), safe(reason), '']
  chosen = class_names[int(np.argmax(probabilities))]
  values = [f'{p:.6f}' for p in probabilities]
  return [safe(decoded.path), safe(chosen), *values, '', safe('; '.join(decoded.remarks))]
