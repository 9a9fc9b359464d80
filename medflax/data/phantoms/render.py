"""Scenes to pixels: one pure function, vectorised over the images of a batch.

An ellipsoid's soft mask is `clip(quadratic form of the pixel's coordinates)`. So the masks of all
organs of all images, each with its own rotation, shift, zoom and shear, are one product of a
coefficient table with the fixed basis (1, x, y, z, x², y², z², xy), and the anatomy is a second
product of these masks with the organs' tones. An image is a volume of one slice at z = 0.
Findings and textures are drawn per kind, on the images that have them.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from medflax.data.documents import IMAGE, VOLUME
from medflax.data.phantoms import findings, looks
from medflax.data.phantoms.findings import FINDINGS, NO_FINDING, RADII
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
_WITHIN = np.array([look.within for look in LOOKS.values()])
_SITES = np.array([look.site for look in LOOKS.values()], np.float32)
_PLACES = np.array([(*f.place, *f.spread, f.extent, f.tilt) for f in FINDINGS.values()], np.float32)
_PATTERNS = [finding.pattern for finding in FINDINGS.values()]
_COARSE, _FINE, _DEEP = 7, 16, 5  # control points of the noise fields: slow, fast, through slices
_NUM_KNOBS = 24


@functools.lru_cache(maxsize=16)
def _axes(size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Pixel centres over [-1, 1]: z [D, 1, 1], y [H, 1], x [W]; float32."""
  z, y, x = (((2 * np.arange(n) + 1) / n - 1).astype(np.float32) for n in size)
  return z[:, None, None], y[:, None], x


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


def _organ_coefficients(organs, pose, pixel) -> Float[np.ndarray, "8 n k"]:
  """The quadratic forms whose clipped values are the organs' masks.

  With q = M p + t the pose of an image and l = R (q - c) / radii an organ's own frame, the form
  is 1/2 + g (1 - |l|²), where g makes its slope at the border that of an edge of the wanted width.
  """
  (m00, m01, m10, m11, tx, ty, mz, tz) = pose
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


def _signed_fields(scenes, finding, shape, where, fine, knobs, sites, pixel):
  """The finding of each image as a signed field [n, p], zero where there is none."""
  drawn = np.zeros(fine.shape, np.float32)
  sides = np.array([-1.0 if s.side == "left" else 1.0 for s in scenes], np.float32)
  bounds = np.array([RADII[s.size] for s in scenes], np.float32)
  counts = np.array([s.count for s in scenes])
  offsets = np.array([findings.ARRANGEMENTS[s.count] for s in scenes], np.float32)
  place = _PLACES[np.maximum(finding, 0)]
  radius = bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) * knobs[:, 0]
  many = np.where(counts > 1, 0.15, 1)[:, None]
  jitter = (2 * knobs[:, 1:3] - 1) * place[:, 2:4] * many
  centre = (place[:, :2] + jitter) * sites[:, :2]
  # Slot s of image i: its centre in anatomy coordinates, [n, slots].
  cx = sides[:, None] * (centre[:, :1] + offsets[:, :, 0])
  cy = centre[:, 1:] + offsets[:, :, 1] + sites[:, 2:]
  cz = 0.5 * knobs[:, 3:4] - 0.25
  scale = 1 / (radius * place[:, 4])
  angle = (2 * knobs[:, 4] - 1) * place[:, 5]
  cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
  for kind in set(finding.tolist()) - {-1}:
    rows = np.flatnonzero(finding == kind)
    x, y = where[rows, 0], where[rows, 1]
    dx, dy = x - cx[rows, :1], y - cy[rows, :1]
    for slot in range(1, counts[rows].max()):
      ox, oy = x - cx[rows, slot, None], y - cy[rows, slot, None]
      nearer = ox * ox + oy * oy < dx * dx + dy * dy
      dx, dy = np.where(nearer, ox, dx), np.where(nearer, oy, dy)
    dx *= sides[rows, None]
    c, s = cos[rows, None], sin[rows, None]
    u, v = c * dx + s * dy, c * dy - s * dx
    if shape[0] > 1:
      # Through the slices a finding swells and shrinks as an ellipsoid does.
      w = (where[rows, 2] - cz[rows]) * np.minimum(0.8 * scale[rows, None], 2.2)
      swell = 1 / np.sqrt(np.maximum(1 - w * w, 1e-4))
      u, v = u * swell, v * swell
    noise = fine[rows]
    u, v = u + 0.05 * noise, v - 0.05 * noise  # nothing in a body has a ruled edge
    pattern = _PATTERNS[kind]
    drawn[rows] = pattern(u, v, np.maximum(pixel * scale[rows, None], 0.1), noise)
    drawn[rows] *= 0.93 + 0.07 * noise
  return drawn


