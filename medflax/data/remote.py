"""Prepared data sets in object stores: every file is copied to a local folder before it is read.

Shards are read at random, a picture at a time, which object stores are slow at and charge for.
"""

import concurrent.futures
import json
import os
import pathlib
import tempfile

import fsspec
import tqdm

from medflax.data.builders import store
from medflax.utils import UserError, write_atomic

_AT_ONCE = 8  # files
_BLOCK = 2**24  # bytes


def is_remote(root: str | os.PathLike) -> bool:
  """Whether `root` is a URL, as `gs://bucket/folder`, rather than a path."""
  return "://" in os.fspath(root)


def fetch(root: str, cache: str | os.PathLike) -> pathlib.Path:
  """Copies a prepared data set, or what is missing of it, into a folder of its own in `cache`.

  Versions contain a hash of the content, so that a data set that has changed gets another folder.
  Files are written under other names and renamed: several processes may fetch at once, and one that
  was killed leaves nothing that looks complete.

  Args:
    root: URL of the prepared folder, of any protocol that fsspec has a package for: `gs://`
      (gcsfs), `s3://` (s3fs), …
    cache: a local folder.

  Returns:
    The local copy.

  Raises:
    UserError: if `cache` is not given, or the data set cannot be read.
  """
  if not os.fspath(cache):
    raise UserError(f"data.root = {root!r} is no local folder; data.cache must name one to copy to")
  try:
    files, folder = fsspec.core.url_to_fs(root)
    listing = files.cat_file(f"{folder}/{store.DATASET}")
    info = json.loads(listing)
    target = pathlib.Path(cache) / f"{info['name']}-{info['version']}"
    names = [shard["file"] for shards in info["shards"].values() for shard in shards]
    names += [store.NOTED, *(f"{store.INDEX}/{split}.json" for split in info["records"])]
    missing = [name for name in names if not (target / name).exists()]
    copy = lambda name: _copy(files, f"{folder}/{name}", target / name)
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
      done = pool.map(copy, missing)
      list(tqdm.tqdm(done, f"copying {root}", len(missing), disable=None, leave=False))
  except ImportError as error:
    raise UserError(f"{root}: {error}") from None
  except FileNotFoundError as error:
    raise UserError(f"{root} is no prepared data set: it lacks {error}") from None
  except (OSError, ValueError, KeyError) as error:
    raise UserError(f"{root} cannot be read: {error}") from None
  write_atomic(target / store.DATASET, listing)
  return target


def _copy(files: fsspec.AbstractFileSystem, path: str, target: pathlib.Path) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
  try:
    with os.fdopen(handle, "wb") as out, files.open(path, "rb") as source:
      while block := source.read(_BLOCK):
        out.write(block)
      out.flush()
      os.fsync(out.fileno())
    os.replace(temporary, target)
  finally:
    pathlib.Path(temporary).unlink(missing_ok=True)
