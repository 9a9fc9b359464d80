"""DePlot: Pix2Struct turns a chart into its table (Liu et al. 2023, Lee et al. 2023)."""

import math
import pathlib
import textwrap
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from medflax.data.phantoms.charts import HEADER
from medflax.experts.imported import greedy, in_batches, open_import
from medflax.metrics.tables import parse_table
from medflax.models.language.encoder_decoder import EncoderDecoder
from medflax.utils import UserError

MAX_PATCHES, MAX_NEW_TOKENS = 2048, 512
FONT_SIZE, PADDING, COLUMNS = 36, 5, 80  # of the header; columns after which it wraps
Picture = UInt8[np.ndarray, "_ _ 3"]


class DePlotExpert:
  """An imported `google/deplot`, or another Pix2Struct that writes tables.

  The header is drawn in Pillow's own font: Arial, the original's, may not be distributed.

  Raises:
    UserError: if the folder is no import of one.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    *,
    header: str = HEADER,
    max_patches: int = MAX_PATCHES,
    max_new_tokens: int = MAX_NEW_TOKENS,
  ):
    """`folder` is one that `medflax.tools.import_weights` wrote; "" for no header."""
    self._read = open_import(folder, "lm")
    section = self._read.section
    if section.get("type") != "encoder_decoder" or not section["places"]:
      raise UserError(f"{folder} is no Pix2Struct; import google/deplot or its like")
    self._model = EncoderDecoder(**{k: x for k, x in section.items() if k != "type"})
    self._header, self._max_patches, self._length = header, max_patches, max_new_tokens
    values = self._read.params["patches"]["project"]["kernel"].shape[0]
    self._patch = math.isqrt(values // 3)
    self._tokens = jax.jit(self._write)

  def __call__(self, images: Sequence[Picture]) -> list[str]:
    """Each chart's table, a row a line, cells between bars."""
    inputs = [
      flat_patches(with_header(image, self._header), self._patch, self._max_patches)
      for image in images
    ]
    read = lambda batch: self._tokens(self._read.params, batch)
    return [as_lines(text) for text in in_batches(read, inputs, self._read.tokenizer)]

  def _write(self, params, patches: Float[Array, "b s p"]) -> Int[Array, "b n"]:
    variables, seen = {"params": params}, patches[..., 0] > 0
    memory = self._model.apply(variables, patches, seen, method="encode")
    first = jnp.full((len(patches), 1), self._read.token("decoder_start", 0))
    decode = lambda *args, **kwargs: self._model.apply(variables, *args, **kwargs, method="decode")
    logits, cache = decode(first, memory, seen, cache_size=self._length + 1)

    def step(token, carry):
      logits, kept = decode(token, memory, seen, cache=carry[0], index=carry[1])
      return logits, (kept, carry[1] + 1)

    end = self._read.token("eos", 1)
    return greedy(step, logits, (cache, jnp.int32(1)), end=end, length=self._length)


def as_lines(text: str) -> str:
  """A linearised table as lines, as the original's demo passes it on."""
  return "\n".join(" | ".join(row) for row in parse_table(text))


def with_header(image: Picture, text: str) -> Picture:
  """The text on white above the image, both as wide as the wider of them."""
  if not text:
    return image
  header = _drawn(text)
  width = max(header.width, image.shape[1])
  whole = lambda picture: picture.resize((width, int(picture.height * width / picture.width)))
  parts = [np.asarray(whole(part)) for part in (header, Image.fromarray(image))]
  return np.concatenate(parts)


def _drawn(text: str) -> Image.Image:
  lines = "\n".join(textwrap.wrap(text, COLUMNS))
  font = ImageFont.load_default(size=FONT_SIZE)
  measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
  _, _, right, bottom = measure.textbbox((0, 0), lines, font)
  image = Image.new(
    "RGB", (math.ceil(right) + 2 * PADDING, math.ceil(bottom) + 2 * PADDING), "white"
  )
  ImageDraw.Draw(image).text((PADDING, PADDING), lines, "black", font)
  return image


def patch_grid(height: int, width: int, patch: int, max_patches: int) -> tuple[int, int]:
  """Rows and columns of patches: as many as there may be at the image's proportions."""
  scale = math.sqrt(max_patches * (patch / height) * (patch / width))
  rows, columns = (math.floor(scale * n / patch) for n in (height, width))
  return min(max(rows, 1), max_patches), min(max(columns, 1), max_patches)


def flat_patches(image: Picture, patch: int, max_patches: int) -> Float[np.ndarray, "s p"]:
  """Pix2Struct's input: each patch behind its row and column, from 1; what is left is zero.

  Pixels are standardised over the whole image, whose deviation counts as 1/√n at least.
  """
  pixels = image.astype(np.float32)
  deviation = max(pixels.std(), 1 / math.sqrt(pixels.size))
  pixels = (pixels - pixels.mean()) / deviation
  height, width, _ = image.shape
  rows, columns = patch_grid(height, width, patch, max_patches)
  size = (columns * patch, rows * patch)
  channels = [
    Image.fromarray(c).resize(size, Image.Resampling.BILINEAR) for c in pixels.transpose(2, 0, 1)
  ]
  grid = np.stack([np.asarray(c) for c in channels], axis=-1)
  grid = grid.reshape(rows, patch, columns, patch, 3).swapaxes(1, 2).reshape(rows * columns, -1)
  place = np.indices((rows, columns)).reshape(2, -1).T + 1
  out = np.zeros((max_patches, 2 + grid.shape[1]), np.float32)
  out[: len(grid)] = np.concatenate([place, grid], axis=1)
  return out
