"""What splits, baselines and audits need of every image, found in one look at each."""

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from PIL import Image

from ctfake_jax.data.preprocess import Preprocess, resize
from ctfake_jax.types import ImageSet, ImagesOnDisk

SMALL_SIDE = 32
DIGEST_BYTES = 32
NAME_DIGITS = 16  # of a digest, where one tells images of a set apart
ROWS_AT_ONCE = 1024  # of a matrix of correlations
# Of a cropped image with the whole one. Between slices of two labels of two public sets, cropped
# alike, none was above 0.965; a crop of 5 % of the side was found in 0.8 to 1.0 of the cases.
CROP_CORRELATION = 0.97
MOST_CROPPED = 4000
CROPS = [
  (x * lost, y * lost, x * lost + SMALL_SIDE - lost, y * lost + SMALL_SIDE - lost)
  for lost in (1, 2, 3)
  for x in (0, 0.5, 1)
  for y in (0, 0.5, 1)
]


@dataclasses.dataclass(frozen=True)
class Fingerprints:
  """Facts of n images.

  Attributes:
    small: unit vectors, 32x32 pixels less their mean; the dot is a correlation.
    digests: SHA-256 of each image's pixels.
  """

  small: Float32[np.ndarray, 'n 1024']
  digests: UInt8[np.ndarray, 'n 32']

  @classmethod
  def of(cls, images: ImageSet) -> 'Fingerprints':
    """Of images in memory by looking at them; those on disk were looked at when listed."""
    if isinstance(images.images, ImagesOnDisk):
      return images.images.fingerprints
    small, digests = zip(*(thumbnail_and_digest(image) for image in images.images))
    return cls(np.stack(small), np.stack(digests))

  def take(self, rows: Int[np.ndarray, ' m'] | Bool[np.ndarray, ' n']) -> 'Fingerprints':
    """The facts of the images at `rows`."""
    return Fingerprints(self.small[rows], self.digests[rows])

  def nearest(
    self, seen: Int[np.ndarray, ' s'], rows: Int[np.ndarray, ' m']
  ) -> tuple[Int[np.ndarray, ' m'], Float32[np.ndarray, ' m']]:
    """For each of `rows` the member of `seen` that correlates best, and that correlation."""
    pool = self.small[seen]
    best, correlation = [], []
    for start in range(0, len(rows), ROWS_AT_ONCE):
      found = self.small[rows[start : start + ROWS_AT_ONCE]] @ pool.T
      best.append(seen[found.argmax(1)])
      correlation.append(found.max(1))
    return np.concatenate(best), np.concatenate(correlation)

  def near_copies(
    self, labels: Int[np.ndarray, ' n'], correlation: float
  ) -> Bool[np.ndarray, ' n']:
    """Images that are another one of another label again, re-encoded or cropped.

    Crops of up to a tenth of the side are compared with whole images above `CROP_CORRELATION`; in
    sets of more than `MOST_CROPPED` images, where that would take minutes, they are not.
    """
    found = self._resembling(self.small, labels, correlation)
    if len(labels) <= MOST_CROPPED:
      for box in CROPS:
        found |= self._resembling(
          _cropped(self.small, box), labels, max(correlation, CROP_CORRELATION)
        )
    return found

  def _resembling(self, small: np.ndarray, labels: np.ndarray, correlation: float) -> np.ndarray:
    found = np.zeros(len(labels), bool)
    for start in range(0, len(small), ROWS_AT_ONCE):
      rows = slice(start, start + ROWS_AT_ONCE)
      other = labels[rows, None] != labels
      near = (small[rows] @ self.small.T > correlation) & other
      found[rows] |= near.any(1)
      found |= near.any(0)
    return found


def _cropped(small: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
  """Unit vectors of the part `box` (left, top, right, bottom) of each of f32[n, 1024]."""
  side, bilinear = (SMALL_SIDE, SMALL_SIDE), Image.Resampling.BILINEAR
  parts = np.stack(
    [
      np.asarray(Image.fromarray(image).resize(side, bilinear, box)).ravel()
      for image in small.reshape(-1, *side)
    ]
  )
  parts = parts - parts.mean(1, keepdims=True)
  return parts / np.linalg.norm(parts, axis=1, keepdims=True).clip(1e-6)


def thumbnail_and_digest(
  image: Float32[np.ndarray, 'h w 1'],
) -> tuple[Float32[np.ndarray, '1024'], UInt8[np.ndarray, '32']]:
  """Small pixels and digest of one image."""
  small = resize(image[..., 0], SMALL_SIDE).ravel()
  small = small - small.mean()
  digest = hashlib.sha256(image.tobytes()).digest()
  return small / max(float(np.linalg.norm(small)), 1e-6), np.frombuffer(digest, np.uint8)


def digests(images: ImageSet) -> list[str]:
  """A name for the pixels of each image, as the model sees them: equal for equal pixels."""
  return [row.tobytes().hex()[:NAME_DIGITS] for row in Fingerprints.of(images).digests]


def fingerprint(images: ImageSet) -> str:
  """SHA-256 over pixels, labels and provenance."""
  digest = hashlib.sha256(np.ascontiguousarray(Fingerprints.of(images).digests).data)
  digest.update(images.labels.tobytes())
  digest.update('\n'.join(record.provenance for record in images.records).encode())
  return digest.hexdigest()


def identity(images: ImageSet, view: Preprocess) -> dict:
  """What a checkpoint's user must know of its data: {class_names, data, unit, spacing_mm}.

  The last is the median spacing of rows and columns as the model sees them, None where unknown.
  """
  seen = [view.seen(record.plane).spacing_mm for record in images.records if record.plane]
  return {
    'class_names': list(images.class_names),
    'data': fingerprint(images),
    'unit': images.unit,
    'spacing_mm': np.median(seen, axis=0).tolist() if seen else None,
  }
