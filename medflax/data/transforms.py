"""From decoded pixels to the fixed sizes a model reads: windowing, resizing, padding.

Everything is host-side NumPy and Pillow. Images keep their proportions: they are scaled until
one side fits and centred on black. Volumes do the same within a slice, while the slices are
resampled to fill the depth on their own, because how many slices a study has says more about
the scanner's protocol than about the patient.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import Float, Num, UInt8

PERCENTILES = (1.0, 99.0)  # robust against metal, padding values and hot pixels
_PERCENTILE_SAMPLES = 1_000_000  # more values than this do not move the two percentiles


class Pixels(NamedTuple):
  """A decoded file at its native size.

  Attributes:
    array: uint8 of shape (H, W, 3) for an image or (D, H, W, 1) for a volume.
    aspect: height of a pixel over its width; 1 where the format does not say.
  """

  array: np.ndarray
  aspect: float = 1.0


def window(values: Num[np.ndarray, "..."], low: float, high: float) -> Float[np.ndarray, "..."]:
  """Maps [low, high] linearly to [0, 1], float32, and clips; all zero where high ≤ low."""
  if not high > low:
    return np.zeros(values.shape, np.float32)
  scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(1.0 / (high - low))
  return np.clip(scaled, 0.0, 1.0, out=scaled)


def percentile_window(values: Num[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """Windows raw intensities between their 1st and 99th percentile, for want of a better window."""
  step = max(1, values.size // _PERCENTILE_SAMPLES)
  low, high = np.percentile(values.reshape(-1)[::step], PERCENTILES)
  return window(values, float(low), float(high))


def to_uint8(values: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
  """[0, 1] to [0, 255], rounded."""
  return np.rint(values * 255.0).astype(np.uint8)


def grey_to_rgb(image: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
  """Repeats the one channel three times."""
  return np.repeat(image[:, :, None], 3, axis=2)


def _fitted(height: int, width: int, aspect: float, bounds: Sequence[int]) -> tuple[int, int]:
  """The largest (height, width) within `bounds` that keeps the picture's proportions."""
  scale = min(bounds[0] / (height * aspect), bounds[1] / width)
  return (
    min(bounds[0], max(1, round(height * aspect * scale))),
    min(bounds[1], max(1, round(width * scale))),
  )


def _centred(array: UInt8[np.ndarray, "..."], size: Sequence[int]) -> UInt8[np.ndarray, "..."]:
  """Pads every axis of `array` but the last with zeros to `size`."""
  before = [(target - have) // 2 for target, have in zip(size, array.shape, strict=False)]
  after = [target - have - b for target, have, b in zip(size, array.shape, before, strict=False)]
  return np.pad(array, [*zip(before, after, strict=True), (0, 0)])


def fit_image(pixels: Pixels, size: Sequence[int]) -> UInt8[np.ndarray, "height width 3"]:
  """Scales an image to fit `size` = (H, W) with its proportions kept, centred on black."""
  have_height, have_width, _ = pixels.array.shape
  height, width = _fitted(have_height, have_width, pixels.aspect, size)
  image = PIL.Image.fromarray(pixels.array)
  resized = np.asarray(image.resize((width, height), PIL.Image.Resampling.BILINEAR))
  return _centred(resized, size)


def fit_volume(pixels: Pixels, size: Sequence[int]) -> UInt8[np.ndarray, "depth height width 1"]:
  """Scales a volume to `size` = (D, H, W): depth filled, slices fitted and centred on black."""
  _, height, width, _ = pixels.array.shape
  inner = (size[0], *_fitted(height, width, pixels.aspect, size[1:]))
  volume = pixels.array.astype(np.float32)
  for axis in (2, 1, 0):
    weights = resample_weights(volume.shape[axis], inner[axis])
    volume = np.moveaxis(np.tensordot(weights, volume, axes=(1, axis)), 0, axis)
  return _centred(np.rint(volume).astype(np.uint8), size)


def resample_weights(length: int, new_length: int) -> Float[np.ndarray, "new_length length"]:
  """Linear resampling of an axis as a matrix; widened when shrinking, so nothing aliases.

  The triangle filter of Pillow's BILINEAR: pixel centres at half-integers, support one input
  pixel when enlarging and one output pixel when shrinking. Rows sum to one.
  """
  scale = length / new_length
  centres = (np.arange(new_length) + 0.5) * scale - 0.5
  distance = np.abs(np.arange(length)[None, :] - centres[:, None])
  weights = np.maximum(0.0, 1.0 - distance / max(scale, 1.0))
  return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
