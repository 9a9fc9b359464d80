"""Reading media files: one function for every format, chosen by the file's extension.

A reader turns a path into `Pixels` (uint8, native size). When it cannot, it raises `UserError`
with what is wrong as a predicate ("is truncated; …"); `read_media` puts the file's name before.
"""

import pathlib
from collections.abc import Callable, Sequence

from medflax.data.documents import IMAGE, MEDIA_RANKS, VOLUME, Media
from medflax.data.readers.dicom import read_dicom
from medflax.data.readers.nifti import read_nifti
from medflax.data.readers.png_jpeg import read_image
from medflax.data.transforms import Pixels, fit_image, fit_volume
from medflax.utils import UserError

READERS: dict[str, Callable[[pathlib.Path], Pixels]] = {
  ".png": read_image,
  ".jpg": read_image,
  ".jpeg": read_image,
  ".nii": read_nifti,
  ".nii.gz": read_nifti,
  ".dcm": read_dicom,
}

_FIT = {IMAGE: fit_image, VOLUME: fit_volume}
_KIND_OF_RANK = {rank: kind for kind, rank in MEDIA_RANKS.items()}


def extension(path: str | pathlib.Path) -> str:
  """The key of `READERS` that `path` ends in, whatever its case.

  Raises:
    UserError: if there is none; the message lists those there are.
  """
  name = pathlib.PurePath(path).name.lower()
  for known in sorted(READERS, key=len, reverse=True):
    if name.endswith(known):
      return known
  raise UserError(f"{str(path)!r} is of no known format; known: {', '.join(READERS)}")


def read_media(
  path: str | pathlib.Path, kind: str, size: Sequence[int], *, name: str = ""
) -> Media:
  """Reads one file as `kind`, scaled and padded to `size`.

  Args:
    path: a PNG, JPEG, NIfTI or DICOM file, told apart by extension.
    kind: "image" or "volume".
    size: (H, W) of an image, (D, H, W) of a volume.
    name: what errors call the file; the path by default.

  Returns:
    Media of uint8: (H, W, 3) for an image, (D, H, W, 1) for a volume.

  Raises:
    UserError: naming the file, what is wrong with it and what to do about it.
  """
  path, name = pathlib.Path(path), name or str(path)
  reader = READERS[extension(path)]
  try:
    path.open("rb").close()  # tells a missing or forbidden file from a broken one
    pixels = reader(path)
  except OSError as error:
    raise UserError(f"{name} cannot be read ({error.strerror}); check the path") from None
  except UserError as error:
    raise UserError(f"{name} {error}") from None
  found = _KIND_OF_RANK[pixels.array.ndim]
  if found != kind:
    raise UserError(f"{name} is one {found}, not one {kind}; list it under `{found}s`")
  return Media(_FIT[kind](pixels, size), kind)
