"""Pictures of images: grids and single greyscale PNGs. Enters f32[n, h, w, 1] in [-1, 1]."""

from pathlib import Path

import numpy as np
from PIL import Image

from ctfake_jax.data.preprocess import to_uint8

GAP = 2


def save_grid(path: Path, images: np.ndarray, columns: int) -> None:
  """One PNG with the images row by row on black."""
  count, height, width, _ = images.shape
  rows = -(-count // columns)
  sheet = np.zeros((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), np.uint8)
  for i, image in enumerate(to_uint8(images[..., 0])):
    top, left = i // columns * (height + GAP), i % columns * (width + GAP)
    sheet[top : top + height, left : left + width] = image
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(sheet).save(path)
