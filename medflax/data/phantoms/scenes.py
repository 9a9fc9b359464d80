"""Scenes to pixels: one pure function, vectorised over the images of a batch.

The soft mask of an ellipsoid is a clipped quadratic form of the pixel's coordinates. So a table of
coefficients on (1, x, y, z, x², y², z², xy) holds all organs of all images, each with its own
rotation, shift, zoom and shear; evaluating it gives the masks, and their product with the organs'
tones the anatomy. An image is a volume of one slice at z = 0. Findings and textures are drawn per
kind, on the images that have them.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from medflax.data.documents import IMAGE, VOLUME
from medflax.data.phantoms import looks
from medflax.data.phantoms.findings import (
  ARRANGEMENTS,
  FINDINGS,
  MAX_COUNT,
  NO_FINDING,
  RADII,
  SIDES,
)
from medflax.data.phantoms.looks import LOOKS


class Scene(NamedTuple):
  """What an image shows; everything else about it is nuisance, drawn by `render`."""

  look: str
  finding: str = NO_FINDING
  side: str = "left"
  size: str = "small"
  count: int = 1


LOOK_NAMES = {
  IMAGE: tuple(LOOKS),
  VOLUME: tuple(name for name, look in LOOKS.items() if look.planes),
}
_LOOK_IDS = {name: i for i, name in enumerate(LOOKS)}
_FINDING_IDS = {name: i for i, name in enumerate(FINDINGS)}
_NUM_ORGANS = max(len(look.organs) for look in LOOKS.values())
_ORGANS = np.zeros((len(LOOKS), _NUM_ORGANS, 10), np.float32)
_ORGANS[:, :, 4:7] = 1  # radii of the absent
for _i, _look in enumerate(LOOKS.values()):
  _ORGANS[_i, : len(_look.organs)] = _look.organs
_GRAIN = np.array([look.grain for look in LOOKS.values()], np.float32)[:, None]
_STAINED = np.array([look.stained for look in LOOKS.values()])
_WITHIN = np.array([look.within for look in LOOKS.values()])
_SITES = np.array([look.site for look in LOOKS.values()], np.float32)
_PLACES = np.array([(*f.place, *f.spread, f.extent, f.tilt) for f in FINDINGS.values()], np.float32)
_TEXTURES = [look.texture for look in LOOKS.values()]
_PATTERNS = [finding.pattern for finding in FINDINGS.values()]
_COARSE, _FINE, _DEEP = 7, 16, 5  # control points of the noise fields: slow, fast, through slices


class _Nuisance(NamedTuple):
  """What varies though the scene does not; [0, 1) but for the smooth fields."""

  pose: Float[np.ndarray, "n 8"]
  placement: Float[np.ndarray, "n 5"]
  tones: Float[np.ndarray, "n 2"]
  look: Float[np.ndarray, "n 4"]
  organs: Float[np.ndarray, "n k 4"]
  cells: Float[np.ndarray, "n 3 c"]
  coarse: Float[np.ndarray, "n 2 p"]
  fine: Float[np.ndarray, "n p"]
  white: Float[np.ndarray, "n p"]


class _Pose(NamedTuple):
  """Image to anatomy coordinates: (x', y') = M (x, y) + t, z' = mz z + tz; each [n]."""

  m00: Float[np.ndarray, "..."]
  m01: Float[np.ndarray, "..."]
  m10: Float[np.ndarray, "..."]
  m11: Float[np.ndarray, "..."]
  tx: Float[np.ndarray, "..."]
  ty: Float[np.ndarray, "..."]
  mz: Float[np.ndarray, "..."]
  tz: Float[np.ndarray, "..."]


