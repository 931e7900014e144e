"""What a file tells before its picture is looked at: size, codec, bit depth, compression.

Where such facts differ between real and fake, a detector learns them instead of forgery.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float64
from PIL import Image

from ctfake_jax.data.sources import walker
from ctfake_jax.data.sources.dicom import header as dicom_header

NAMES = ('width', 'height', 'aspect', 'bytes_per_pixel', 'codec', 'bits', 'quantisation')
_CODECS = {'PNG': 1.0, 'JPEG': 2.0, 'TIFF': 3.0, 'BMP': 4.0}
_BITS = {'1': 1, 'L': 8, 'P': 8, 'RGB': 24, 'RGBA': 32, 'I;16': 16, 'I;16B': 16, 'F': 32}

_ANY_SIZE = 2**40  # pixels: the file was within the limit when it was indexed


def of_files(root: Path, paths: list[str]) -> Float64[np.ndarray, 'n 7']:
  """In the order of `NAMES`, of files (`Record.path`) below a root that can be read."""
  return np.array([_of_file(root / path) for path in paths])


def _of_file(path: Path) -> tuple[float, ...]:
  size = path.stat().st_size
  if walker.starts_as_dicom(path):
    with dicom_header.quiet_pydicom():
      header = dicom_header.read(path, _ANY_SIZE, stop_before_pixels=True)
    width, height = int(header.Columns), int(header.Rows)
    # Transfer syntaxes by what follows the last dots: different codecs, different numbers.
    codec = 10.0 + float(header.file_meta.TransferSyntaxUID.split('.')[-1])
    bits, quantisation = float(header.BitsStored), 0.0
  else:
    with Image.open(path) as image:
      width, height = image.size
      codec, bits = _CODECS.get(image.format or '', 0.0), float(_BITS.get(image.mode, 0))
      tables = getattr(image, 'quantization', {})
      quantisation = float(sum(map(sum, tables.values())))
  return (width, height, width / height, size / (width * height), codec, bits, quantisation)
