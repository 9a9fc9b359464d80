"""PNG and JPEG, by Pillow, and plain JPEGs by libjpeg-turbo straight into an array."""

import io
import math
import pathlib
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageOps
import simplejpeg
from jaxtyping import UInt8

from medflax.data.documents import IMAGE
from medflax.data.transforms.scan import RGB, Scan
from medflax.utils import UserError

# What Pillow itself calls suspicious: a picture this large is a scan of a whole slide or an attack.
MAX_PIXELS = 89_478_485
_DEFLATE = 1100  # no PNG grows more than this (1032 times, RFC 1951, and some slack)
_ORIENTATION = 0x0112  # EXIF; from 5 on, rows are columns
_RAW_MODES = ("I", "I;16", "I;16B", "I;16L")  # one channel of more than 8 bits
_MARKER, _START, _SCAN, _APP1 = 0xFF, 0xD8, 0xDA, 0xE1  # of JPEG segments, ITU-T T.81, table B.1
# The colour spaces of JPEGs that need nothing but decoding, and what they are decoded to.
_PLAIN = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}


def read_image(path: pathlib.Path | io.BytesIO, smallest: Sequence[int] | None = None) -> Scan:
  """Decodes a PNG or JPEG, a file or its bytes: uint8 (H, W, 3), or (H, W, 1) where it is grey.

  With `smallest`, (H, W), a JPEG may come scaled down, but so that the picture still fills this
  box in one direction: its decoder then leaves out what would be averaged away.

  EXIF rotation is applied, palettes are resolved, CMYK turns into RGB and transparency is
  composited on black. Grey of more than 8 bits stays as it is. Of an animation the first frame is
  read. Densities are those of paper and screens, so no spacing is taken from them.

  Raises:
    UserError: if the file is empty, not an image, truncated, broken or too large to decode.
  """
  content = path.getvalue() if isinstance(path, io.BytesIO) else path.read_bytes()
  if (array := _plain_jpeg(content, smallest)) is not None:
    return Scan(array, IMAGE, units=RGB if array.shape[-1] == 3 else "")
  try:
    with PIL.Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
      pixels = image.width * image.height
      if pixels > MAX_PIXELS:
        raise PIL.Image.DecompressionBombError
      if image.format == "PNG" and pixels // 8 > len(content) * _DEFLATE:  # of one bit at least
        raise EOFError("truncated")
      if smallest:
        _scale_down(image, smallest)
      turned = image.getexif().get(_ORIENTATION, 1) != 1  # else Pillow would make a copy
      upright = PIL.ImageOps.exif_transpose(image) if turned else image
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
  upright = upright if upright.mode == "RGB" else upright.convert("RGB")  # which copies
  return Scan(np.asarray(upright), IMAGE, units=RGB)


def _plain_jpeg(
  content: bytes, smallest: Sequence[int] | None
) -> UInt8[np.ndarray, "h w c"] | None:
  """Decodes a JPEG of one or three channels that stands upright and is whole; None: it is none.

  The decoder scales by eighths.
  """
  if not _is_upright(content):
    return None
  try:
    height, width, space, _ = simplejpeg.decode_jpeg_header(content)
    size = int(height), int(width)
    if math.prod(size) > MAX_PIXELS or space not in _PLAIN:
      return None
    least = _least(size, smallest) if smallest else size
    return simplejpeg.decode_jpeg(content, _PLAIN[space], min_height=least[0], min_width=least[1])
  except ValueError:  # damaged, or nothing that libjpeg-turbo knows
    return None


def _is_upright(content: bytes) -> bool:
  """Whether this is a JPEG without an APP1 segment: EXIF and XMP, which may ask for a rotation."""
  if content[:2] != bytes((_MARKER, _START)):
    return False
  at, end = 2, len(content) - 4
  while at < end and content[at] == _MARKER and content[at + 1] != _APP1:
    if content[at + 1] == _SCAN:
      return True
    at += 2 + (content[at + 2] << 8 | content[at + 3])
  return False


def _least(size: Sequence[int], smallest: Sequence[int]) -> tuple[int, int]:
  """The least (H, W) at which a picture of `size` still fills `smallest` in one direction."""
  scale = min(1.0, smallest[0] / size[0], smallest[1] / size[1])
  return math.ceil(size[0] * scale), math.ceil(size[1] * scale)


def _scale_down(image: PIL.Image.Image, smallest: Sequence[int]) -> None:
  """Asks a JPEG's decoder for the smallest of its sizes at which `smallest` can still be filled."""
  box = smallest if image.getexif().get(_ORIENTATION, 1) < 5 else smallest[::-1]
  height, width = _least((image.height, image.width), box)
  if height < image.height or width < image.width:
    image.draft(None, (width, height))
