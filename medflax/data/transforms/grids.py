"""The grid of a scan: resampling, cropping, choosing slices and planes, fitting a fixed size.

Everything is host-side NumPy and Pillow. To fit a size, images keep their proportions: they are
scaled until one side fits and centred on black. Volumes do the same within a slice, while the
slices are resampled to fill the depth on their own, because how many slices a study has says more
about the scanner's protocol than about the patient.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
from jaxtyping import Float, Shaped

from medflax.data.documents import SIGNAL, VOLUME
from medflax.data.transforms.scan import MAX_VALUES, Scan
from medflax.utils import UserError, pick


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


def scaled(array: Shaped[np.ndarray, "..."], size: Sequence[int]) -> Shaped[np.ndarray, "..."]:
  """Resamples every axis but the last to `size`, linearly; bytes stay bytes, else float32.

  An array of that size already is given back, not copied.
  """
  if array.shape[:-1] == tuple(size):
    return array if array.dtype == np.uint8 else array.astype(np.float32, copy=False)
  if array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] in (1, 3):  # much faster
    image = PIL.Image.fromarray(array if array.shape[-1] == 3 else array[..., 0])
    resized = image.resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(*size, array.shape[-1])
  values = array.astype(np.float32)
  for axis in reversed(range(len(size))):
    if values.shape[axis] != size[axis]:
      weights = resample_weights(values.shape[axis], size[axis])
      values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
  return np.rint(values).astype(np.uint8) if array.dtype == np.uint8 else values


def _fitted(height: int, width: int, aspect: float, bounds: Sequence[int]) -> tuple[int, int]:
  """The largest (height, width) within `bounds` that keeps the picture's proportions."""
  scale = min(bounds[0] / (height * aspect), bounds[1] / width)
  return (
    min(bounds[0], max(1, round(height * aspect * scale))),
    min(bounds[1], max(1, round(width * scale))),
  )


