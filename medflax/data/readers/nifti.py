"""NIfTI volumes, by nibabel."""

import math
import pathlib

import nibabel
import nibabel.nifti1
import numpy as np

from medflax.data.transforms import Pixels, percentile_window, to_uint8
from medflax.utils import UserError

MAX_VOXELS = 2**28  # 512 × 512 × 1024, one GiB as float32


def read_nifti(path: pathlib.Path) -> Pixels:
  """Decodes a NIfTI file to uint8 (D, H, W, 1): axial slices as a radiologist hangs them.

  Voxels are first brought to the closest canonical orientation. Then D runs from inferior to
  superior, H from anterior to posterior and W from the patient's right to the left, which is the
  order of an axial DICOM series. Intensities are windowed between their 1st and 99th percentile.

  Raises:
    UserError: if the file is not NIfTI, truncated, not one 3D volume of real numbers, too large,
      or holds NaN or infinite voxels.
  """
  image = _load(path)
  shape = image.shape
  if len(shape) == 4 and shape[3] > 1:
    raise UserError(
      f"has 4 dimensions ({shape[3]} volumes); save the one you mean, e.g. by image.slicer[..., 0]"
    )
  if len(shape) not in (3, 4) or 0 in shape:
    raise UserError(f"has shape {shape}, not that of one 3D volume; export it again")
  if math.prod(shape) > MAX_VOXELS:
    raise UserError(f"has more than {MAX_VOXELS:,} voxels; crop or resample it")
  if np.dtype(image.get_data_dtype()).kind not in "iuf":
    raise UserError("does not hold one real number a voxel; export it as greyscale")
  try:
    canonical = nibabel.as_closest_canonical(image)
    voxels = canonical.get_fdata(dtype=np.float32, caching="unchanged").reshape(canonical.shape[:3])
    across, along = canonical.header.get_zooms()[:2]
  except Exception:  # nibabel lets zlib, struct and OS errors of a broken file through
    raise UserError("is truncated or broken; copy or export it again") from None
  wrong = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
  if wrong:
    raise UserError(
      f"holds {wrong:,} NaN or infinite voxels; replace them (numpy.nan_to_num) and save it again"
    )
  slices = voxels.transpose(2, 1, 0)[:, ::-1, ::-1]  # from (R, A, S) to (S, P, L)
  aspect = float(along / across) if across > 0 and along > 0 else 1.0
  return Pixels(to_uint8(percentile_window(slices))[..., None], aspect)


def _load(path: pathlib.Path) -> nibabel.nifti1.Nifti1Pair:
  """Reads the header; the voxels follow later."""
  try:
    image = nibabel.load(path)
  except Exception:  # as above
    raise UserError("is not a NIfTI file, or is truncated; export it again") from None
  if not isinstance(image, nibabel.nifti1.Nifti1Pair):
    raise UserError("is not a NIfTI file; export it again")
  return image
