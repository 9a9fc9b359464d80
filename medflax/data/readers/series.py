"""DICOM series: the files of one volume among those of a folder, and the volume they make.

Series are told apart by elements that identify them; these are compared, never kept or shown.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

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


class _Slice(NamedTuple):
  """What the header of a file says about its place among others.

  `place` holds orientation (6), position (3) and spacing of rows and columns (2) in mm; it is empty
  for several frames, and where one of them is not told.
  """

  file: pathlib.Path
  identity: str
  shared: tuple[str, ...]
  repeats: tuple[str, ...]
  place: Float[np.ndarray, " n"]
  size: int


def _read_header(file: pathlib.Path) -> _Slice:
  header = dicom_file.load(file, _READ, pixels=False)
  with dicom_file.told_in_one_line():
    size = math.prod(dicom_file.frame_shape(header))
    orientation = header.get("ImageOrientationPatient")
    position = header.get("ImagePositionPatient")
    spacing, _ = pixel_spacing(header)
    single = int(header.get("NumberOfFrames") or 1) == 1
    place = np.zeros(0)
    if single and orientation and position and spacing:
      place = np.array([*orientation, *position, *spacing], np.float64)
      if place.shape != (11,) or not np.isfinite(place).all():
        raise UserError("does not tell a valid place in the patient; export it again")
    return _Slice(
      file=file,
      identity=str(header.get(_IDENTITY) or file),
      shared=tuple(str(header.get(key)) for key in _SHARED),
      repeats=tuple(str(header.get(key)) for key in _REPEATS),
      place=place,
      size=size,
    )


class Found(NamedTuple):
  """What a folder holds.

  Attributes:
    series: the files of each along their normal; series by the name of their first file.
    others: how many files are no DICOM images.
    copies: how many files are slices that another file has as well; they are left out.
  """

  series: list[tuple[pathlib.Path, ...]]
  others: int
  copies: int


def find_series(folder: pathlib.Path) -> Found:
  """The series of a folder, not of those in it.

  Files of one series number that differ in orientation, size or spacing are several, as are
  acquisitions that repeat its positions: times, echoes, b-values. A file of several frames, or
  one that does not tell its place, is one by itself.
  """
  slices: dict[str, _Slice] = {}
  others = copies = 0
  for path in sorted(path for path in folder.iterdir() if path.is_file()):
    try:
      header = _read_header(path)
      copies += header.identity in slices
      slices.setdefault(header.identity, header)
    except UserError:
      others += 1
  groups: list[list[_Slice]] = []
  for header in slices.values():
    home = next((group for group in groups if _one_volume(group[0], header)), None)
    groups.append([header]) if home is None else home.append(header)
  found = [tuple(_sorted(part)) for group in groups for part in _acquisitions(group)]
  return Found(sorted(found, key=min), others, copies)


def _one_volume(one: _Slice, other: _Slice) -> bool:
  """Whether two slices are parallel, alike and of one series."""
  if not one.place.size or not other.place.size or one.shared != other.shared:
    return False
  away = np.abs(one.place - other.place)
  return bool(away[:6].max() < 1e-3 and away[9:].max() < 1e-3)


def _acquisitions(group: list[_Slice]) -> list[list[_Slice]]:
  """Splits slices that repeat positions by the first element, or all, that tells them apart."""
  every = range(len(_REPEATS))
  for chosen in ((), *((index,) for index in every), tuple(every)):
    parts: dict[tuple[str, ...], list[_Slice]] = {}
    for header in group:
      parts.setdefault(tuple(header.repeats[index] for index in chosen), []).append(header)
    if all(
      len({tuple(np.round(header.place[6:9], 3)) for header in part}) == len(part)
      for part in parts.values()
    ):
      return list(parts.values())
  return [group]


def _sorted(group: list[_Slice]) -> list[pathlib.Path]:
  if len(group) == 1:
    return [group[0].file]
  normal = np.cross(group[0].place[:3], group[0].place[3:6])
  ordered = sorted(group, key=lambda header: float(header.place[6:9] @ normal))
  return [header.file for header in ordered]


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
  for header in headers:
    if not _one_volume(headers[0], header):
      raise UserError(f"has {header.file.name}, no slice of the same volume; read it by itself")
  if sum(header.size for header in headers) > MAX_VALUES:
    raise UserError(f"has more than {MAX_VALUES:,} voxels; crop or resample it")
  places = np.stack([header.place for header in headers])
  orientation, spacing = places[0, :6], places[0, 9:]
  stack = stack_slices(orientation, places[:, 6:9])
  if not plausible([stack.step]):
    raise UserError("does not tell its spacing; export it again")
  slices = [_named(files[index], _read_slice) for index in stack.order]
  axes = patient_axes(orientation, (stack.step, float(spacing[0]), float(spacing[1])))
  array, spacings = hang(np.stack(slices), axes)
  middle = dicom_file.load(files[stack.order[len(files) // 2]], ELEMENTS, pixels=False)
  with dicom_file.told_in_one_line():
    return Scan(array, VOLUME, spacings, notes=stack.notes, **meaning_of(middle))


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
  found = find_series(folder)
  if not found.series:
    raise UserError("holds no DICOM images; name the folder that has the slices")
  if len(found.series) > 1:
    each = ", ".join(f"{len(files)} from {min(files).name}" for files in found.series[:8])
    more = ", …" * (len(found.series) > 8)
    raise UserError(
      f"holds {len(found.series)} series (files: {each}{more}); give each a folder of its own"
    )
  scan = read_series(found.series[0])
  counts = {"are no DICOM images": found.others, "are copies of others": found.copies}
  left = tuple(f"{count} files {what}" for what, count in counts.items() if count)
  return dataclasses.replace(scan, notes=(*scan.notes, *left))
