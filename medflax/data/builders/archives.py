"""Archives that a data set came in and that have not been unpacked: which one, and where to."""

import pathlib
import tarfile
from collections.abc import Sequence

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_LOCAL_HEADER = b"PK\x03\x04"  # of a zip file's first member: APPNOTE 4.3.7
_UNKNOWN = "?/?"  # like no path of a data set


def find_archives(root: pathlib.Path) -> list[str]:
  """Paths of the archives in a folder or in one inside it, sorted."""
  found = {path for suffix in SUFFIXES for at in ("", "*/") for path in root.glob(f"{at}*{suffix}")}
  return sorted(path.relative_to(root).as_posix() for path in found if path.is_file())


def unpack_hint(root: pathlib.Path, archives: Sequence[str], wanted: str) -> str:
  """What to unpack where to get a missing file: "unpack images.zip into images/"; "" without any.

  The archive is the one that is named like a folder of the file's path, else the first. Only the
  beginning of it is read.

  Args:
    root: the folder that paths are relative to.
    archives: of `find_archives`.
    wanted: path of the missing file.
  """
  if not archives:
    return ""
  folders = pathlib.PurePosixPath(wanted).parts[:-1]
  archive = min(archives, key=lambda name: _distance(_stem(name), folders))
  place = str(pathlib.PurePosixPath(archive).parent)
  top, *below = _first_member(root / archive).removeprefix("./").split("/")
  target = place
  if not below:  # files that lie in no folder
    target = "/".join(folders) or "."
  elif top in folders:
    target = "/".join(folders[: folders.index(top)]) or "."
  return f"unpack {archive} {'where it is' if target == place else f'into {target}/'}"


def _stem(archive: str) -> str:
  name = pathlib.PurePosixPath(archive).name
  return name.removesuffix(next(s for s in SUFFIXES if name.endswith(s)))


def _distance(stem: str, folders: Sequence[str]) -> int:
  """0: named as a folder, 1: one name is part of the other, 2: neither."""
  stem, folders = stem.lower(), [folder.lower() for folder in folders]
  if stem in folders:
    return 0
  return 1 if any(stem in folder or folder in stem for folder in folders) else 2


def _first_member(path: pathlib.Path) -> str:
  """The path of the first member, or `_UNKNOWN`."""
  try:
    if path.suffix == ".zip":
      with path.open("rb") as file:
        header = file.read(30)
        name = file.read(int.from_bytes(header[26:28], "little"))
      return name.decode("utf-8", "replace") if header.startswith(_LOCAL_HEADER) else _UNKNOWN
    with tarfile.open(path) as archive:
      while (member := archive.next()) and not member.isfile():
        pass
      return member.name if member else _UNKNOWN
  except (OSError, EOFError, tarfile.TarError):
    return _UNKNOWN
