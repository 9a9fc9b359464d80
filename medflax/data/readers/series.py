"""DICOM series: the files of one volume among those of a folder, and the volume they make.

Series are told apart by elements that identify them; these are compared, never kept or shown.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import pydicom

from medflax.data.documents import VOLUME
from medflax.data.readers import dicom_file
from medflax.data.readers.dicom import (
  ELEMENTS,
  meaning_of,
  pixel_spacing,
  read_dicom,
  rescaled,
)
from medflax.data.readers.geometry import hang, patient_axes, plausible, stack_slices
from medflax.data.transforms.scan import MAX_VALUES, Scan
from medflax.utils import UserError

T = TypeVar("T")

# What slices of one volume share exactly, besides their orientation and spacing.
_SHARED = ("SeriesInstanceUID", "Rows", "Columns", "PhotometricInterpretation")
# What tells acquisitions at the same positions apart, tried in this order.
_REPEATS = (
  "TemporalPositionIdentifier", "EchoNumbers", "DiffusionBValue", "TriggerTime", "ImageType",
  "AcquisitionNumber", "AcquisitionTime",
)  # fmt: skip
_IDENTITY = "SOPInstanceUID"
_READ = (*ELEMENTS, *_SHARED, *_REPEATS, _IDENTITY)


def find_series(folder: pathlib.Path) -> tuple[list[tuple[pathlib.Path, ...]], int]:
  """The series of a folder (not of those in it), and how many of its files are no DICOM images.

  Files of one series number that differ in orientation, size or spacing are several, as are
  acquisitions that repeat its positions: times, echoes, b-values. A file of several frames, or
  one that does not tell its position, is one by itself. Copies of a slice are left out.

  Returns:
    Each series as its files; series by the name of their first file, files by position.
  """
  headers: dict[pathlib.Path, pydicom.Dataset] = {}
  others = 0
  for path in sorted(folder.iterdir()):
    if not path.is_file():
      continue
    try:
      headers[path] = _read_header(path)
    except UserError:
      others += 1
  groups: list[list[pathlib.Path]] = []
  seen: set[Any] = set()
  for path, header in headers.items():
    identity = header.get(_IDENTITY)
    if identity is not None and identity in seen:
      continue
    seen.add(identity)
    home = next((g for g in groups if _one_volume(headers[g[0]], header)), None)
    groups.append([path]) if home is None else home.append(path)
  found = [part for group in groups for part in _acquisitions(group, headers)]
  ordered = [tuple(_by_position(group, headers)) for group in found]
  return sorted(ordered, key=min), others


def _position(header: pydicom.Dataset) -> list[float] | None:
  """The slice's position; None for frames, and where it or the orientation is not told."""
  values = header.get("ImagePositionPatient")
  placed = values and header.get("ImageOrientationPatient")
  return None if not placed or int(header.get("NumberOfFrames") or 1) > 1 else list(values)


def _one_volume(one: pydicom.Dataset, other: pydicom.Dataset) -> bool:
  if _position(one) is None or _position(other) is None:
    return False
  return all(one.get(key) == other.get(key) for key in _SHARED) and all(
    np.allclose(_numbers(one, key), _numbers(other, key), atol=1e-3)
    for key in ("ImageOrientationPatient", "PixelSpacing")
  )


def _numbers(header: pydicom.Dataset, key: str) -> np.ndarray:
  return np.array(header.get(key) or 0.0, np.float64)


def _acquisitions(
  group: list[pathlib.Path], headers: dict[pathlib.Path, pydicom.Dataset]
) -> list[list[pathlib.Path]]:
  """Splits files that repeat positions by the first element, or all, that tells them apart."""

  def places(files: Iterable[pathlib.Path]) -> list[tuple[float, ...]]:
    return [tuple(np.round(_position(headers[file]) or [0.0], 3)) for file in files]

  def split(keys: Sequence[str]) -> list[list[pathlib.Path]]:
    parts: dict[str, list[pathlib.Path]] = {}
    for file in group:
      parts.setdefault(str([headers[file].get(key) for key in keys]), []).append(file)
    return list(parts.values())

  for keys in ((), *((key,) for key in _REPEATS), _REPEATS):
    parts = split(keys)
    if all(len(set(places(part))) == len(part) for part in parts):
      return parts
  return [group]


