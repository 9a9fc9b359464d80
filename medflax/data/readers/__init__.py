"""Reading media files: one function for every format, chosen by suffix or by the first bytes.

A reader turns a path into a `Scan`: values in physical units at native size. When it cannot, it
raises `UserError` with what is wrong as a predicate ("is truncated; …"); `read_scan` and
`read_media` put the file's name before.
"""

import pathlib
from collections.abc import Callable, Sequence

from medflax.data.documents import IMAGE, VOLUME, Media
from medflax.data.readers.dicom import read_dicom
from medflax.data.readers.nifti import read_nifti
from medflax.data.readers.png_jpeg import read_image
from medflax.data.readers.series import read_folder
from medflax.data.readers.tables import read_csv, read_npz
from medflax.data.readers.wfdb import read_wfdb
from medflax.data.transforms.grids import fit
from medflax.data.transforms.intensity import show, to_bytes, to_media
from medflax.data.transforms.scan import Scan
from medflax.utils import UserError

READERS: dict[str, Callable[[pathlib.Path], Scan]] = {
  ".png": read_image,
  ".jpg": read_image,
  ".jpeg": read_image,
  ".nii": read_nifti,
  ".nii.gz": read_nifti,
  ".dcm": read_dicom,
  ".hea": read_wfdb,
  ".csv": read_csv,
  ".npz": read_npz,
}
# What files of other names begin with: an offset and bytes. Slices often have no suffix.
_MAGIC = {
  ".png": (0, b"\x89PNG\r\n\x1a\n"),
  ".jpg": (0, b"\xff\xd8\xff"),
  ".dcm": (128, b"DICM"),
  ".npz": (0, b"PK\x03\x04"),
}
_FOLDER_KINDS = (IMAGE, VOLUME)


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


def _reader(path: pathlib.Path) -> Callable[[pathlib.Path], Scan]:
  """By suffix or, without a known one, by the first bytes; a folder is a DICOM series."""
  if READERS.get(path.suffix.lower()) is read_image:  # opens it at once, so that nothing is lost
    return read_image
  if path.is_dir():
    return read_folder
  with path.open("rb") as file:  # tells a missing or forbidden file from a broken one
    start = file.read(512)
  try:
    return READERS[extension(path)]
  except UserError:
    for suffix, (offset, magic) in _MAGIC.items():
      if start[offset : offset + len(magic)] == magic:
        return READERS[suffix]
    raise UserError(f"is of no known format; known: {', '.join(READERS)}") from None


def read_scan(
  path: str | pathlib.Path, *, name: str = "", smallest: Sequence[int] | None = None
) -> Scan:
  """Reads one file, or a folder with the slices of one DICOM series.

  Args:
    path: a file of a format of `READERS`, told by suffix or first bytes, or a folder.
    name: what errors call it; the path by default.
    smallest: the (H, W) that a JPEG may be scaled down to while it is decoded; None: it may not.

  Raises:
    UserError: naming the file, what is wrong with it and what to do about it.
  """
  path, name = pathlib.Path(path), name or str(path)
  try:
    reader = _reader(path)
    return read_image(path, smallest) if reader is read_image else reader(path)
  except OSError as error:
    raise UserError(f"{name} cannot be read ({error.strerror}); check the path") from None
  except UserError as error:
    raise UserError(f"{name} {error}") from None


def read_kind(
  path: str | pathlib.Path,
  kind: str,
  *,
  name: str = "",
  smallest: Sequence[int] | None = None,
) -> Scan:
  """Reads one file as `kind`, "image" or "volume"; the rest is as in `read_scan`.

  Raises:
    UserError: as `read_scan`, and where the file is of another kind.
  """
  name = name or str(path)
  scan = read_scan(path, name=name, smallest=smallest)
  if scan.kind not in _FOLDER_KINDS:
    raise UserError(f"{name} is one {scan.kind}, not one {kind}; take it out")
  if scan.kind != kind:
    raise UserError(f"{name} is one {scan.kind}, not one {kind}; list it under `{scan.kind}s`")
  return scan


def read_media(
  path: str | pathlib.Path, kind: str, size: Sequence[int], *, name: str = ""
) -> Media:
  """Reads one file as `kind`, shown as it asks to be, scaled and padded to `size`.

  Args:
    path: as of `read_scan`.
    kind: "image" or "volume".
    size: (H, W) of an image, (D, H, W) of a volume.
    name: what errors call the file; the path by default.

  Returns:
    Media of uint8: (H, W, 3) for an image, (D, H, W, 1) for a volume.

  Raises:
    UserError: naming the file, what is wrong with it and what to do about it.
  """
  scan = read_kind(path, kind, name=name)
  try:
    return to_media(fit(to_bytes(show(scan)), size))
  except UserError as error:
    raise UserError(f"{name or path} {error}") from None
