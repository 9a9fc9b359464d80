"""PNG and JPEG, by Pillow."""

import io
import pathlib

import numpy as np
import PIL.Image
import PIL.ImageOps

from medflax.data.transforms import Pixels, grey_to_rgb, percentile_window, to_uint8
from medflax.utils import UserError

# What Pillow itself calls suspicious: a picture this large is a scan of a whole slide or an attack.
MAX_PIXELS = 89_478_485
_RAW_MODES = ("I", "I;16", "I;16B", "I;16L", "F")  # one channel of more than 8 bits


def read_image(path: pathlib.Path | io.BytesIO) -> Pixels:
  """Decodes a PNG or JPEG, a file or its bytes, to uint8 (H, W, 3).

  EXIF rotation is applied, palettes are resolved, transparency is composited on black and grey
  is repeated to three channels. Grey of more than 8 bits is windowed between its 1st and 99th
  percentile, as few files use the whole 16-bit range. Of an animation the first frame is read.

  Raises:
    UserError: if the file is empty, not an image, truncated, broken or too large to decode.
  """
  try:
    with PIL.Image.open(path, formats=("PNG", "JPEG")) as image:
      if image.width * image.height > MAX_PIXELS:
        raise PIL.Image.DecompressionBombError
      upright = PIL.ImageOps.exif_transpose(image)
  except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
    raise UserError(f"has more than {MAX_PIXELS:,} pixels; export it smaller") from None
  except PIL.UnidentifiedImageError:
    raise UserError("is not a PNG or JPEG image; export it again") from None
  except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, …
    state = "truncated" if "truncated" in str(error) else "broken"
    raise UserError(f"is {state}; copy or export it again") from None
  if upright.mode in _RAW_MODES:
    return Pixels(grey_to_rgb(to_uint8(percentile_window(np.asarray(upright)))))
  if upright.has_transparency_data:
    upright = upright.convert("RGBA")
    upright = PIL.Image.alpha_composite(PIL.Image.new("RGBA", upright.size, "black"), upright)
  return Pixels(np.asarray(upright.convert("RGB")))
