"""Images that are neither radiology nor a chart: what a classifier of images is to turn away."""

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


def render_other(rng: np.random.Generator, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
  """Draws one of them at (H, W) pixels."""
  return (np.clip(pick(rng, _MAKERS)(rng, size), 0, 1) * 255).astype(np.uint8)
