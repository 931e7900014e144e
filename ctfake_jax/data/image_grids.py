"""Pictures of images: grids, and maps laid over them. Images are in [-1, 1]."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32
from PIL import Image

from ctfake_jax.data.preprocess import to_uint8

GAP = 2
LONGEST_TITLE = 24


def save_grid(path: Path, images: Float32[np.ndarray, 'n h w 1'], columns: int) -> None:
  """One PNG with the images row by row on black."""
  count, height, width, _ = images.shape
  rows = -(-count // columns)
  sheet = np.zeros((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), np.uint8)
  for i, image in enumerate(to_uint8(images[..., 0])):
    top, left = i // columns * (height + GAP), i % columns * (width + GAP)
    sheet[top : top + height, left : left + width] = image
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(sheet).save(path)


def save_maps(
  path: Path,
  image: Float32[np.ndarray, 'h w 1'],
  maps: dict[str, Float[np.ndarray, 'h w']],
  title: str,
  mask: Bool[np.ndarray, 'h w'] | None = None,
  inches: float = 2.2,
) -> None:
  """One PNG: the image, then under each map, named; warm is high. Each is so many inches wide.

  A `mask` that is set in places only, not everywhere, is outlined.
  """
  from matplotlib.figure import Figure  # a second to import, and training needs grids alone

  figure = Figure((inches * (1 + len(maps)), inches + 0.4), layout='constrained')
  for axes, (name, shown) in zip(
    figure.subplots(1, 1 + len(maps)), {title: None, **maps}.items(), strict=True
  ):
    axes.imshow(image[..., 0], cmap='gray', vmin=-1, vmax=1)
    if shown is not None:
      axes.imshow(shown, cmap='inferno', alpha=0.55)
    if mask is not None and mask.any() and not mask.all():
      axes.contour(mask, levels=[0.5], colors='cyan', linewidths=1)
    axes.set_title(name[:LONGEST_TITLE], fontsize=9, parse_math=False)
    axes.set_axis_off()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110, bbox_inches='tight')