def render(
  scenes: Sequence[Scene], size: tuple[int, int, int], rng: np.random.Generator
) -> UInt8[np.ndarray, "n D H W c"]:
  """Draws one image or volume for every scene.

  `size` is (D, H, W); images have D = 1. An image's nuisances (pose, tones, noise, where
  exactly the finding lies) take one row of uniform random numbers, whatever the scene: equal
  generators and look give images that differ by the finding alone.

  Returns:
    uint8 [n, 1, H, W, 3] for images, [n, D, H, W, 1] for volumes (D > 1).
  """
  depth, height, width = size
  n, p, deep = len(scenes), depth * height * width, _DEEP if depth > 1 else 1
  parts = np.cumsum(
    [
      _NUM_KNOBS,
      4 * _NUM_ORGANS,
      2 * deep * _COARSE**2,
      deep * _FINE**2,
      3 * looks.CELLS**2,
      p,
    ]
  )
  randoms = rng.random((n, parts[-1]), np.float32)
  knobs, organ_jitter, coarse, fine, cells, white = np.split(randoms, parts[:-1], axis=1)
  coarse = _field(coarse.reshape(n, 2, deep, _COARSE, _COARSE), size)
  fine = _field(fine.reshape(n, deep, _FINE, _FINE), size)
  look = np.array([_LOOK_IDS[s.look] for s in scenes])
  finding = np.array([_FINDING_IDS.get(s.finding, -1) for s in scenes])
  (z, y, x), pixel = _axes(size), 2.4 / min(height, width)

  signed = 2 * knobs[:, :8] - 1
  zoom, angle, stretch, shear = (signed[:, i] * r for i, r in enumerate((0.07, 0.12, 0.05, 0.05)))
  cos, sin = np.cos(angle) * (1 + zoom), np.sin(angle) * (1 + zoom)
  pose = (
    cos * (1 + stretch), shear - sin, sin, cos * (1 - stretch),
    0.04 * signed[:, 4], 0.05 * signed[:, 5], 0.9 + 0.1 * signed[:, 6], 0.15 * signed[:, 7],
  )  # fmt: skip
  m00, m01, m10, m11, tx, ty, mz, tz = (v[:, None, None, None] for v in pose)
  where = np.empty((n, 3, *size), np.float32)
  where[:, 0] = m00 * x + (m01 * y + tx)
  where[:, 1] = m10 * x + (m11 * y + ty)
  where[:, 2] = mz * z + tz
  where = where.reshape(n, 3, p)

  organs = _ORGANS[look]
  wiggle = 2 * organ_jitter.reshape(n, _NUM_ORGANS, 4) - 1
  organs[:, :, 0] *= 1 + 0.1 * wiggle[:, :, 0]
  organs[:, :, 1:3] += 0.015 * wiggle[:, :, 1:3]
  organs[:, :, 4:6] *= 1 + 0.05 * wiggle[:, :, 3:]
  form = _organ_coefficients(organs, [v[:, None] for v in pose], pixel)
  masks = _evaluate(form, size).reshape(n, _NUM_ORGANS, p)
  bend = 0.5 * organs[:, :, 9:] / np.maximum(organs[:, :, 8:9], pixel)
  for parity in (0, 1):
    masks[:, parity::2] += bend[:, parity::2] * coarse[:, parity, None]
  np.clip(masks, 0, 1, out=masks)
  image = np.einsum("nk,nkp->np", organs[:, :, 0], masks)

  sites = _SITES[look]
  field = _signed_fields(scenes, finding, size, where, fine, knobs[:, 8:16], sites, pixel)
  strength = 0.85 + 0.15 * knobs[:, 16:17]
  field *= strength * masks[np.arange(n), _WITHIN[look]]
  image += np.where(field > 0, field * (0.97 - image), field * (image - 0.02))

  for kind in set(look.tolist()):
    rows = np.flatnonzero(look == kind)
    canvas = looks.Canvas(
      size, where[rows], masks[rows], coarse[rows], fine[rows], white[rows],
      knobs[rows, 20:24], cells[rows].reshape(len(rows), 3, -1),
    )  # fmt: skip
    image[rows] = LOOKS[scenes[rows[0]].look].texture(image[rows], canvas)
  gain = 0.9 + 0.18 * knobs[:, 17:18]
  image = image * gain + _GRAIN[look] * (white - 0.5) * 2
  grey = (np.clip(image, 0, 1) * 255).astype(np.uint8).reshape(n, depth, height, width, 1)
  if depth > 1:
    return grey
  pixels = np.empty((n, depth, height, width, 3), np.uint8)
  pixels[:] = grey
  stained = np.flatnonzero(look == _LOOK_IDS["microscopy"])
  pixels[stained] = looks.palette()[grey[stained, ..., 0]]
  return pixels
