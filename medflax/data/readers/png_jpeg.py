"""PNG and JPEG, by Pillow."""

import io
import os
import pathlib

import numpy as np
import PIL.Image
import PIL.ImageOps

from medflax.data.documents import IMAGE
from medflax.data.transforms.scan import RGB, Scan
from medflax.utils import UserError

# What Pillow itself calls suspicious: a picture this large is a scan of a whole slide or an attack.
MAX_PIXELS = 89_478_485
_DEFLATE = 1100  # no PNG grows more than this (1032 times, RFC 1951, and some slack)
_RAW_MODES = ("I", "I;16", "I;16B", "I;16L")  # one channel of more than 8 bits


def read_image(path: pathlib.Path | io.BytesIO) -> Scan:
  """Decodes a PNG or JPEG, a file or its bytes: uint8 (H, W, 3), or (H, W, 1) where it is grey.

  EXIF rotation is applied, palettes are resolved, CMYK turns into RGB and transparency is
  composited on black. Grey of more than 8 bits stays as it is. Of an animation the first frame is
  read. Densities are those of paper and screens, so no spacing is taken from them.

  Raises:
    UserError: if the file is empty, not an image, truncated, broken or too large to decode.
  """
  size = path.getbuffer().nbytes if isinstance(path, io.BytesIO) else os.path.getsize(path)
  try:
    with PIL.Image.open(path, formats=("PNG", "JPEG")) as image:
      pixels = image.width * image.height
      if pixels > MAX_PIXELS:
        raise PIL.Image.DecompressionBombError
      if image.format == "PNG" and pixels // 8 > size * _DEFLATE:  # of one bit at least
        raise EOFError("truncated")
      upright = PIL.ImageOps.exif_transpose(image)
      upright.load()
  except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
    raise UserError(f"has more than {MAX_PIXELS:,} pixels; export it smaller") from None
  except PIL.UnidentifiedImageError:
    raise UserError("is not a PNG or JPEG image; export it again") from None
  except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, …
    state = "truncated" if "truncated" in str(error) else "broken"
    raise UserError(f"is {state}; copy or export it again") from None
  if upright.mode in _RAW_MODES:
    return Scan(np.asarray(upright)[..., None], IMAGE)
  if upright.has_transparency_data:
    upright = upright.convert("RGBA")
    upright = PIL.Image.alpha_composite(PIL.Image.new("RGBA", upright.size, "black"), upright)
  if upright.mode in ("L", "1"):
    return Scan(np.asarray(upright.convert("L"))[..., None], IMAGE)
  return Scan(np.asarray(upright.convert("RGB")), IMAGE, units=RGB)
