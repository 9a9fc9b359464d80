"""DICOM images and volumes of several frames: what their values mean and where they lie.

Of a file, only the pixels and the elements that say how to show them are read, nothing about the
patient. No value of the header reaches a sample, an error message or a log.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Float, Num
from pydicom.multival import MultiValue

from medflax.data.documents import IMAGE, VOLUME
from medflax.data.readers import dicom_file
from medflax.data.readers.geometry import hang, patient_axes, plausible, stack_slices
from medflax.data.transforms.intensity import window
from medflax.data.transforms.scan import RGB, Scan
from medflax.utils import UserError

ELEMENTS = (
  "Modality", "RescaleType", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
  "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
  "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio",
  "SpacingBetweenSlices", "SliceThickness",
  "ImageOrientationPatient", "ImagePositionPatient",
  "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
# RescaleType, which is free text, to units; CT says HU by leaving it out (PS3.3 C.11.1.1.2).
_UNITS = {"HU": "HU", "OD": "OD", "HU_MOD": "HU"}


def read_dicom(path: pathlib.Path) -> Scan:
  """Decodes a DICOM file: an image if it has one frame, else a volume.

  Grey values are rescaled to their units, float32 in one channel, and come with the file's first
  window (PS3.3 C.11.2.1.2) or VOI LUT; MONOCHROME1 is `inverted`. Colours are uint8 or uint16 in
  three channels. Frames that tell where they lie in the patient are hung as `Scan` says; others
  keep the file's order.

  Raises:
    UserError: if the file is not DICOM, holds no pixels, is truncated, too large, or compressed
      in a way that needs another package. The message holds no value of the header.
  """
  dataset = dicom_file.load(path, ELEMENTS)
  pixels, colour = dicom_file.decode(dataset)
  with dicom_file.told_in_one_line():
    pixels = pixels if colour else rescaled(pixels, dataset)
    meaning = {"units": RGB} if colour else meaning_of(dataset)
    spacing, ratio = pixel_spacing(dataset)
    if len(pixels) == 1:
      return Scan(pixels[0], IMAGE, spacing, ratio=ratio, **meaning)
    return _volume(Scan(pixels, VOLUME, ratio=ratio, **meaning), dataset, spacing)


def _volume(scan: Scan, dataset: pydicom.Dataset, spacing: tuple[float, float] | None) -> Scan:
  """Frames with their geometry, if they tell one."""
  count = len(scan.array)
  orientations = [element(dataset, i, "ImageOrientationPatient") for i in range(count)]
  positions = [element(dataset, i, "ImagePositionPatient", own=True) for i in range(count)]
  if spacing is None or None in orientations or None in positions:
    depth = element(dataset, 0, "SpacingBetweenSlices") or element(dataset, 0, "SliceThickness")
    if spacing is None or depth is None or not plausible([float(depth)]):
      return scan
    return dataclasses.replace(scan, spacing=(float(depth), *spacing))
  directions = np.array(orientations, np.float64)
  if not np.allclose(directions, directions[0], atol=1e-3):
    return dataclasses.replace(scan, notes=("frames of several orientations, in the file's order",))
  try:
    stack = stack_slices(directions[0], np.array(positions, np.float64))
  except UserError:
    return dataclasses.replace(scan, notes=("frames that share positions, in the file's order",))
  axes = patient_axes(directions[0], (stack.step, *spacing))
  array, spacings = hang(scan.array[stack.order], axes)
  if not plausible(spacings):
    return scan
  return dataclasses.replace(scan, array=array, spacing=spacings, notes=stack.notes)


def rescaled(pixels: Num[np.ndarray, "n h w 1"], dataset: pydicom.Dataset) -> np.ndarray:
  """Stored values to float32 in their units, by slope and intercept or the modality LUT.

  Raises:
    UserError: if the result is not finite.
  """
  if dataset.get("ModalityLUTSequence"):
    first, table = _lut(dataset.ModalityLUTSequence[0])
    return _look_up(pixels.astype(np.float32), first=first, table=table)
  values = np.empty(pixels.shape, np.float32)
  with np.errstate(over="ignore", invalid="ignore"):
    for index, frame in enumerate(pixels):
      slope = element(dataset, index, "RescaleSlope", 1)
      intercept = element(dataset, index, "RescaleIntercept", 0)
      values[index] = frame * np.float32(slope) + np.float32(intercept)
  if not np.isfinite(values).all():
    raise UserError("holds NaN or infinite pixels; replace them and save it again")
  return values


def meaning_of(dataset: pydicom.Dataset) -> dict[str, Any]:
  """`units`, `voi` and `inverted` of a scan."""
  said = element(dataset, 0, "RescaleType")
  measured = element(dataset, 0, "RescaleIntercept") is not None
  default = "HU" if dataset.get("Modality") == "CT" and measured else ""
  return {
    "units": default if said is None else _UNITS.get(said, ""),
    "voi": _voi(dataset),
    "inverted": dataset.PhotometricInterpretation == "MONOCHROME1",
  }


def _voi(dataset: pydicom.Dataset) -> Callable[[np.ndarray], np.ndarray] | None:
  """The file's first window, else its VOI LUT, else None."""
  centre, width = (element(dataset, 0, name) for name in ("WindowCenter", "WindowWidth"))
  if centre is not None and width is not None and _is_window(_first(centre), _first(width)):
    function = WINDOW_FUNCTIONS[element(dataset, 0, "VOILUTFunction", "LINEAR")]
    return functools.partial(function, centre=_first(centre), width=_first(width))
  if dataset.get("VOILUTSequence"):
    first, table = _lut(dataset.VOILUTSequence[0])
    return functools.partial(_look_up, first=first, table=table / max(table.max(), 1.0))
  return None


