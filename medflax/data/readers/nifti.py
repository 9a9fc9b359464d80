"""NIfTI volumes, by nibabel."""

import contextlib
import logging
import math
import pathlib

import nibabel
import nibabel.nifti1
import numpy as np

from medflax.data.documents import VOLUME
from medflax.data.readers.geometry import plausible
from medflax.data.transforms.scan import MAX_VALUES, Scan
from medflax.utils import UserError

_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_DEFLATE = 1100  # no gzip file grows more than this (1032 times, RFC 1951, and some slack)

# What nibabel mends in a header it logs; what matters of it is told here.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


def read_nifti(path: pathlib.Path) -> Scan:
  """Decodes a NIfTI file to a float32 volume (D, H, W, C): axial slices as they are hung.

  Voxels are first brought to the closest canonical orientation. Then D runs from inferior to
  superior, H from anterior to posterior and W from the patient's right to the left, which is the
  order of an axial DICOM series. The fourth dimension of a file, time or contrast, becomes the
  channels. The format does not tell units: those of a CT are HU.

  Raises:
    UserError: if the file is not NIfTI, truncated, not of real numbers in 3 or 4 dimensions, too
      large, or holds NaN or infinite voxels.
  """
  image = _load(path)
  shape = image.shape
  if len(shape) not in (3, 4) or min(shape) < 1:
    raise UserError(f"has shape {shape}, not that of one 3D volume; export it again")
  if math.prod(shape) > MAX_VALUES:
    raise UserError(f"has more than {MAX_VALUES:,} voxels; crop or resample it")
  if np.dtype(image.get_data_dtype()).kind not in "iuf":
    raise UserError("does not hold one real number a voxel; export it as greyscale")
  claimed = math.prod(shape) * np.dtype(image.get_data_dtype()).itemsize
  files = {holder.filename for holder in image.file_map.values() if holder.filename}
  with contextlib.suppress(OSError):
    if claimed > sum(_largest(pathlib.Path(file)) for file in files):
      raise UserError("is truncated; copy or export it again")
  try:
    canonical = nibabel.as_closest_canonical(image)
    voxels = canonical.get_fdata(dtype=np.float32, caching="unchanged")
    zooms = canonical.header.get_zooms()[:3]
    unit = _MM.get(canonical.header.get_xyzt_units()[0], 1.0)
  except Exception:  # nibabel lets zlib, struct and OS errors of a broken file through
    raise UserError("is truncated or broken; copy or export it again") from None
  wrong = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
  if wrong:
    raise UserError(
      f"holds {wrong:,} NaN or infinite voxels; replace them (numpy.nan_to_num) and save it again"
    )
  voxels = voxels.reshape(*canonical.shape[:3], -1)
  slices = voxels.transpose(2, 1, 0, 3)[:, ::-1, ::-1]  # from (R, A, S) to (S, P, L)
  # Headers hold float32; their shortest decimals are what was meant: 0.7, not 0.69999999.
  sizes = tuple(float(str(size)) * unit for size in reversed(zooms))
  return Scan(slices, VOLUME, sizes if plausible(sizes) else None)


def _largest(path: pathlib.Path) -> int:
  """The most bytes that a file can unpack to."""
  return path.stat().st_size * (_DEFLATE if path.suffix.lower() == ".gz" else 1)


def _load(path: pathlib.Path) -> nibabel.nifti1.Nifti1Pair:
  """Reads the header; the voxels follow later."""
  try:
    image = nibabel.load(path)
  except Exception:  # as above
    raise UserError("is not a NIfTI file, or is truncated; export it again") from None
  if not isinstance(image, nibabel.nifti1.Nifti1Pair):
    raise UserError("is not a NIfTI file; export it again")
  return image
