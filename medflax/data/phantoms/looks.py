"""What a modality looks like: anatomy as a table of soft ellipsoids, then a texture.

A `Look` lists its organs as ellipsoids whose tones add up (a skull is a bright ellipsoid with a
darker one inside it), so that the anatomy of a whole batch, whatever its looks, is two matrix
products (see `scenes.py`). `texture` then adds what ellipsoids cannot say: ribs, gyri, speckle,
nuclei. Anatomy coordinates run over [-1, 1]: x to the right of the image, y down, z through the
slices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

CELLS = 13  # nuclei per axis of a microscopy image


class Canvas(NamedTuple):
  """What a texture may draw with; `m` images of `p` pixels, all float32."""

  size: tuple[int, int, int]  # (D, H, W), p = D * H * W
  where: Float[np.ndarray, "m 3 p"]  # anatomy coordinates x, y, z
  masks: Float[np.ndarray, "m k p"]  # the coverage of each organ
  coarse: Float[np.ndarray, "m 2 p"]  # slow noise, about [-1, 1]
  fine: Float[np.ndarray, "m p"]  # fast noise, about [-1, 1]
  white: Float[np.ndarray, "m p"]  # white noise, [0, 1)
  knobs: Float[np.ndarray, "m 4"]  # free parameters, [0, 1)
  cells: Float[np.ndarray, "m 3 c"]  # per cell of a CELLS x CELLS lattice: x, y, radius, [0, 1)


Texture = Callable[[Float[np.ndarray, "m p"], Canvas], Float[np.ndarray, "m p"]]


@dataclasses.dataclass(frozen=True)
class Look:
  """One appearance of a modality.

  Attributes:
    modality: the answer to "which modality is this?".
    organs: rows (tone, x, y, z, radius x, radius y, radius z, tilt, edge, wobble); `edge` is
      the width of the soft border, `wobble` how much slow noise bends it.
    texture: draws on the anatomy and the finding.
    site: (half distance between the two sides' centres, half height of a side, y of its centre).
    grain: strength of additive noise.
    within: the organ that findings stay inside of.
    planes: whether slices of a volume exist, or only images.
    stained: whether densities become colours.
  """

  modality: str
  organs: tuple[tuple[int | float, ...], ...]
  texture: Texture
  site: tuple[float, float, float]
  grain: float
  within: int = 0
  planes: bool = True
  stained: bool = False


def _ribs(image, canvas):
  """Bone arcs over the lungs, an air-filled trachea being an organ already."""
  x, y = canvas.where[:, 0], canvas.where[:, 1]
  freedom = canvas.knobs[:, :1]
  arcs = np.cos((15 + 3 * freedom) * (y + 0.55 * np.abs(x) - 0.75 * x * x + 0.1 * freedom))
  rib = np.maximum(arcs - 0.45, 0) * (canvas.masks[:, 1] + canvas.masks[:, 2])
  return image + 0.22 * rib + 0.02 * canvas.fine


def _soft_tissue(image, canvas):
  """CT: faint parenchymal texture, nothing in the air around the body."""
  return image + 0.05 * canvas.fine * canvas.masks[:, 1]


def _gyri(image, canvas):
  """MR: dark sulci where fast noise crosses zero near the cortex; a bias field over all."""
  cortex = canvas.masks[:, 2] - canvas.masks[:, 3] - canvas.masks[:, 4]
  sulci = np.maximum(0.3 - np.abs(canvas.fine), 0) * np.maximum(cortex, 0)
  return (image - 0.65 * sulci) * (1 + 0.14 * canvas.coarse[:, 0])


def _fan(image, canvas):
  """Ultrasound: layers along the beam, attenuation, speckle, and the sector's outline."""
  depth, height, width = canvas.size
  x, y = canvas.where[:, 0], canvas.where[:, 1] + 1.75
  radius = np.sqrt(x * x + y * y)
  layers = np.cos(9 * radius + 4 * canvas.coarse[:, 0] + 6 * canvas.knobs[:, :1])
  image = image * (1.04 + 0.1 * layers - 0.14 * canvas.where[:, 1])
  grain = canvas.white.reshape(-1, depth, height, width)
  grain = grain + np.roll(grain, 1, -1) + 0.6 * np.roll(grain, 1, -2) - 1.3
  grain = grain.reshape(image.shape)
  image = image * (1 + min(0.3 + height / 400, 0.65) * grain)  # coarse pixels average speckle
  sharp = height / 3
  inside = np.minimum(0.82 * y - np.abs(x), np.minimum(radius - 0.85, 2.72 - radius))
  return image * np.clip(sharp * inside, 0, 1)


@functools.lru_cache(maxsize=16)
def _lattice(size):
  """For each pixel its cell's number and its place in the cell, [-0.5, 0.5)."""
  depth, height, width = size
  y, x = np.meshgrid(*((np.arange(n) + 0.5) * CELLS / n for n in (height, width)), indexing="ij")
  x = (x + 0.5 * (y.astype(int) % 2)) % CELLS  # every other row is shifted, as in a honeycomb
  number = y.astype(int) * CELLS + x.astype(int)
  flat = [np.tile(a.ravel(), depth) for a in (number, x % 1 - 0.5, y % 1 - 0.5)]
  return flat[0], *(a.astype(np.float32) for a in flat[1:])


def _nuclei(image, canvas):
  """Microscopy: one nucleus a cell where there is tissue, fibres in between."""
  number, x, y = _lattice(canvas.size)
  cell = canvas.cells[:, :, number]
  dx, dy = x - 0.6 * (cell[:, 0] - 0.5), y - 0.6 * (cell[:, 1] - 0.5)
  dx, dy = dx + 0.25 * canvas.coarse[:, 0] * dy, dy + 0.25 * canvas.coarse[:, 1] * dx
  radius = 0.08 + 0.22 * np.sqrt(cell[:, 2])
  sharp = canvas.size[1] / CELLS
  nucleus = np.clip(sharp * (radius - np.sqrt(dx * dx + dy * dy)) + 0.5, 0, 1)
  fibres = 0.08 * np.cos(5 * canvas.coarse[:, 0] + 14 * canvas.where[:, 1])
  tissue = np.clip(5 * image - 0.6, 0, 1)
  return image + tissue * (0.34 * nucleus * (1 - image) + fibres * (1 - nucleus) * (1 - image))


_HEAD = (0.36, 0.48, 0.0)
_BODY = (0.42, 0.5, -0.02)

LOOKS: dict[str, Look] = {
  "chest x-ray": Look(
    "X-ray",
    (
      (0.66, 0, 0.3, 0, 1.05, 1.3, 9, 0, 0.12, 0.02),
      (-0.34, -0.43, -0.08, 0, 0.36, 0.68, 9, 0.08, 0.05, 0.05),
      (-0.34, 0.43, -0.08, 0, 0.36, 0.68, 9, -0.08, 0.05, 0.05),
      (0.16, 0.13, 0.34, 0, 0.3, 0.3, 9, 0.5, 0.07, 0.04),
      (0.14, 0, 0, 0, 0.12, 1.4, 9, 0, 0.08, 0.0),
      (0.2, -0.46, 0.9, 0, 0.5, 0.38, 9, 0.1, 0.04, 0.03),
      (0.2, 0.48, 0.95, 0, 0.48, 0.36, 9, -0.1, 0.04, 0.03),
      (0.13, -0.42, -0.72, 0, 0.38, 0.035, 9, -0.2, 0.03, 0.0),
      (0.13, 0.42, -0.72, 0, 0.38, 0.035, 9, 0.2, 0.03, 0.0),
      (-0.16, 0, -0.75, 0, 0.045, 0.42, 9, 0, 0.03, 0.0),
    ),
    _ribs,
    (0.43, 0.5, -0.08),
    0.05,
    planes=False,
  ),
  "body ct": Look(
    "CT",
    (
      (0.17, 0, 0, 0, 0.94, 0.76, 4, 0, 0.015, 0.02),
      (0.25, 0, -0.01, 0, 0.85, 0.66, 4, 0, 0.02, 0.05),
      (0.5, 0, 0.42, 0, 0.12, 0.11, 9, 0, 0.02, 0.03),
      (-0.5, 0, 0.46, 0, 0.05, 0.045, 9, 0, 0.02, 0.0),
      (0.1, -0.4, -0.08, 0, 0.4, 0.46, 1.3, 0.3, 0.03, 0.1),
      (0.08, 0.52, 0.06, 0.1, 0.24, 0.38, 1.1, -0.3, 0.03, 0.1),
      (0.17, 0.06, 0.22, 0, 0.06, 0.06, 9, 0, 0.02, 0.0),
      (0.4, -0.85, 0.03, 0, 0.025, 0.16, 1.2, 0.1, 0.02, 0.0),
      (0.4, 0.85, 0.03, 0, 0.025, 0.16, 1.2, -0.1, 0.02, 0.0),
      (0.45, 0, 0.93, 0, 0.85, 0.035, 9, 0, 0.02, 0.0),
    ),
    _soft_tissue,
    _BODY,
    0.06,
  ),
  "head ct": Look(
    "CT",
    (
      (0.95, 0, 0, 0, 0.76, 0.92, 1.5, 0, 0.015, 0.0),
      (-0.55, 0, 0, 0, 0.68, 0.84, 1.4, 0, 0.02, 0.01),
      (-0.2, -0.1, -0.16, 0.1, 0.055, 0.2, 0.6, -0.35, 0.03, 0.06),
      (-0.2, 0.1, -0.16, 0.1, 0.055, 0.2, 0.6, 0.35, 0.03, 0.06),
      (-0.2, -0.13, 0.3, 0.1, 0.05, 0.14, 0.5, 0.4, 0.03, 0.06),
      (-0.2, 0.13, 0.3, 0.1, 0.05, 0.14, 0.5, -0.4, 0.03, 0.06),
      (0.14, 0, 0, 0, 0.014, 0.8, 1.4, 0, 0.02, 0.0),
      (0.3, 0, 0.99, 0, 0.7, 0.035, 9, 0, 0.02, 0.0),
    ),
    _soft_tissue,
    _HEAD,
    0.06,
    within=1,
  ),
  "brain mr": Look(
    "MR",
    (
      (0.62, 0, 0, 0, 0.8, 0.96, 1.5, 0, 0.02, 0.0),
      (-0.56, 0, 0, 0, 0.74, 0.9, 1.4, 0, 0.02, 0.01),
      (0.29, 0, 0, 0, 0.68, 0.84, 1.3, 0, 0.02, 0.03),
      (0.13, -0.29, 0, 0, 0.25, 0.6, 1.0, 0.06, 0.04, 0.22),
      (0.13, 0.29, 0, 0, 0.25, 0.6, 1.0, -0.06, 0.04, 0.22),
      (-0.29, -0.1, -0.14, 0.1, 0.055, 0.22, 0.6, -0.35, 0.03, 0.06),
      (-0.29, 0.1, -0.14, 0.1, 0.055, 0.22, 0.6, 0.35, 0.03, 0.06),
      (-0.2, 0, 0, 0, 0.016, 0.82, 1.3, 0, 0.02, 0.05),
      (-0.1, -0.2, 0.06, 0, 0.09, 0.16, 0.5, 0.3, 0.03, 0.05),
      (-0.1, 0.2, 0.06, 0, 0.09, 0.16, 0.5, -0.3, 0.03, 0.05),
    ),
    _gyri,
    _HEAD,
    0.05,
    within=1,
  ),
  "ultrasound": Look(
    "ultrasound",
    (
      (0.38, 0, 0, 0, 4, 4, 9, 0, 0.1, 0.0),
      (0.1, -0.1, 0.1, 0, 0.75, 0.5, 1.2, 0.2, 0.05, 0.1),
      (-0.1, 0.2, -0.5, 0, 1.1, 0.08, 2, 0.1, 0.06, 0.04),
      (0.16, -0.1, -0.66, 0, 1.2, 0.03, 2, -0.05, 0.04, 0.04),
      (0.2, 0, 0.9, 0, 0.9, 0.04, 2, -0.15, 0.06, 0.08),
    ),
    _fan,
    (0.42, 0.5, 0.0),
    0.02,
  ),
  "microscopy": Look(
    "microscopy",
    (
      (0.36, 0, 0, 0, 4, 4, 9, 0, 0.1, 0.0),
      (0.08, -0.5, -0.4, 0, 0.6, 0.5, 9, 0.3, 0.2, 0.3),
      (0.08, 0.5, 0.5, 0, 0.5, 0.6, 9, -0.3, 0.2, 0.3),
      (-0.08, 0.3, -0.6, 0, 0.6, 0.3, 9, 0.6, 0.2, 0.3),
    ),
    _nuclei,
    (0.45, 0.52, 0.0),
    0.04,
    planes=False,
    stained=True,
  ),
}

MODALITIES = tuple(dict.fromkeys(look.modality for look in LOOKS.values()))


@functools.cache
def palette() -> UInt8[np.ndarray, "256 3"]:
  """Stain density to colour in haematoxylin and eosin: glass, pink, purple, blue-black."""
  stops = np.array([0.0, 0.3, 0.6, 1.0]) * 255
  colours = [(250, 246, 249), (232, 164, 198), (152, 84, 160), (48, 22, 92)]
  levels = [np.interp(np.arange(256), stops, channel) for channel in zip(*colours, strict=True)]
  return np.round(np.stack(levels, axis=-1)).astype(np.uint8)
