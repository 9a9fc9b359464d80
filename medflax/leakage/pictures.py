"""Pictures as small fingerprints: what stays the same when one is scaled, compressed or cropped.

* `digest`: of the decoded pixels; equal for identical pictures alone.
* `hashes`: a perceptual hash, the signs of the lowest frequencies (pHash; Zauner, 2010), here as a
  unit vector, so that the cosine of two is 1 - 2 × the share of bits that differ. It survives
  scaling, recompression, brightness and contrast.
* `alignment`: the correlation of fine structure where one picture is a part of the other. It is
  what tells a crop from another patient's picture of the same anatomy, whose coarse structure,
  and with it the hash, is alike.
"""

import functools
import hashlib

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from medflax.data.documents import IMAGE, VOLUME, Media
from medflax.data.transforms.grids import resample_weights

SIDE = 48  # pixels a side of a fingerprint, whatever the picture's proportions
FREQUENCIES = 12  # kept of each axis; the first of all, the mean brightness, is left out
BITS = FREQUENCIES**2 - 1
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_FINE, _COARSE = 0.5, 1.5  # pixels: the scales between which `alignment` compares structure
_AROUND, _NOISE = 2.0, 2.0  # pixels over which contrast is evened out; grey values that are none
_MARGIN = 7  # pixels of SIDE: a crop that cuts off more than this is not found
# Where a crop may have come from: a part (below 1) of the picture, or more than it shows.
_ZOOMS = [(1.0, 0.0, 0.0)] + [
  (zoom, y, x)
  for zoom in (0.95, 0.9, 1.05, 1.11)
  for y, x in ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1))
]


def digest(media: Media) -> bytes:
  """Of the pixels; a grey picture has that of its three equal channels."""
  array = media.array
  if array.shape[-1] == 3 and (array[..., :1] == array).all():
    array = array[..., :1]
  shape = repr((media.kind, array.shape, array.dtype.str)).encode()
  return hashlib.blake2b(shape + np.ascontiguousarray(array).tobytes(), digest_size=16).digest()


