"""The forensic detector at rest: weights as safetensors, what else it knows as JSON, and its card.

`detector.json` holds the SHA-256 of `network.safetensors`; the first digits of its own hash name
the detector. One such folder comes with the package.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import flax.linen as nn
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ctfake_jax.config.keys import ForensicsConfig
from ctfake_jax.detector.bundle import FORENSIC_NETWORK
from ctfake_jax.detector.calibration import Scaling
from ctfake_jax.forensics.calibration import Domain, Untouched
from ctfake_jax.forensics.examine import Maps, network_maps
from ctfake_jax.models import registry
from ctfake_jax.runtime import mesh as mesh_lib
from ctfake_jax.types import UserError
from ctfake_jax.workdir import files as workdir_lib

FACTS, NETWORK = 'detector.json', FORENSIC_NETWORK
FORMAT = 1  # grows where the same files would mean something else
SHIPPED = Path(__file__).parent / 'weights'


@dataclasses.dataclass(frozen=True)
class ForensicDetector:
  """A calibrated network.

  Attributes:
    model, variables: the network.
    slices, series: scores of the calibration, which give a threshold for any rate.
    scaling: from scores of slices to log odds.
    map_limit: log odds above which a map counts.
    domain: what slices it is for.
    false_alarm_rate: that is usual.
    facts: what it was made of, and its figures.
    name: hash of its files.
  """

  model: nn.Module
  variables: dict
  width: int
  slices: Untouched
  series: Untouched
  scaling: Scaling
  map_limit: float
  domain: Domain
  false_alarm_rate: float
  facts: dict
  name: str = ''

  @property
  def maps(self) -> Maps:
    """What it makes of slices."""
    return network_maps(self.model, self.variables)


def save(detector: ForensicDetector, folder: Path) -> None:
  """Writes both files; the card is another's."""
  folder.mkdir(parents=True, exist_ok=True)
  flat = traverse_util.flatten_dict(mesh_lib.to_host(detector.variables), sep='/')
  tensors = save_tensors({name: np.asarray(value, np.float32) for name, value in flat.items()})
  (folder / NETWORK).write_bytes(tensors)
  workdir_lib.write_json(
    folder / FACTS,
    {
      'format': FORMAT,
      'network_sha256': hashlib.sha256(tensors).hexdigest(),
      'width': detector.width,
      'slices': dataclasses.asdict(detector.slices),
      'series': dataclasses.asdict(detector.series),
      'scaling': dataclasses.asdict(detector.scaling),
      'map_limit': detector.map_limit,
      'domain': dataclasses.asdict(detector.domain),
      'false_alarm_rate': detector.false_alarm_rate,
      'facts': detector.facts,
    },
  )


def is_one(folder: Path) -> bool:
  """Whether a folder holds a forensic detector."""
  return (folder / FACTS).is_file() and (folder / NETWORK).is_file()


def load(folder: Path = SHIPPED) -> ForensicDetector:
  """The one that comes with the package, or that of a workdir.

  Raises:
    UserError: a file is missing, damaged, or of another version.
  """
  if not is_one(folder):
    raise UserError(f'{folder} holds no finished forensic detector: name the workdir of such a run')
  raw, tensors = (folder / FACTS).read_bytes(), (folder / NETWORK).read_bytes()
  try:
    content = json.loads(raw)
    if content['format'] != FORMAT:
      raise UserError(f'{folder}: a detector of another version of this package; make it anew')
    if hashlib.sha256(tensors).hexdigest() != content['network_sha256']:
      raise UserError(f'{folder / NETWORK} was altered: restore the detector from a whole copy')
    return _of_content(content, load_tensors(tensors), hashlib.sha256(raw).hexdigest()[:12])
  except UserError:
    raise
  except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
    raise UserError(
      f'{folder}: no whole detector ({type(error).__name__}: {error}); restore it from a copy'
    ) from error


def _of_content(content: dict, tensors: dict, name: str) -> ForensicDetector:
  domain = content['domain']
  detector = ForensicDetector(
    model=registry.forensic_net(ForensicsConfig(width=content['width'])),
    variables=mesh_lib.replicate(traverse_util.unflatten_dict(tensors, sep='/')),
    width=content['width'],
    slices=_untouched(content['slices']),
    series=_untouched(content['series']),
    scaling=Scaling(**content['scaling']),
    map_limit=float(content['map_limit']),
    domain=Domain(
      np.array(domain['centre']), np.array(domain['precision']), float(domain['limit'])
    ),
    false_alarm_rate=float(content['false_alarm_rate']),
    facts=content['facts'],
    name=name,
  )
  scores = (*vars(detector.slices).values(), *vars(detector.series).values())
  numbers = (detector.map_limit, detector.false_alarm_rate, *scores, *tensors.values())
  if not all(np.isfinite(values).all() for values in numbers):
    raise ValueError('a number is not finite')
  return detector


def _untouched(content: dict) -> Untouched:
  return Untouched(np.array(content['patients'], float), np.array(content['phantoms'], float))
