"""Draws a contact sheet of the phantoms: looks × findings, volumes, and a binding episode.

python -m medflax.data.phantoms --to sheet.png
"""

import argparse
import io
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from medflax.data.documents import IMAGE, VOLUME, Episode
from medflax.data.phantoms import FINDINGS, NO_FINDING, Phantoms, Scene, render
from medflax.data.phantoms.findings import SIDES, SIZES
from medflax.data.phantoms.looks import palette
from medflax.data.phantoms.scenes import LOOK_NAMES
from medflax.utils import write_atomic

MARGIN, CAPTION, GAP = 88, 34, 2  # pixels left of a row, above a row, between tiles
INK, PAPER = (35, 35, 40), (255, 255, 255)
SLICES = 8


class _Sheet:
  """Rows of square tiles with captions above each and a title at the left."""

  def __init__(self, tile: int, columns: int):
    self.tile, self.columns = tile, columns
    self.rows: list[Image.Image] = []
    self.font = ImageFont.load_default(size=12)

  def add(self, tiles: Sequence[UInt8[np.ndarray, "_ _ _"] | None], title: str, captions=()):
    """Appends a row; a None tile is blank, and so is what the tiles leave of the row."""
    top = CAPTION if captions else 0
    width = MARGIN + self.columns * (self.tile + GAP)
    row = Image.new("RGB", (width, top + self.tile + GAP), PAPER)
    draw = ImageDraw.Draw(row)
    lines = textwrap.fill(title, 12)
    draw.multiline_text((4, top + self.tile // 2), lines, INK, self.font, anchor="lm")
    for i, tile in enumerate(tiles):
      left = MARGIN + i * (self.tile + GAP)
      if tile is not None:
        picture = Image.fromarray(np.broadcast_to(tile, (*tile.shape[:2], 3)))
        row.paste(picture.resize((self.tile, self.tile), Image.Resampling.BOX), (left, top))
      if i < len(captions):
        place = (left + self.tile // 2, top - 4)
        text = textwrap.fill(captions[i], 14)
        draw.multiline_text(place, text, INK, self.font, anchor="md", align="center")
    self.rows.append(row)

  def png(self) -> bytes:
    """All rows as one PNG of few colours, for noise does not compress."""
    heights = [row.height for row in self.rows]
    sheet = Image.new("RGB", (self.rows[0].width, sum(heights)), PAPER)
    for row, top in zip(self.rows, np.cumsum([0, *heights]), strict=False):
      sheet.paste(row, (0, int(top)))
    greys = np.linspace(0, 255, 36).astype(np.uint8)[:, None].repeat(3, axis=1)
    colours = Image.new("P", (1, 1))
    colours.putpalette(np.concatenate([greys, palette()[::9]]).tobytes())
    sheet = sheet.quantize(palette=colours, dither=Image.Dither.NONE)
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _words(episode: Episode) -> tuple[list[np.ndarray], list[str]]:
  """An episode's images, support first, and their captions."""
  samples = [*episode.support, episode.query]
  captions = [sample.answer for sample in episode.support]
  captions.append(f"{episode.query.question} {episode.query.answer}")
  return [sample.media[0].array for sample in samples], captions


def contact_sheet(pixels: int, tile: int, seed: int) -> bytes:
  """The sheet as PNG; images are drawn at `pixels` and shown at `tile` pixels."""
  names = [NO_FINDING, *FINDINGS]
  sheet = _Sheet(tile, len(names))
  rng = np.random.default_rng(seed)
  for row, look in enumerate(LOOK_NAMES[IMAGE]):
    scenes = [
      Scene(look, name, SIDES[(row + i) % 2], SIZES[(row + i // 2) % 2])
      for i, name in enumerate(names)
    ]
    images = render(scenes, (1, pixels, pixels), rng)[:, 0]
    sheet.add(list(images), look, names if row == 0 else ())

  shown = zip(LOOK_NAMES[VOLUME], ("abscess", "haemorrhage", "cyst", "foreign body"), strict=True)
  scenes = [Scene(look, name, SIDES[i % 2], "large") for i, (look, name) in enumerate(shown)]
  slices = [list(v) for v in render(scenes, (SLICES, pixels, pixels), rng)]
  across = len(names) // SLICES
  for i in range(0, len(scenes), across):
    strips, captions = [], []
    for scene, strip in zip(scenes[i : i + across], slices[i : i + across], strict=True):
      strips += strip
      captions += [f"{scene.look}: {scene.finding}", *[""] * (SLICES - 1)]
    sheet.add(strips, "volumes, slice by slice", captions)

  group = Phantoms((pixels, pixels), seed=seed).episodes("binding", "test", 5)
  tiles, captions = [], []
  for member in (0, 2):  # the same images, the words swapped
    images, words = _words(group[member])
    tiles += [*images, None]
    captions += [*words, ""]
  sheet.add(tiles, "binding: five shots, then the query; words swapped", captions)
  return sheet.png()


def main() -> None:
  """Writes the contact sheet to `--to`."""
  parser = argparse.ArgumentParser(description="Draws a contact sheet of the phantoms.")
  parser.add_argument("--to", required=True, help="the PNG to write")
  parser.add_argument("--pixels", type=int, default=192, help="size the images are drawn at")
  parser.add_argument("--tile", type=int, default=96, help="size they are shown at")
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  content = contact_sheet(arguments.pixels, arguments.tile, arguments.seed)
  write_atomic(arguments.to, content)
  print(f"{arguments.to}: {len(content) // 1024} KiB")


if __name__ == "__main__":
  main()
