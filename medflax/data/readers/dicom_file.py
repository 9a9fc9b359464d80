"""The elements and the pixels of one DICOM file, by pydicom and its plug-ins.

Only the elements asked for are read from a file. No value of the header reaches an error message
or a log, and no size it claims is believed before memory is taken for it.
"""

import contextlib
import logging
import math
import pathlib
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import pydicom
import pydicom.errors
from pydicom.encaps import generate_frames
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import get_decoder
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

from medflax.data.transforms.scan import MAX_VALUES
from medflax.utils import UserError

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_ELEMENTS = (
  "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration",
  "PhotometricInterpretation", "PixelRepresentation", "BitsAllocated", "BitsStored", "HighBit",
  "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
  "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
  "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
  "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
  *PIXELS,
)  # fmt: skip
_MAX_BYTES = 4 * MAX_VALUES  # that a deflated file may become
# In this order, so that what the extra `dicom` installs changes no file that was read without it.
_PLUGINS = ("pydicom", "pillow", "pylibjpeg")
_BROKEN = "is truncated or broken; copy or export it again"

# What pydicom complains about, it quotes: a name in a damaged file would end up in the log.
warnings.filterwarnings("ignore", module=r"pydicom\.")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
  """Turns whatever is raised inside into a `UserError` that holds no value of the header."""
  try:
    yield
  except UserError:
    raise
  except pydicom.errors.InvalidDicomError:
    raise UserError("is not a DICOM file; export it again, or correct its extension") from None
  except Exception:  # pydicom raises nearly anything, and quotes the header while at it
    raise UserError(_BROKEN) from None


def load(path: pathlib.Path, elements: Sequence[str], *, pixels: bool = True) -> pydicom.Dataset:
  """Reads `elements` of a file and, unless told otherwise, its pixels.

  Raises:
    UserError: if the file is not DICOM, broken, or without pixels.
  """
  tags: list = [*elements, *_PIXEL_ELEMENTS]
  with told_in_one_line():
    _check_inflated_size(path)
    dataset = pydicom.dcmread(path, specific_tags=tags, stop_before_pixels=not pixels)
    if not any(name in dataset for name in (PIXELS if pixels else ("Rows",))):
      raise UserError("is DICOM without an image, or truncated; list the file with the pixels")
    return dataset


def _check_inflated_size(path: pathlib.Path) -> None:
  """A deflated file is inflated into memory whole by pydicom, however large it turns out."""
  meta = read_file_meta_info(path)
  if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
    return
  with path.open("rb") as file:
    file.seek(128 + 4 + 12 + meta.FileMetaInformationGroupLength)
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while (chunk := inflater.unconsumed_tail or file.read(2**16)) and size <= _MAX_BYTES:
      size += len(inflater.decompress(chunk, 2**20))
  if size > _MAX_BYTES:
    raise UserError(f"inflates to more than {_MAX_BYTES:,} bytes; export it uncompressed")


def frame_shape(dataset: pydicom.Dataset) -> tuple[int, int, int, int]:
  """Frames, rows, columns and samples a pixel, as the header claims.

  Raises:
    UserError: if that is more than `MAX_VALUES`, or nothing.
  """
  frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel", 1))
  shape = (frames, int(dataset.Rows), int(dataset.Columns), samples)
  if math.prod(shape) > MAX_VALUES:
    raise UserError(f"has more than {MAX_VALUES:,} pixel values; crop or resample it")
  if min(shape) < 1:
    raise UserError(_BROKEN)
  return shape


def decode(dataset: pydicom.Dataset) -> tuple[np.ndarray, bool]:
  """The frames (n, h, w, c) as stored, and whether they are colours: c is 3 then, else 1.

  Palettes are resolved, and YBR is turned into RGB.

  Raises:
    UserError: if they are too large, truncated, or compressed in a way that needs a plug-in.
  """
  with told_in_one_line():
    frames, rows, columns, samples = frame_shape(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    pixels = _decompressed(dataset) if syntax.is_compressed else pixel_array(dataset)
    palette = dataset.PhotometricInterpretation == PhotometricInterpretation.PALETTE_COLOR
    if palette:
      pixels = apply_color_lut(pixels, dataset)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
      raise UserError("holds NaN or infinite pixels; replace them and save it again")
    colour = palette or samples == 3
    return pixels.reshape(frames, rows, columns, 3 if colour else 1), colour


def _decompressed(dataset: pydicom.Dataset) -> np.ndarray:
  """Decoded by the first plug-in that can."""
  syntax = dataset.file_meta.TransferSyntaxUID
  frames, *size = frame_shape(dataset)
  found = [name for name in _PLUGINS if name in _available(syntax)]
  if not found:
    raise UserError(
      "is compressed in a way that needs the packages of pip install 'medflax[dicom]' "
      "(pylibjpeg); or export it uncompressed"
    )
  if syntax != RLELossless:  # whose frames claim no size of their own
    for frame in generate_frames(dataset.PixelData, number_of_frames=frames):
      if _claimed_size(frame) != size:
        raise UserError(_BROKEN)
  for name in found[:-1]:
    with contextlib.suppress(Exception):
      return pixel_array(dataset, decoding_plugin=name)
  return pixel_array(dataset, decoding_plugin=found[-1])


def _available(syntax: UID) -> tuple[str, ...]:
  try:
    return get_decoder(syntax).available_plugins
  except NotImplementedError:
    return ()


def _claimed_size(frame: bytes) -> list[int]:
  """Rows, columns and samples that a JPEG or JPEG 2000 stream claims; decoders trust them."""
  # A JPEG 2000 codestream (ISO 15444-1, annex A), by itself or after the boxes of a JP2 file.
  start = frame.find(b"\xff\x4f\xff\x51") if frame[:2] in (b"\xff\x4f", b"\0\0") else -1
  if start >= 0:
    right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
    tile_width, tile_height = struct.unpack_from(">2I", frame, start + 24)
    tiles = math.ceil(right / tile_width) * math.ceil(bottom / tile_height)
    samples = struct.unpack_from(">H", frame, start + 40)[0]
    return [bottom - top, right - left, samples] if tiles < 2**16 else []
  position = 2
  while frame[position] == 0xFF:
    marker, length = frame[position + 1], struct.unpack_from(">H", frame, position + 2)[0]
    if marker in _START_OF_FRAME:
      return list(struct.unpack_from(">HHB", frame, position + 5))
    position += 1 if marker == 0xFF else 2 + length
  return []


# Of JPEG (ISO 10918-1, table B.1) and JPEG-LS (ISO 14495-1).
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
