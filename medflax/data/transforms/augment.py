"""Augmentation of where things are: mirroring, where sides do not matter, and affine maps."""

import dataclasses
import functools

import numpy as np
import scipy.ndimage
from jaxtyping import Float

from medflax.data.documents import SIGNAL
from medflax.data.transforms.intensity import to_float
from medflax.data.transforms.scan import Scan
from medflax.data.transforms.sides import mentions_side
from medflax.utils import UserError, pick

_AXES = {"depth": -4, "rows": -3, "columns": -2}


@dataclasses.dataclass(frozen=True)
class Flip:
  """Mirrors an image or volume at random, unless its text speaks of a side or a direction.

  Without a text (None) nothing is known about it, and nothing is mirrored.

  Attributes:
    axes: of "depth", "rows" and "columns", those that may be mirrored.
    probability: of each of them.
  """

  axes: tuple[str, ...] = ("columns",)
  probability: float = 0.5

  def __post_init__(self):
    for axis in self.axes:
      pick(_AXES, axis, "axis to flip")

  def __call__(self, scan: Scan, rng: np.random.Generator, text: str | None) -> Scan:
    axes = [_AXES[name] for name in self.axes]
    if scan.kind == SIGNAL or -min(axes, default=0) > scan.array.ndim:
      raise UserError(f"is one {scan.kind}; it cannot be flipped along {', '.join(self.axes)}")
    drawn = rng.random(len(axes)) < self.probability
    if text is None or mentions_side(text):
      return scan
    chosen = [axis for axis, flip in zip(axes, drawn, strict=True) if flip]
    return dataclasses.replace(scan, array=np.flip(scan.array, tuple(chosen))) if chosen else scan


@dataclasses.dataclass(frozen=True)
class Affine:
  """Rotates, scales and shifts a shown image or volume about its centre, in mm; black around.

  Attributes:
    degrees: largest rotation: within the picture; of a volume, about every axis.
    scale: the most that sizes grow or shrink by, as a share.
    shift: the most that it moves along each axis, as a share of the axis.
  """

  degrees: float = 10.0
  scale: float = 0.1
  shift: float = 0.05

  def __call__(self, scan: Scan, rng: np.random.Generator, text: str | None) -> Scan:
    if scan.kind == SIGNAL:
      raise UserError("is one signal; it has no affine transform")
    shape = np.array(scan.array.shape[:-1])
    rank = len(shape)
    planes = [(i, j) for i in range(rank) for j in range(i + 1, rank)]
    angles = np.radians(rng.uniform(-self.degrees, self.degrees, len(planes)))
    zoom = 1.0 + rng.uniform(-self.scale, self.scale)
    move = rng.uniform(-self.shift, self.shift, rank) * shape
    spacing = np.array(scan.spacing or (1.0,) * rank)
    turns = [_rotation(rank, *plane, angle) for plane, angle in zip(planes, angles, strict=True)]
    rotation = functools.reduce(np.matmul, turns)
    # From an index of the result to one of the source: both are mm from the centre, rotated.
    matrix = (rotation / zoom) * spacing[None, :] / spacing[:, None]
    centre = (shape - 1) / 2
    offset = centre - matrix @ (centre + move)
    values = to_float(scan.array)
    turned = np.empty_like(values)
    for channel in range(values.shape[-1]):
      turned[..., channel] = scipy.ndimage.affine_transform(
        values[..., channel], matrix, offset, order=1, mode="constant"
      )
    return dataclasses.replace(scan, array=turned)


def _rotation(rank: int, i: int, j: int, angle: float) -> Float[np.ndarray, "rank rank"]:
  """The rotation by `angle` in the plane of axes i and j."""
  matrix = np.eye(rank)
  matrix[[i, j, i, j], [i, j, j, i]] = np.cos(angle), np.cos(angle), -np.sin(angle), np.sin(angle)
  return matrix
