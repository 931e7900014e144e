"""Names for patients and their images that only whoever has a workdir's key can link to them.

A hash of a patient's identifier alone can be checked by whoever can guess it; keyed with a secret
(HMAC-SHA256, RFC 2104) it cannot. The key is made once for a workdir, is readable by its owner
only, and goes into no other file.
"""

import hmac
import os
import secrets
import uuid
from pathlib import Path

from pydicom.uid import UID

from ctfake_jax.types import UserError

KEY_FILE = 'pseudonyms.key'
_KEY_BYTES = 32


class Pseudonyms:
  """The same parts give the same name under the same key."""

  def __init__(self, key: bytes):
    self._key = key

  @classmethod
  def of(cls, workdir: Path) -> 'Pseudonyms':
    """With the key of this workdir, which is made where there is none.

    Raises:
      UserError: the key is damaged.
    """
    path = workdir / KEY_FILE
    if not path.exists():
      temporary = workdir / f'.{KEY_FILE}.tmp'
      temporary.unlink(missing_ok=True)
      with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), 'wb') as file:
        file.write(secrets.token_bytes(_KEY_BYTES))
      temporary.replace(path)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
      raise UserError(f'{path} is damaged: restore it, or remove it for pseudonyms of a new key')
    return cls(key)

  def name(self, *parts: str) -> str:
    """12 hexadecimal digits."""
    return self._digest(parts)[:6].hex()

  def uid(self, *parts: str) -> UID:
    """A UID derived from a UUID (PS3.5 B.2)."""
    return UID(f'2.25.{uuid.UUID(bytes=self._digest(parts)[:16], version=4).int}')

  def _digest(self, parts: tuple[str, ...]) -> bytes:
    # Length first: ('ab', 'c') and ('a', 'bc') differ.
    text = b''.join(len(part).to_bytes(4, 'big') + part for part in map(str.encode, parts))
    return hmac.digest(self._key, text, 'sha256')