def _by_position(
  group: list[pathlib.Path], headers: dict[pathlib.Path, pydicom.Dataset]
) -> list[pathlib.Path]:
  if len(group) == 1:
    return group
  orientation = np.array(headers[group[0]].ImageOrientationPatient, float)
  normal = np.cross(orientation[:3], orientation[3:])
  return sorted(group, key=lambda file: float(np.array(_position(headers[file])) @ normal))


def read_series(files: Sequence[pathlib.Path]) -> Scan:
  """Stacks the files of one series, in whatever order, into a volume hung as `Scan` says.

  Missing slices, uneven distances and a tilted gantry are told in `notes`; the slices that there
  are follow each other. One file is read by itself.

  Raises:
    UserError: naming the slice, if it cannot be read or does not belong to the others.
  """
  if len(files) == 1:
    return read_dicom(files[0])
  headers = [_named(file, _read_header) for file in files]
  first = headers[0]
  for file, header in zip(files, headers, strict=True):
    if not _one_volume(first, header):
      raise UserError(f"has {file.name}, which is no slice of the same volume; read it by itself")
  with dicom_file.told_in_one_line():
    orientation = np.array(first.ImageOrientationPatient, np.float64)
    positions = np.array([_position(header) for header in headers], np.float64)
    stack = stack_slices(orientation, positions)
    spacing, _ = pixel_spacing(first)
    if len(files) * np.prod(dicom_file.frame_shape(first), dtype=float) > MAX_VALUES:
      raise UserError(f"has more than {MAX_VALUES:,} voxels; crop or resample it")
  if spacing is None or not plausible([stack.step]):
    raise UserError("does not tell its spacing; export it again")
  slices = [_named(files[index], _read_slice) for index in stack.order]
  with dicom_file.told_in_one_line():
    axes = patient_axes(orientation, (stack.step, *spacing))
    array, spacings = hang(np.stack(slices), axes)
    middle = dicom_file.load(files[stack.order[len(files) // 2]], ELEMENTS, pixels=False)
    return Scan(array, VOLUME, spacings, notes=stack.notes, **meaning_of(middle))


def _read_header(file: pathlib.Path) -> pydicom.Dataset:
  return dicom_file.load(file, _READ, pixels=False)


def _read_slice(file: pathlib.Path) -> np.ndarray:
  dataset = dicom_file.load(file, ELEMENTS)
  pixels, colour = dicom_file.decode(dataset)
  if colour:
    raise UserError("is in colour; read it by itself")
  with dicom_file.told_in_one_line():
    return rescaled(pixels, dataset)[0]


def _named(file: pathlib.Path, read: Callable[[pathlib.Path], T]) -> T:
  try:
    return read(file)
  except UserError as error:
    raise UserError(f"has a slice, {file.name}, that {error}") from None


def read_folder(folder: pathlib.Path) -> Scan:
  """The one DICOM series of a folder; what else lies there is counted in the notes.

  Raises:
    UserError: if there is none, or several, or it cannot be read.
  """
  found, others = find_series(folder)
  if not found:
    raise UserError("holds no DICOM images; name the folder that has the slices")
  if len(found) > 1:
    sizes = ", ".join(str(len(files)) for files in found[:8])
    raise UserError(f"holds {len(found)} series ({sizes} files); give each a folder of its own")
  scan = read_series(found[0])
  if not others:
    return scan
  return dataclasses.replace(scan, notes=(*scan.notes, f"{others} files are no DICOM images"))
