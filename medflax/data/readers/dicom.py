"""DICOM images and multi-frame volumes, by pydicom.

Only the elements listed in `_ELEMENTS` are read from a file: pixels and how to show them, nothing
about the patient. No value of the header reaches a sample, an error message or a log.
"""

import logging
import math
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
import pydicom.errors
from jaxtyping import Float, Num
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from medflax.data.transforms import Pixels, grey_to_rgb, percentile_window, to_uint8, window
from medflax.utils import UserError

MAX_VOXELS = 2**28  # all frames and colours together

_ELEMENTS = [
  "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration",
  "PhotometricInterpretation", "PixelRepresentation", "BitsAllocated", "BitsStored", "HighBit",
  "PixelData", "FloatPixelData", "DoubleFloatPixelData",
  "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
  "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
  "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
  "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
  "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction",
  "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio",
  "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip

# What pydicom complains about, it quotes: a name in a damaged file would end up in the log.
warnings.filterwarnings("ignore", module=r"pydicom\.")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def read_dicom(path: pathlib.Path) -> Pixels:
  """Decodes a DICOM file to uint8: (H, W, 3) if it has one frame, else (D, H, W, 1).

  Grey values go through the rescale slope and intercept and the first window of the file (DICOM
  PS3.3 C.11.2.1.2) or, without one, between the 1st and 99th percentile; MONOCHROME1 is inverted
  so that high values are always bright. Colour stays as it is; in a volume it turns into grey.
  Frames keep the file's order.

  Raises:
    UserError: if the file is not DICOM, holds no pixels, is truncated, too large, or compressed
      in a way that needs another package. The message holds no value of the header.
  """
  dataset = _load(path)
  try:
    if _size(dataset) > MAX_VOXELS:
      raise UserError(f"has more than {MAX_VOXELS:,} pixel values; crop or resample it")
    pixels = pixel_array(dataset)
    interpretation = dataset.PhotometricInterpretation
    if interpretation == "PALETTE COLOR":
      pixels = apply_color_lut(pixels, dataset)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
      raise UserError("holds NaN or infinite pixels; replace them and save it again")
    colour = interpretation == "PALETTE COLOR" or dataset.get("SamplesPerPixel", 1) == 3
    frames = int(dataset.get("NumberOfFrames") or 1)
    pixels = pixels.reshape(frames, dataset.Rows, dataset.Columns, 3 if colour else 1)
    shown = _colour(pixels) if colour else _grey(pixels[..., 0], dataset)[..., None]
    aspect = _aspect(dataset)
  except UserError:
    raise
  except (NotImplementedError, RuntimeError):
    raise UserError(
      "is compressed in a way that cannot be decoded here; pip install 'pylibjpeg[all]', "
      "or export it uncompressed"
    ) from None
  except Exception:  # pydicom raises nearly anything, and quotes the header while at it
    raise UserError("is truncated or broken; copy or export it again") from None
  if frames == 1:
    return Pixels(shown[0] if colour else grey_to_rgb(shown[0, :, :, 0]), aspect)
  grey = to_uint8(shown.mean(axis=-1, keepdims=True) / 255.0) if colour else shown
  return Pixels(grey, aspect)


def _load(path: pathlib.Path) -> pydicom.Dataset:
  """Reads the listed elements, no others."""
  try:
    dataset = pydicom.dcmread(path, specific_tags=_ELEMENTS)
  except pydicom.errors.InvalidDicomError:
    raise UserError("is not a DICOM file; export it again, or correct its extension") from None
  except Exception:  # as above
    raise UserError("is truncated or broken; copy or export it again") from None
  if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
    raise UserError("is DICOM without an image, or truncated; list the file with the pixels")
  return dataset


def _size(dataset: pydicom.Dataset) -> int:
  frames = int(dataset.get("NumberOfFrames") or 1)
  return math.prod([frames, dataset.Rows, dataset.Columns, dataset.get("SamplesPerPixel", 1)])


def _colour(frames: Num[np.ndarray, "d h w 3"]) -> Num[np.ndarray, "d h w 3"]:
  """Colour of 8 bits as it is; of 16 bits scaled down."""
  return frames if frames.dtype == np.uint8 else (frames >> 8).astype(np.uint8)


def _grey(frames: Num[np.ndarray, "d h w"], dataset: pydicom.Dataset) -> np.ndarray:
  """Rescales, windows and, where the file says so, inverts: uint8 (d, h, w)."""
  values = np.empty(frames.shape, np.float32)
  for index, frame in enumerate(frames):
    slope = _element(dataset, index, "PixelValueTransformationSequence", "RescaleSlope", 1)
    intercept = _element(dataset, index, "PixelValueTransformationSequence", "RescaleIntercept", 0)
    values[index] = frame * np.float32(slope) + np.float32(intercept)
  centre = _element(dataset, 0, "FrameVOILUTSequence", "WindowCenter", None)
  width = _element(dataset, 0, "FrameVOILUTSequence", "WindowWidth", None)
  if centre is None or width is None:
    shown = percentile_window(values)
  else:
    function = _element(dataset, 0, "FrameVOILUTSequence", "VOILUTFunction", "LINEAR")
    shown = _WINDOWS[function](values, _first(centre), _first(width))
  inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
  return to_uint8(1.0 - shown if inverted else shown)


def _sigmoid(values: Num[np.ndarray, "..."], c: float, w: float) -> Float[np.ndarray, "..."]:
  return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - c) / w, -60.0, 60.0)))


# The three functions of PS3.3 C.11.2.1.2 and C.11.2.1.3, of values, centre and width.
_WINDOWS = {
  "LINEAR": lambda x, c, w: window(x, c - 0.5 - (w - 1) / 2, c - 0.5 + (w - 1) / 2),
  "LINEAR_EXACT": lambda x, c, w: window(x, c - w / 2, c + w / 2),
  "SIGMOID": _sigmoid,
}


def _element(dataset: pydicom.Dataset, frame: int, group: str, keyword: str, default: Any) -> Any:
  """An element of the file or, in an enhanced one, of the frame's functional groups."""
  for place in _places(dataset, frame, group):
    value = place.get(keyword)
    if value is not None and value != "":
      return value
  return default


def _places(dataset: pydicom.Dataset, frame: int, group: str) -> Iterator[pydicom.Dataset]:
  yield dataset
  per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
  for groups in [*per_frame[frame : frame + 1], *dataset.get("SharedFunctionalGroupsSequence", [])]:
    yield from groups.get(group) or []


def _first(value: Any) -> float:
  """Files may offer several windows; the first is the one meant to be shown."""
  return float(value[0] if isinstance(value, MultiValue) else value)


def _aspect(dataset: pydicom.Dataset) -> float:
  """Height of a pixel over its width, from whichever element says so."""
  for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
    rows_columns = _element(dataset, 0, "PixelMeasuresSequence", keyword, None)
    if rows_columns is not None and len(rows_columns) == 2 and min(map(float, rows_columns)) > 0:
      return float(rows_columns[0]) / float(rows_columns[1])
  return 1.0
