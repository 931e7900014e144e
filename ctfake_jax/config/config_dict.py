"""The configuration while it may still change, as `configs/` and the command line have it."""

import ml_collections
from ml_collections import config_dict

from ctfake_jax.config.keys import Config
from ctfake_jax.config.tree import KEYS, from_leaves, leaves, nested
from ctfake_jax.config.validation import check_values


def defaults() -> ml_collections.ConfigDict:
  """Every key with its default."""
  values = {
    key: config_dict.placeholder(row.kind) if row.default is None else row.default
    for key, row in KEYS.items()
  }
  return ml_collections.ConfigDict(nested(values))


def resolve(config: ml_collections.ConfigDict) -> Config:
  """The frozen form, which everything below a task reads.

  Raises:
    UserError: a key is unknown or missing, or its type or range is wrong.
  """
  values = dict(leaves(config.to_dict()))
  check_values(values)
  return from_leaves(values)
