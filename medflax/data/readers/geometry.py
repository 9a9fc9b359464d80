"""Where slices lie in the patient, and how a volume of them is hung.

DICOM's patient axes point to the left, to the back and to the head (PS3.3 C.7.6.2.1.1).
"""

from collections.abc import Sequence
from typing import NamedTuple

import nibabel
import numpy as np
from jaxtyping import Float, Int, Num, Shaped

from medflax.utils import UserError

_TILT = 0.5  # degrees between the slices' normal and the way they are stacked, that are told
_UNEVEN = 0.1  # of the usual distance between slices, that is told
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def plausible(spacing: Sequence[float]) -> bool:
  """Whether these may be the sizes of a voxel in mm, rather than damage or a missing value."""
  return all(1e-6 < size < 1e4 for size in spacing)


class Stack(NamedTuple):
  """How parallel slices follow each other.

  Attributes:
    order: indices that sort the slices along their normal.
    step: mm from one slice to the next, along the normal.
    notes: gaps, uneven distances and the gantry's tilt, for a report.
  """

  order: Int[np.ndarray, " n"]
  step: float
  notes: tuple[str, ...]


def normal_of(orientation: Float[np.ndarray, "6"]) -> Float[np.ndarray, "3"]:
  """The unit normal of an ImageOrientationPatient.

  Raises:
    UserError: if that is not two perpendicular unit vectors.
  """
  row, column = orientation[:3], orientation[3:]
  lengths = np.array([row @ row, column @ column, row @ column])
  if not np.allclose(lengths, [1.0, 1.0, 0.0], atol=0.02):
    raise UserError("does not tell a valid orientation; export it again")
  normal = np.cross(row, column)
  return normal / np.linalg.norm(normal)


def stack_slices(orientation: Float[np.ndarray, "6"], positions: Float[np.ndarray, "n 3"]) -> Stack:
  """Sorts parallel slices and looks for what is missing between them.

  Args:
    orientation: ImageOrientationPatient, the directions of a row and of a column.
    positions: ImagePositionPatient of every slice, mm.

  Raises:
    UserError: if the orientation is none, or two slices lie at one place.
  """
  normal = normal_of(orientation)
  if not np.isfinite(positions).all():
    raise UserError("has slices without a valid position; export it again")
  heights = positions @ normal
  order = np.argsort(heights, kind="stable")
  gaps = np.diff(heights[order])
  if not gaps.size:
    return Stack(order, 0.0, ())
  step = float(np.median(gaps))
  if gaps.min() < 1e-3 or gaps.min() < step / 100:
    raise UserError("holds several slices at one position; keep one acquisition of them")
  notes = []
  steps = np.maximum(1, np.rint(gaps / step))
  if missing := int(steps.sum()) - gaps.size:
    notes.append(f"{missing} slices missing, {int((steps > 1).sum())} gaps at {step:.4g} mm")
  elif gaps.max() - gaps.min() > 2 * _UNEVEN * step:
    notes.append(f"slices {gaps.min():.4g} to {gaps.max():.4g} mm apart")
  way = positions[order[-1]] - positions[order[0]]
  tilt = np.degrees(np.arccos(np.clip(way @ normal / np.linalg.norm(way), -1.0, 1.0)))
  if tilt > _TILT:
    notes.append(f"gantry tilt {tilt:.1f}°: slices are shifted against each other")
  return Stack(order, step, tuple(notes))


def patient_axes(
  orientation: Float[np.ndarray, "6"], spacing: tuple[float, float, float]
) -> Float[np.ndarray, "3 3"]:
  """Directions of (slice, row, column), a column each: mm to the right, front and head an index.

  Args:
    orientation: ImageOrientationPatient.
    spacing: mm between slices, rows and columns.
  """
  row, column = orientation[:3], orientation[3:]
  return np.stack([normal_of(orientation), column, row], axis=1) * spacing * _LPS_TO_RAS[:, None]


def hang(
  array: Shaped[np.ndarray, "i j k c"], axes: Num[np.ndarray, "3 3"]
) -> tuple[Shaped[np.ndarray, "d h w c"], tuple[float, float, float]]:
  """Turns a volume so that it lies as `Scan` says; returns it with its spacing in mm.

  `axes` holds mm to the right, front and head, one column for each of the array's first axes. An
  oblique volume takes the closest of the 48 ways; no value is interpolated.
  """
  affine = np.eye(4)
  affine[:3, :3] = axes
  orientation = nibabel.orientations.io_orientation(affine)
  turned = nibabel.orientations.apply_orientation(array, orientation)  # to (R, A, S)
  spacing = np.zeros(3)
  spacing[orientation[:, 0].astype(int)] = np.linalg.norm(axes, axis=0)
  along, across, up = (float(value) for value in spacing)
  return turned.transpose(2, 1, 0, 3)[:, ::-1, ::-1], (up, across, along)