def _centred(array: Shaped[np.ndarray, "..."], size: Sequence[int]) -> Shaped[np.ndarray, "..."]:
  """Pads every axis of `array` but the last with zeros to `size`; none is no copy."""
  if array.shape[:-1] == tuple(size):
    return array
  padded = np.zeros((*size, array.shape[-1]), array.dtype)
  starts = [(target - have) // 2 for target, have in zip(size, array.shape, strict=False)]
  padded[tuple(slice(s, s + n) for s, n in zip(starts, array.shape, strict=False))] = array
  return padded


def fit(scan: Scan, size: Sequence[int]) -> Scan:
  """Scales a shown image or volume to fit `size` with its proportions kept, centred on black.

  `size` is (H, W) of an image, (D, H, W) of a volume; the slices of a volume fill its depth.
  """
  _same_rank(scan, size)
  if scan.array.shape[:-1] == tuple(size) and scan.aspect == 1:
    return scan
  height, width = scan.array.shape[-3:-1]
  inner = (*size[:-2], *_fitted(height, width, scan.aspect, size[-2:]))
  resized = scan.resized(scaled(scan.array, inner))
  return dataclasses.replace(resized, array=_centred(resized.array, size))


def _same_rank(scan: Scan, values: Sequence) -> None:
  if len(values) != scan.array.ndim - 1:
    raise UserError(f"is a {scan.kind}: give {scan.array.ndim - 1} numbers, not {tuple(values)}")


@dataclasses.dataclass(frozen=True)
class Channel:
  """Keeps one channel, such as one volume of a NIfTI file of four dimensions."""

  index: int = 0

  def __call__(self, scan: Scan, rng: np.random.Generator, text: str | None) -> Scan:
    count = scan.array.shape[-1]
    if not 0 <= self.index < count:
      raise UserError(f"has {count} channels, none of index {self.index}")
    units = scan.units.split(",")
    return dataclasses.replace(
      scan,
      array=scan.array[..., self.index : self.index + 1],
      channels=scan.channels[self.index : self.index + 1],
      units=units[self.index if len(units) > 1 else 0],
    )


# The array of a volume (inferior to superior, anterior to posterior, right to left) and its
# spacing's order, seen in another plane as it is hung: head or front up, patient's right or front
# at the left of the picture.
_PLANES: dict[str, tuple[tuple[int, int, int], Callable[[np.ndarray], np.ndarray]]] = {
  "axial": ((0, 1, 2), lambda array: array),
  "coronal": ((1, 0, 2), lambda array: array.transpose(1, 0, 2, 3)[:, ::-1]),
  "sagittal": ((2, 0, 1), lambda array: array.transpose(2, 0, 1, 3)[:, ::-1]),
}


@dataclasses.dataclass(frozen=True)
class Plane:
  """Cuts a volume in another plane: depth runs front to back, or from the right to the left."""

  name: str = "axial"

  def __post_init__(self):
    pick(_PLANES, self.name, "plane")

  def __call__(self, scan: Scan, rng: np.random.Generator, text: str | None) -> Scan:
    if scan.kind != VOLUME:
      raise UserError(f"is one {scan.kind}; only a volume can be cut in another plane")
    order, view = _PLANES[self.name]
    spacing = tuple(scan.spacing[axis] for axis in order) if scan.spacing else None
    return dataclasses.replace(scan, array=view(scan.array), spacing=spacing)


@dataclasses.dataclass(frozen=True)
class Resample:
  """Resamples to a spacing: mm of every axis, seconds for a signal.

  Raises:
    UserError: if the scan's own spacing is unknown, or the result would be huge.
  """

  spacing: tuple[float, ...]

  def __post_init__(self):
    if not self.spacing or min(self.spacing) <= 0:
      raise UserError(f"spacing {tuple(self.spacing)} is not positive; give mm, one an axis")

  def __call__(self, scan: Scan, rng: np.random.Generator, text: str | None) -> Scan:
    _same_rank(scan, self.spacing)
    if scan.spacing is None:
      raise UserError("does not tell its spacing; it cannot be resampled to mm")
    size = [
      max(1, round(n * have / want))
      for n, have, want in zip(scan.array.shape, scan.spacing, self.spacing, strict=False)
    ]
    if math.prod(size) * scan.array.shape[-1] > MAX_VALUES:
      raise UserError(f"would have more than {MAX_VALUES:,} values at {tuple(self.spacing)}")
    return scan.resized(scaled(scan.array, size))


@dataclasses.dataclass(frozen=True)
class Crop:
  """Cuts a box out; an axis shorter than the box, or of size 0, is kept whole.

  Attributes:
    size: of the box, an axis each.
    at: "centre", or "random": anywhere inside.
  """

  size: tuple[int, ...]
  at: str = "centre"

  def __post_init__(self):
    pick(_OFFSETS, self.at, "place of a crop")

  def __call__(self, scan: Scan, rng: np.random.Generator, text: str | None) -> Scan:
    _same_rank(scan, self.size)
    shape = scan.array.shape[:-1]
    slack = [n - min(n, want or n) for n, want in zip(shape, self.size, strict=True)]
    starts = _OFFSETS[self.at](np.array(slack), rng)
    box = [slice(start, start + n - s) for start, n, s in zip(starts, shape, slack, strict=True)]
    return dataclasses.replace(scan, array=scan.array[tuple(box)])


_OFFSETS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
  "centre": lambda slack, rng: slack // 2,
  "random": lambda slack, rng: rng.integers(0, slack + 1),
}


@dataclasses.dataclass(frozen=True)
class Slices:
  """Keeps `count` slices of a volume, evenly over its depth.

  Attributes:
    count: how many; a volume of fewer shows some twice.
    at: of every one of `count` equal parts, the slice at its "centre" or a "random" one.
  """

  count: int
  at: str = "centre"

  def __post_init__(self):
    pick(_INSIDE, self.at, "place of a slice")
    if self.count < 1:
      raise UserError(f"{self.count} slices are none; give at least 1")

  def __call__(self, scan: Scan, rng: np.random.Generator, text: str | None) -> Scan:
    if scan.kind != VOLUME:
      raise UserError(f"is one {scan.kind}; only a volume has slices")
    depth = len(scan.array)
    inside = _INSIDE[self.at](self.count, rng)
    index = ((np.arange(self.count) + inside) * depth / self.count).astype(int)
    return scan.resized(scan.array[np.minimum(index, depth - 1)])


_INSIDE: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
  "centre": lambda count, rng: np.full(count, 0.5),
  "random": lambda count, rng: rng.random(count),
}


@dataclasses.dataclass(frozen=True)
class Resize:
  """Scales a shown scan to a size.

  Attributes:
    size: (H, W) of an image, (D, H, W) of a volume, (T,) of a signal.
    keep: keeps the proportions of a picture, and of slices, by padding with black.
  """

  size: tuple[int, ...]
  keep: bool = True

  def __call__(self, scan: Scan, rng: np.random.Generator, text: str | None) -> Scan:
    _same_rank(scan, self.size)
    if self.keep and scan.kind != SIGNAL:
      return fit(scan, self.size)
    return scan.resized(scaled(scan.array, self.size))
