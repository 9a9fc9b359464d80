"""Pictures that look like scans of one anatomy: alike in outline, different in detail."""

import io

import numpy as np
import PIL.Image


def scan(seed, height=150, width=180):
  """One patient's picture: a bright oval ring, as all have, around structure of its own."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
  radius = np.hypot(y / rng.uniform(0.75, 0.9), x / rng.uniform(0.6, 0.75))
  inside = np.zeros((height, width))
  for _ in range(150):
    cy, cx, size = *rng.uniform(-0.7, 0.7, 2), rng.uniform(0.02, 0.1)
    inside += rng.uniform(-80, 80) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / size**2)
  picture = np.where(radius < 0.9, 110 + inside, 0) + 230 * (np.abs(radius - 0.95) < 0.05)
  return np.clip(picture, 0, 255).astype(np.uint8)


def volume(seed, depth=20):
  """One patient's volume (D, H, W): an ellipsoid of structure in a black box."""
  rng = np.random.default_rng(seed)
  z, y, x = np.mgrid[-1 : 1 : depth * 1j, -1:1:40j, -1:1:44j]
  inside = np.full(z.shape, 110.0)
  for _ in range(80):
    at, size = rng.uniform(-0.7, 0.7, 3), rng.uniform(0.08, 0.25)
    distance = (z - at[0]) ** 2 + (y - at[1]) ** 2 + (x - at[2]) ** 2
    inside += rng.uniform(-90, 90) * np.exp(-distance / size**2)
  noise = rng.normal(0, 90, z.shape)
  shape = sum((axis / rng.uniform(0.6, 0.95)) ** 2 for axis in (z, y, x))
  return np.where(shape < 1, np.clip(inside + noise, 5, 255), 0).astype(np.uint8)


def scaled(picture, share):
  image = PIL.Image.fromarray(picture)
  size = round(image.width * share), round(image.height * share)
  return np.asarray(image.resize(size, PIL.Image.Resampling.BICUBIC))


def jpeg(picture, quality):
  buffer = io.BytesIO()
  PIL.Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
  return np.asarray(PIL.Image.open(buffer))


def brighter(picture, gain, offset):
  return np.clip(picture * gain + offset, 0, 255).astype(np.uint8)


def cropped(picture, top, left, share):
  height, width = picture.shape
  dy, dx = round(height * share), round(width * share)
  return picture[round(top * dy) :, round(left * dx) :][: height - dy, : width - dx]


COPIES = {
  "half": lambda p: scaled(p, 0.5),
  "enlarged": lambda p: scaled(p, 1.6),
  "jpeg": lambda p: jpeg(p, 40),
  "brighter": lambda p: brighter(p, 1.15, 12),
  "darker": lambda p: brighter(p, 0.7, 0),
}
CROPS = {
  "crop": lambda p: cropped(p, 0.5, 0.5, 0.06),
  "corner": lambda p: cropped(p, 0, 1, 0.1),
  "all": lambda p: jpeg(brighter(scaled(cropped(p, 1, 0, 0.06), 0.7), 0.9, 10), 60),
}
