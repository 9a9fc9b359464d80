"""Small helpers without a better home: user-facing errors, names looked up, atomic files."""

import contextlib
import difflib
import os
import pathlib
import subprocess
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class UserError(ValueError):
  """A mistake of the user's, told in one line that names the culprit and the remedy.

  `main` prints the message without a traceback and exits with status 2.
  """


def nearest(name: str, known: Iterable[str]) -> str:
  """A hint for an unknown name: `; did you mean 'x'?` or the list of known names."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1)
  return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def pick(options: Mapping[str, Any], name: str, what: str) -> Any:
  """`options[name]`; an unknown name is a `UserError` with the nearest known one."""
  if name not in options:
    raise UserError(f"unknown {what} {name!r}{nearest(str(name), options)}")
  return options[name]


@contextlib.contextmanager
def failing_in(path: pathlib.Path) -> Iterator[None]:
  """Around running a Python file of the user's: its errors become a `UserError` with the line."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = frames[-1].lineno if frames else getattr(error, "lineno", 0)
    raise UserError(f"{path}:{line}: {type(error).__name__}: {error}") from error


def write_atomic(path: str | os.PathLike, content: str | bytes) -> None:
  """Writes a whole file or nothing: a temporary file beside it, flushed, then renamed."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  data = content.encode() if isinstance(content, str) else content
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise


def git_hash() -> str:
  """The commit medflax runs from, with `-dirty` for local changes; "" outside a checkout."""
  command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
  try:
    root = pathlib.Path(__file__).parent
    done = subprocess.run(
      command, cwd=root, capture_output=True, text=True, timeout=10, check=False
    )
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return done.stdout.strip() if done.returncode == 0 else ""