@functools.lru_cache(maxsize=16)
def _axes(size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Pixel centres over [-1, 1]: z [D, 1, 1], y [H, 1], x [W]; float32."""
  z, y, x = (((2 * np.arange(n) + 1) / n - 1).astype(np.float32) for n in size)
  return z[:, None, None], y[:, None], x


def _pixel(size: tuple[int, int, int]) -> float:
  """The width of an antialiased edge: a little over a pixel."""
  return 2.4 / min(size[1:])


@functools.lru_cache(maxsize=64)
def _spline(length: int, points: int) -> Float[np.ndarray, "n g"]:
  """Uniform cubic B-spline weights of `points` control values at `length` pixel centres."""
  if points == 1:
    return np.ones((length, 1), np.float32)
  place = (np.arange(length) + 0.5) / length * (points - 3)
  distance = np.abs(place[:, None] + 1 - np.arange(points))
  near = 2 / 3 - distance**2 + distance**3 / 2
  far = np.maximum(2 - distance, 0) ** 3 / 6
  return np.where(distance < 1, near, far).astype(np.float32)


def _field(lattice: Float[np.ndarray, "... d g h"], size: tuple[int, int, int]):
  """Smooth noise in about [-1, 1] from uniform control values; [..., D * H * W]."""
  *lead, deep, points, _ = lattice.shape
  depth, height, width = size
  planes = lattice.reshape(-1, deep, points * points) * 5 - 2.5
  if deep > 1:
    planes = _spline(depth, deep) @ planes * 1.3
  planes = planes.reshape(-1, depth, points, points)
  return (_spline(height, points) @ planes @ _spline(width, points).T).reshape(*lead, -1)


def _nuisance(rng: np.random.Generator, n: int, size: tuple[int, int, int]) -> _Nuisance:
  """One row of uniform numbers an image, so none depends on how many images follow it."""
  deep = _DEEP if size[0] > 1 else 1
  shapes = (
    (8,), (5,), (2,), (4,), (_NUM_ORGANS, 4), (3, looks.CELLS**2),
    (2, deep, _COARSE, _COARSE), (deep, _FINE, _FINE), (math.prod(size),),
  )  # fmt: skip
  ends = np.cumsum([math.prod(shape) for shape in shapes])
  rows = np.split(rng.random((n, ends[-1]), np.float32), ends[:-1], axis=1)
  pose, placement, tones, look, organs, cells, coarse, fine, white = (
    row.reshape(n, *shape) for row, shape in zip(rows, shapes, strict=True)
  )
  coarse, fine = _field(coarse, size), _field(fine, size)
  return _Nuisance(pose, placement, tones, look, organs, cells, coarse, fine, white)


def _draw_pose(knobs: Float[np.ndarray, "n 8"]) -> _Pose:
  limits = np.array([0.07, 0.12, 0.05, 0.05, 0.04, 0.05, 0.1, 0.15], np.float32)
  zoom, angle, stretch, shear, tx, ty, deeper, tz = ((2 * knobs - 1) * limits).T
  cos, sin = np.cos(angle) * (1 + zoom), np.sin(angle) * (1 + zoom)
  return _Pose(cos * (1 + stretch), shear - sin, sin, cos * (1 - stretch), tx, ty, 0.9 + deeper, tz)


def _coordinates(pose: _Pose, size: tuple[int, int, int]) -> Float[np.ndarray, "n 3 p"]:
  """Every pixel's place in the anatomy."""
  z, y, x = _axes(size)
  m00, m01, m10, m11, tx, ty, mz, tz = (v[:, None, None, None] for v in pose)
  where = np.empty((len(tx), 3, *size), np.float32)
  where[:, 0] = m00 * x + (m01 * y + tx)
  where[:, 1] = m10 * x + (m11 * y + ty)
  where[:, 2] = mz * z + tz
  return where.reshape(len(tx), 3, -1)


def _organ_forms(
  organs: Float[np.ndarray, "n k 10"], pose: _Pose, pixel: float
) -> Float[np.ndarray, "8 n k"]:
  """The quadratic forms whose clipped values are the organs' masks.

  With l = R (M p + t - c) / radii an organ's own frame, the form is 1/2 + g (1 - |l|²), where g
  makes its slope at the border that of an edge of the wanted width.
  """
  m00, m01, m10, m11, tx, ty, mz, tz = (v[:, None] for v in pose)
  _, cx, cy, cz, a, b, c, tilt, edge, _ = np.moveaxis(organs, -1, 0)
  cos, sin = np.cos(tilt), np.sin(tilt)
  dx, dy = tx - cx, ty - cy
  x1, x2, x0 = (cos * m00 + sin * m10) / a, (cos * m01 + sin * m11) / a, (cos * dx + sin * dy) / a
  y1, y2, y0 = (cos * m10 - sin * m00) / b, (cos * m11 - sin * m01) / b, (cos * dy - sin * dx) / b
  z1, z0 = mz / c, (tz - cz) / c
  g = np.minimum(a, b) / (2 * np.maximum(edge, pixel))
  form = (
    0.5 / g + 1 - x0 * x0 - y0 * y0 - z0 * z0,
    -2 * (x0 * x1 + y0 * y1), -2 * (x0 * x2 + y0 * y2), -2 * z0 * z1,
    -(x1 * x1 + y1 * y1), -(x2 * x2 + y2 * y2), -z1 * z1, -2 * (x1 * x2 + y1 * y2),
  )  # fmt: skip
  return np.stack(form) * g


def _evaluate(form: Float[np.ndarray, "8 n k"], size) -> Float[np.ndarray, "n k D H W"]:
  """Quadratic forms at every pixel: row by row a product with (1, x, x²).

  Many small products rather than one large one, which BLAS would spread over threads, and
  threads that wait for a busy core cost more than the product.
  """
  z, y, x = _axes(size)
  one, fx, fy, fz, fxx, fyy, fzz, fxy = form[..., None, None]
  z, y = z[..., 0], y[:, 0]
  rows = np.empty((*form.shape[1:], *size[:2], 3), np.float32)
  rows[..., 0] = one + y * (fy + fyy * y) + z * (fz + fzz * z)
  rows[..., 1] = fx + fxy * y
  rows[..., 2] = fxx
  return rows @ np.stack([np.ones_like(x), x, x * x])


def _anatomy(
  look: Int[np.ndarray, "n"], pose: _Pose, nuisance: _Nuisance, size: tuple[int, int, int]
) -> tuple[Float[np.ndarray, "n k p"], Float[np.ndarray, "n p"]]:
  """The organs' masks, their borders bent by slow noise, and the sum of their tones."""
  pixel = _pixel(size)
  organs = _ORGANS[look]
  wiggle = 2 * nuisance.organs - 1
  organs[:, :, 0] *= 1 + 0.1 * wiggle[:, :, 0]
  organs[:, :, 1:3] += 0.015 * wiggle[:, :, 1:3]
  organs[:, :, 4:6] *= 1 + 0.03 * wiggle[:, :, 3:]
  masks = _evaluate(_organ_forms(organs, pose, pixel), size).reshape(len(look), _NUM_ORGANS, -1)
  bend = 0.5 * organs[:, :, 9:] / np.maximum(organs[:, :, 8:9], pixel)
  for parity in (0, 1):  # neighbours in the table, such as two lungs, bend differently
    masks[:, parity::2] += bend[:, parity::2] * nuisance.coarse[:, parity, None]
  np.clip(masks, 0, 1, out=masks)
  return masks, np.einsum("nk,nkp->np", organs[:, :, 0], masks)


def _centres(
  scenes: Sequence[Scene], place: Float[np.ndarray, "n 6"], sites, knobs: Float[np.ndarray, "n 5"]
) -> tuple[Float[np.ndarray, "n s"], Float[np.ndarray, "n s"]]:
  """Where the findings of each image lie: x and y, repeated where fewer than MAX_COUNT."""
  offsets = np.array([(ARRANGEMENTS[s.count] * MAX_COUNT)[:MAX_COUNT] for s in scenes], np.float32)
  freedom = np.array([0.15 if s.count > 1 else 1.0 for s in scenes], np.float32)[:, None]
  centre = (place[:, :2] + (2 * knobs[:, 1:3] - 1) * place[:, 2:4] * freedom) * sites[:, :2]
  return (
    _signs(scenes) * (centre[:, :1] + offsets[:, :, 0]),
    centre[:, 1:] + offsets[:, :, 1] + sites[:, 2:],
  )


def _signs(scenes: Sequence[Scene]) -> Float[np.ndarray, "n 1"]:
  return np.array([[-1.0] if s.side == SIDES[0] else [1.0] for s in scenes], np.float32)


def _signed_fields(
  scenes: Sequence[Scene],
  look: Int[np.ndarray, "n"],
  where: Float[np.ndarray, "n 3 p"],
  nuisance: _Nuisance,
  size: tuple[int, int, int],
) -> Float[np.ndarray, "n p"]:
  """The finding of each image as a signed field, zero where there is none."""
  finding = np.array([_FINDING_IDS.get(s.finding, -1) for s in scenes])
  knobs, place = nuisance.placement, _PLACES[finding]
  counts = np.array([s.count for s in scenes])
  low, high = np.array([RADII[s.size] for s in scenes], np.float32).T
  scale = 1 / ((low + (high - low) * knobs[:, 0]) * place[:, 4])[:, None]
  angle = (2 * knobs[:, 4:] - 1) * place[:, 5:]
  cos, sin, side = np.cos(angle) * scale, np.sin(angle) * scale, _signs(scenes)
  cx, cy = _centres(scenes, place, _SITES[look], knobs)
  cz = 0.5 * knobs[:, 3:4] - 0.25
  drawn = np.zeros(nuisance.fine.shape, np.float32)
  for kind in set(finding.tolist()) - {-1}:
    rows = np.flatnonzero(finding == kind)
    x, y, z = where[rows].swapaxes(0, 1)
    dx, dy = x - cx[rows, :1], y - cy[rows, :1]
    for slot in range(1, counts[rows].max()):
      ox, oy = x - cx[rows, slot, None], y - cy[rows, slot, None]
      nearer = ox * ox + oy * oy < dx * dx + dy * dy
      dx, dy = np.where(nearer, ox, dx), np.where(nearer, oy, dy)
    dx *= side[rows]
    u, v = cos[rows] * dx + sin[rows] * dy, cos[rows] * dy - sin[rows] * dx
    if size[0] > 1:
      # Through the slices a finding swells and shrinks, as a superellipsoid of degree 4.
      w = 1.7 * (z - cz[rows])
      swell = np.maximum(1 - w * w * w * w, 1e-6) ** -0.25
      u, v = u * swell, v * swell
    noise = nuisance.fine[rows]
    u, v = u + 0.05 * noise, v - 0.05 * noise  # nothing in a body has a ruled edge
    pattern = _PATTERNS[kind](u, v, np.maximum(_pixel(size) * scale[rows], 0.1), noise)
    drawn[rows] = pattern * (0.93 + 0.07 * noise)
  return drawn


def _textured(image, look, canvas: looks.Canvas) -> Float[np.ndarray, "n p"]:
  """Every look's texture on its own images."""
  for kind in set(look.tolist()):
    rows = np.flatnonzero(look == kind)
    own = looks.Canvas(canvas.size, *(np.take(part, rows, axis=0) for part in canvas[1:]))
    image[rows] = _TEXTURES[kind](image[rows], own)
  return image


def render(
  scenes: Sequence[Scene], size: tuple[int, int, int], rng: np.random.Generator
) -> UInt8[np.ndarray, "n D H W c"]:
  """Draws one image or volume for every scene.

  `size` is (D, H, W); images have D = 1. What a scene leaves open (pose, tones, noise, where
  exactly the finding lies) comes from `rng` alone: the same generator and looks give images that
  differ by their findings only.

  Returns:
    uint8 [n, 1, H, W, 3] for images, [n, D, H, W, 1] for volumes (D > 1).
  """
  look = np.array([_LOOK_IDS[s.look] for s in scenes])
  nuisance = _nuisance(rng, len(scenes), size)
  pose = _draw_pose(nuisance.pose)
  where = _coordinates(pose, size)
  masks, image = _anatomy(look, pose, nuisance, size)
  gain, strength = (nuisance.tones * np.float32([0.18, 0.15]) + np.float32([0.9, 0.85])).T

  field = _signed_fields(scenes, look, where, nuisance, size) * strength[:, None]
  field *= masks[np.arange(len(scenes)), _WITHIN[look]]
  image += np.where(field > 0, field * (0.97 - image), field * (image - 0.02))

  canvas = looks.Canvas(
    size,
    where,
    masks,
    nuisance.coarse,
    nuisance.fine,
    nuisance.white,
    nuisance.look,
    nuisance.cells,
  )
  image = _textured(image, look, canvas) * gain[:, None]
  image += _GRAIN[look] * (2 * nuisance.white - 1)
  grey = (np.clip(image, 0, 1) * 255).astype(np.uint8).reshape(len(scenes), *size, 1)
  if size[0] > 1:
    return grey
  pixels = np.concatenate([grey] * 3, axis=-1)
  stained = np.flatnonzero(_STAINED[look])
  pixels[stained] = np.take(looks.palette(), grey[stained, ..., 0], axis=0)
  return pixels
