"""Images that need no questions: what a classifier of images is to tell from phantoms and bars.

Pictures that are neither radiology nor a chart, and charts of lines and of points.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from medflax.data.phantoms.questions import pick

_WORDS = ("the", "patient", "was", "seen", "on", "Monday", "and", "is", "to", "return", "soon")


def _waves(rng: np.random.Generator, size: tuple[int, int]) -> Float[np.ndarray, "H W 3"]:
  """Smooth colours, as of a photograph out of focus: waves, the long ones stronger."""
  y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in size), indexing="ij")
  image = np.zeros((*size, 3))
  for _ in range(12):
    fy, fx = rng.normal(size=2) * 3
    wave = np.sin(2 * np.pi * (fy * y + fx * x + rng.random()))
    image += wave[..., None] * rng.normal(size=3) / (1 + np.hypot(fy, fx))
  return 0.5 + 0.25 * image + 0.3 * (rng.random(3) - 0.5)


def _patches(rng: np.random.Generator, size: tuple[int, int]) -> Float[np.ndarray, "H W 3"]:
  """Things of one colour each, before a ground of another."""
  image = Image.new("RGB", size[::-1], _colour(rng))
  draw = ImageDraw.Draw(image)
  for _ in range(int(rng.integers(3, 12))):
    (x0, x1), (y0, y1) = (np.sort(rng.random(2)) * n for n in size[::-1])
    pick(rng, (draw.rectangle, draw.ellipse))([x0, y0, x1, y1], _colour(rng))
  return np.asarray(image) / 255 + rng.normal(0, 0.03, (*size, 3))


def _page(rng: np.random.Generator, size: tuple[int, int]) -> Float[np.ndarray, "H W 3"]:
  """Lines of text on paper."""
  image = Image.new("RGB", size[::-1], tuple(rng.integers(225, 256, 3).tolist()))
  draw = ImageDraw.Draw(image)
  points = int(rng.integers(8, 15))
  font = ImageFont.load_default(size=points)
  for y in range(2, size[0], round(1.4 * points)):
    words = rng.permutation(_WORDS).tolist()
    draw.text((3, y), " ".join(words[: int(rng.integers(1, len(words)))]), (30, 30, 30), font)
  return np.asarray(image) / 255


def _colour(rng: np.random.Generator) -> tuple[int, ...]:
  return tuple(rng.integers(0, 256, 3).tolist())


_MAKERS: tuple[Callable[..., Float[np.ndarray, "H W 3"]], ...] = (_waves, _patches, _page)


def render_curves(rng: np.random.Generator, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
  """Draws lines or points between axes, at (H, W) pixels."""
  height, width = size
  image = Image.new("RGB", (width, height), (int(rng.integers(240, 256)),) * 3)
  draw = ImageDraw.Draw(image)
  font = ImageFont.load_default(size=max(8, round(0.06 * min(size))))
  left, bottom = round(0.15 * width), round(0.87 * height)
  draw.line([(left, 4), (left, bottom), (width - 4, bottom)], (40, 40, 40))
  for i in range(5):
    share = i / 4
    y, x = bottom - share * (bottom - 8), left + share * (width - left - 8)
    draw.text((left - 2, y), str(10 * i), (40, 40, 40), font, anchor="rm")
    draw.text((x, bottom + 2), str(i), (40, 40, 40), font, anchor="mt")
  for _ in range(int(rng.integers(1, 4))):
    count, colour = int(rng.integers(4, 30)), _colour(rng)
    xs = left + np.sort(rng.random(count)) * (width - left - 6)
    ys = 6 + (bottom - 10) * np.clip(0.5 + 0.2 * rng.normal(size=count), 0, 1)
    points = list(zip(xs.tolist(), ys.tolist(), strict=True))
    if rng.random() < 0.5:
      draw.line(points, colour, int(rng.integers(1, 4)))
    else:
      radius = rng.uniform(1, 3)
      for x, y in points:
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], colour)
  return np.asarray(image)


def render_other(rng: np.random.Generator, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
  """Draws a picture that is neither radiology nor a chart, at (H, W) pixels."""
  return (np.clip(pick(rng, _MAKERS)(rng, size), 0, 1) * 255).astype(np.uint8)