def _is_window(centre: float, width: float) -> bool:
  return abs(centre) < 1e9 and 0 < width < 1e9


def _linear(values: Num[np.ndarray, "..."], *, centre: float, width: float) -> np.ndarray:
  return window(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _linear_exact(values: Num[np.ndarray, "..."], *, centre: float, width: float) -> np.ndarray:
  return window(values, centre - width / 2, centre + width / 2)


def _sigmoid(values: Num[np.ndarray, "..."], *, centre: float, width: float) -> np.ndarray:
  return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -60.0, 60.0)))


# The functions of PS3.3 C.11.2.1.2 and C.11.2.1.3.
WINDOW_FUNCTIONS = {"LINEAR": _linear, "LINEAR_EXACT": _linear_exact, "SIGMOID": _sigmoid}


def _lut(item: pydicom.Dataset) -> tuple[int, Float[np.ndarray, " n"]]:
  """The first value that a LUT maps, and what it maps it and those that follow to."""
  _, first, bits = (int(value) for value in item.LUTDescriptor)
  data = item.LUTData
  if isinstance(data, bytes):
    data = np.frombuffer(data, "<u2" if bits > 8 else np.uint8)
  return first, np.asarray(data, np.float32)


def _look_up(values: np.ndarray, *, first: int, table: Float[np.ndarray, " n"]) -> np.ndarray:
  """PS3.3 C.11.1.1: values before the first and after the last map as those do."""
  return table[np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)]


# Where the functional groups of an enhanced file keep an element.
_GROUPS = {
  "RescaleSlope": "PixelValueTransformationSequence",
  "RescaleIntercept": "PixelValueTransformationSequence",
  "RescaleType": "PixelValueTransformationSequence",
  "WindowCenter": "FrameVOILUTSequence",
  "WindowWidth": "FrameVOILUTSequence",
  "VOILUTFunction": "FrameVOILUTSequence",
  "ImageOrientationPatient": "PlaneOrientationSequence",
  "ImagePositionPatient": "PlanePositionSequence",
}


def element(
  dataset: pydicom.Dataset, frame: int, keyword: str, default: Any = None, *, own: bool = False
) -> Any:
  """An element of the file or, in an enhanced one, of the frame's functional groups.

  With `own`, only of the frame itself: one position for all frames says nothing about each.
  """
  for place in _places(dataset, frame, keyword, own):
    value = place.get(keyword)
    if value is not None and value != "":
      return value
  return default


def _places(
  dataset: pydicom.Dataset, frame: int, keyword: str, own: bool
) -> Iterator[pydicom.Dataset]:
  if not own:
    yield dataset
  per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
  shared = [] if own else dataset.get("SharedFunctionalGroupsSequence") or []
  for groups in [*per_frame[frame : frame + 1], *shared]:
    yield from groups.get(_GROUPS.get(keyword, "PixelMeasuresSequence")) or []


def _first(value: Any) -> float:
  """Files may offer several windows; the first is the one meant to be shown."""
  return float(value[0] if isinstance(value, MultiValue) else value)


def pixel_spacing(dataset: pydicom.Dataset) -> tuple[tuple[float, float] | None, float]:
  """Spacing of rows and columns in mm (of a radiograph, at the detector), and their ratio.

  Where there are no mm, there may be a ratio; it is 1 if not.
  """
  for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
    values = element(dataset, 0, keyword)
    sizes = [] if values is None else [float(value) for value in values]
    if len(sizes) == 2 and plausible(sizes):
      rows, columns = sizes
      return None if keyword == "PixelAspectRatio" else (rows, columns), rows / columns
  return None, 1.0