def fingerprint(picture: Shaped[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "SIDE SIDE"]:
  """The picture in grey, small and square, stretched to all of [0, 255]."""
  grey = picture.astype(np.float32)
  grey = grey @ _GREY if grey.shape[-1] == 3 else grey.mean(axis=-1)
  height, width = grey.shape
  small = resample_weights(height, SIDE) @ grey @ resample_weights(width, SIDE).T
  low, high = float(small.min()), float(small.max())
  return np.rint((small - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def views(media: Media) -> list[Shaped[np.ndarray, "_ _ c"]]:
  """An image itself; a volume's mean along each of its axes; none of a signal.

  Volumes lose the black around them, which would be most of what two have in common.
  """
  if media.kind == VOLUME:
    trimmed = _trimmed(media.array)
    return [trimmed.mean(axis=axis, dtype=np.float32) for axis in range(3)]
  return [media.array] if media.kind == IMAGE else []


def _trimmed(volume: Shaped[np.ndarray, "d h w c"]) -> Shaped[np.ndarray, "_ _ _ c"]:
  filled = volume.any(axis=-1)
  for axis in range(3):
    others = tuple(other for other in range(3) if other != axis)
    inside = np.flatnonzero(filled.any(axis=others))
    if len(inside):
      volume = volume.take(range(inside[0], inside[-1] + 1), axis=axis)
      filled = filled.take(range(inside[0], inside[-1] + 1), axis=axis)
  return volume


def hashes(prints: UInt8[np.ndarray, "n s s"]) -> Float[np.ndarray, "n bits"]:
  """Perceptual hashes as unit vectors."""
  return _hashes(prints, *_windows()[0])


def zoomed_hashes(prints: UInt8[np.ndarray, "n s s"]) -> Float[np.ndarray, "zooms n bits"]:
  """Of each picture and of what it would be as a crop, or with more around it."""
  return np.stack([_hashes(prints, rows, columns) for rows, columns in _windows()])


def _hashes(
  prints: UInt8[np.ndarray, "n s s"],
  rows: Float[np.ndarray, "k s"],
  columns: Float[np.ndarray, "k s"],
) -> Float[np.ndarray, "n bits"]:
  spectrum = rows @ prints.astype(np.float32) @ columns.T
  values = spectrum.reshape(len(prints), -1)[:, 1:]
  signs = np.where(values > np.median(values, axis=1, keepdims=True), 1.0, -1.0)
  return (signs / np.sqrt(BITS)).astype(np.float32)


@functools.cache
def _windows() -> list[tuple[np.ndarray, np.ndarray]]:
  """For every zoom, the matrices from rows and columns to frequencies (DCT-II)."""
  centres = np.arange(SIDE) + 0.5
  cosines = np.cos(np.pi * np.outer(np.arange(FREQUENCIES), centres) / SIDE)
  axis = lambda zoom, at: (cosines @ _zoom(zoom, at * (1 - zoom))).astype(np.float32)
  return [(axis(zoom, y), axis(zoom, x)) for zoom, y, x in _ZOOMS]


def _zoom(zoom: float, start: float) -> Float[np.ndarray, "s s"]:
  """Resamples [start, start + zoom] of an axis of length 1; its ends go on beyond it."""
  at = (start + (np.arange(SIDE) + 0.5) / SIDE * zoom) * SIDE - 0.5
  pixels = np.arange(-SIDE, 2 * SIDE)
  weights = np.maximum(0.0, 1.0 - np.abs(at[:, None] - pixels) / max(zoom, 1.0))
  folded = np.zeros((SIDE, SIDE))
  np.add.at(folded.T, np.clip(pixels, 0, SIDE - 1), weights.T)
  return folded / folded.sum(axis=1, keepdims=True)


def alignment(a: UInt8[np.ndarray, "s s"], b: UInt8[np.ndarray, "s s"]) -> float:
  """The best correlation of one fingerprint with a window of the other, in [-1, 1].

  Windows cut off at most `_MARGIN` pixels along both axes alike, or along one of them.
  """
  return max(_best_window(a, b), _best_window(b, a))


def _best_window(whole: UInt8[np.ndarray, "s s"], part: UInt8[np.ndarray, "s s"]) -> float:
  field, best = _structure(whole.astype(np.float32)), -1.0
  for height, width in _window_sizes():
    shrunk = resample_weights(SIDE, height) @ part.astype(np.float32)
    template = _structure(shrunk @ resample_weights(SIDE, width).T).ravel()
    template = template - template.mean()
    windows = np.lib.stride_tricks.sliding_window_view(field, (height, width))
    windows = windows.reshape(-1, height * width)
    squares = np.einsum("ij,ij->i", windows, windows) - windows.sum(axis=1) ** 2 / windows.shape[1]
    norms = np.sqrt(np.maximum(squares, 1e-3)) * max(float(np.linalg.norm(template)), 1e-3)
    best = max(best, float((windows @ template / norms).max()))
  return best


@functools.cache
def _window_sizes() -> list[tuple[int, int]]:
  both = [(SIDE - cut, SIDE - cut) for cut in range(_MARGIN + 1)]
  one = [(SIDE - cut, SIDE) for cut in range(1, _MARGIN + 1, 2)]
  return [*both, *one, *((width, height) for height, width in one)]


def _structure(picture: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
  """What is finer than `_COARSE` and coarser than `_FINE`, of even contrast everywhere.

  Else a skull, which all heads have, outshines the brain.
  """
  height, width = picture.shape
  blurred = lambda x, scale: _blur(height, scale) @ x @ _blur(width, scale).T
  band = blurred(picture, _FINE) - blurred(picture, _COARSE)
  return band / (blurred(np.abs(band), _AROUND) + _NOISE)


@functools.cache
def _blur(length: int, scale: float) -> Float[np.ndarray, "n n"]:
  """A Gaussian along an axis; its rows sum to one."""
  distance = np.subtract.outer(np.arange(length), np.arange(length))
  weights = np.exp(-(distance**2) / (2 * scale**2))
  return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
