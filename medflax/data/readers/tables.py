"""Signals as tables: CSV, and NumPy's npz, in which nothing is ever unpickled."""

import math
import pathlib
import re
import warnings
import zipfile

import numpy as np
from jaxtyping import Float

from medflax.data.documents import SIGNAL
from medflax.data.transforms.scan import MAX_VALUES, Scan
from medflax.utils import UserError

_MAX_BYTES = 2**28  # of a CSV file
_MAX_CHANNELS = 4096
_SECONDS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 0.001, "": 1.0}
_TIME = re.compile(r"(?:time|t)\s*[\[(_/ ]?\s*(s|sec|seconds|ms|)\s*[\])]?", re.IGNORECASE)


def read_csv(path: pathlib.Path) -> Scan:
  """Reads columns of numbers as the channels of a signal (T, C), float32.

  Commas, semicolons or tabs separate them. A first line of names is the channels'; a first column
  named time (`time`, `t [s]`, `time_ms`, …) tells the spacing and is no channel.

  Raises:
    UserError: if there is no table of numbers, one is missing, or time does not run evenly.
  """
  if path.stat().st_size > _MAX_BYTES:
    raise UserError(f"has more than {_MAX_BYTES:,} bytes; cut it into records")
  try:
    text = path.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError:
    raise UserError("is not UTF-8; save it as UTF-8") from None
  lines = text.splitlines()
  if not lines:
    raise UserError("is empty; export it again")
  separator = max(",;\t", key=lines[0].count)
  names = [field.strip().strip("\"'") for field in lines[0].split(separator)]
  has_names = not any(_is_number(name) for name in names)
  if len(names) > _MAX_CHANNELS:
    raise UserError(f"has more than {_MAX_CHANNELS:,} columns; a row is one moment")
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of no rows, which is told below
      table = np.loadtxt(
        lines, np.float64, delimiter=separator, skiprows=int(has_names), ndmin=2, comments=None
      )
  except ValueError as error:
    row = re.search(r"at row (\d+)|on row (\d+)", str(error))
    where = f" (data row {int(row[1] or row[2])})" if row else ""
    raise UserError(f"is not a table of numbers{where}; fill in or remove what is none") from None
  if not table.size or table.shape[1] != len(names):
    raise UserError("is not a table of numbers; export it again")
  spacing, time = None, _TIME.fullmatch(names[0]) if has_names else None
  if time:
    spacing, table, names = (_step(table[:, 0], time[1]),), table[:, 1:], names[1:]
  return _signal(table, spacing, tuple(names) if has_names else ())


def _is_number(field: str) -> bool:
  try:
    float(field)
  except ValueError:
    return False
  return True


def _step(times: Float[np.ndarray, " t"], unit: str) -> float:
  steps = np.diff(times)
  step = float(np.median(steps)) if steps.size else 0.0
  if not 0 < step < math.inf or not np.abs(steps - step).max() < step / 2:
    raise UserError("has times that do not run evenly; resample it")
  return step * _SECONDS[unit.lower()]


def read_npz(path: pathlib.Path) -> Scan:
  """Reads an npz archive: `signal` (T, C) or (T,), or its only array, and `fs` in Hz.

  Raises:
    UserError: if the archive is broken, holds Python objects, claims more than it has, or has no
      such array.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      arrays = {name.removesuffix(".npy"): name for name in archive.namelist()}
      rate = _member(archive, arrays.pop("fs")) if "fs" in arrays else None
      name = "signal" if "signal" in arrays else next(iter(arrays), "")
      if not arrays or (name != "signal" and len(arrays) > 1):
        raise UserError("has no array named `signal`; save it as numpy.savez(…, signal=…, fs=…)")
      values = _member(archive, arrays[name])
  except UserError:
    raise
  except Exception:  # zipfile, zlib and NumPy raise nearly anything
    raise UserError("is truncated or broken; copy or export it again") from None
  if values.ndim == 1:
    values = values[:, None]
  if values.ndim != 2 or values.dtype.kind not in "iuf" or values.shape[1] > _MAX_CHANNELS:
    raise UserError(f"holds {values.dtype} of shape {values.shape}, no signal (T, C)")
  hertz = float(rate.reshape(-1)[0]) if rate is not None and rate.size == 1 else 0.0
  return _signal(values, (1.0 / hertz,) if 1e-9 < hertz < 1e9 else None, ())


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
  """One array, whose header is not believed before it agrees with the archive's directory."""
  size = archive.getinfo(name).file_size
  if size > 8 * MAX_VALUES:
    raise UserError(f"holds more than {MAX_VALUES:,} values; cut it into records")
  with archive.open(name) as file:
    version = np.lib.format.read_magic(file)
    read_header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
      raise UserError("holds Python objects, which are never unpickled; save plain numbers")
    if math.prod(shape) * dtype.itemsize > size:
      raise UserError("claims more values than it has; export it again")
    values = np.frombuffer(file.read(), dtype, math.prod(shape))
  return values.reshape(shape, order="F" if fortran else "C")


def _signal(table: np.ndarray, spacing: tuple[float] | None, channels: tuple[str, ...]) -> Scan:
  if not table.size:
    raise UserError("holds no samples; export it again")
  if table.size > MAX_VALUES:
    raise UserError(f"holds more than {MAX_VALUES:,} values; cut it into records")
  with np.errstate(over="ignore"):
    values = table.astype(np.float32)
  wrong = values.size - int(np.count_nonzero(np.isfinite(values)))
  if wrong:
    raise UserError(f"holds {wrong:,} NaN or infinite samples; interpolate them and save it again")
  return Scan(values, SIGNAL, spacing, channels=channels)
