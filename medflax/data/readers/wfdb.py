"""WFDB records: a header of text and files of samples (https://wfdb.io/spec/header-5.html).

Written here because the `wfdb` package brings aiohttp, matplotlib, pandas and soundfile with it.
"""

import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from medflax.data.documents import SIGNAL
from medflax.data.transforms.scan import MAX_VALUES, Scan
from medflax.utils import UserError

_BROKEN = "is broken; copy or export it again"
_GAIN = 200.0  # units of the converter per physical unit, where the header says 0 or nothing
_RATE = 250.0
_MAX_HEADER = 2**20

_SIGNAL = re.compile(
  r"(?P<file>\S+)\s+(?P<format>\d+)(?:x(?P<per_frame>\d+))?(?::(?P<skew>\d+))?(?:\+(?P<offset>\d+))?"
  r"(?:\s+(?P<gain>[-+\d.eE]+)(?:\((?P<baseline>[-+]?\d+)\))?(?:/(?P<units>\S+))?"
  r"(?:\s+(?P<bits>\d+)(?:\s+(?P<zero>[-+]?\d+)(?:\s+(?P<initial>[-+]?\d+)"
  r"(?:\s+(?P<checksum>[-+]?\d+)(?:\s+(?P<block>\d+)(?:\s+(?P<name>.+))?)?)?)?)?)?)?\s*$"
)


class _Signal(NamedTuple):
  """One signal line of a header."""

  file: str
  format: int
  per_frame: int
  skew: int
  offset: int
  gain: float
  baseline: int
  units: str
  checksum: int | None
  name: str


def _pairs_of_12(data: np.ndarray) -> np.ndarray:
  """Format 212: two samples of 12 bits in three bytes, the high halves in the middle one."""
  first, middle, second = data[: len(data) // 3 * 3].astype(np.int32).reshape(-1, 3).T
  both = np.stack([first | (middle & 0x0F) << 8, second | (middle & 0xF0) << 4], axis=1)
  return (both.reshape(-1) + 2048) % 4096 - 2048


def _threes_of_10(data: np.ndarray) -> np.ndarray:
  """Format 310: three samples of 10 bits in two words of 16, the third in their top bits."""
  low, high = data[: len(data) // 4 * 4].view("<u2").astype(np.int32).reshape(-1, 2).T
  three = [low >> 1 & 1023, high >> 1 & 1023, low >> 11 & 31 | (high >> 11 & 31) << 5]
  return (np.stack(three, axis=1).reshape(-1) + 512) % 1024 - 512


def _threes_in_32(data: np.ndarray) -> np.ndarray:
  """Format 311: three samples of 10 bits in one word of 32, lowest first."""
  word = data[: len(data) // 4 * 4].view("<u4").astype(np.int64)
  three = np.stack([word & 1023, word >> 10 & 1023, word >> 20 & 1023], axis=1)
  return ((three.reshape(-1) + 512) % 1024 - 512).astype(np.int32)


def _of_24(data: np.ndarray) -> np.ndarray:
  """Format 24: three bytes, the lowest first."""
  parts = data[: len(data) // 3 * 3].astype(np.int32).reshape(-1, 3)
  return ((parts @ np.array([1, 2**8, 2**16])) + 2**23) % 2**24 - 2**23


def _words(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
  size = np.dtype(dtype).itemsize
  return lambda data: data[: len(data) // size * size].view(dtype).astype(np.int32)


# Of every format: its samples from its bytes, bytes a sample, and the bits, whose smallest number
# stands for a sample that is missing.
_FORMATS: dict[int, tuple[Callable[[np.ndarray], np.ndarray], float, int]] = {
  16: (_words("<i2"), 2, 16),
  24: (_of_24, 3, 24),
  32: (_words("<i4"), 4, 32),
  61: (_words(">i2"), 2, 16),
  80: (lambda data: data.astype(np.int32) - 128, 1, 8),
  160: (lambda data: _words("<u2")(data) - 32768, 2, 16),
  212: (_pairs_of_12, 1.5, 12),
  310: (_threes_of_10, 4 / 3, 10),
  311: (_threes_in_32, 4 / 3, 10),
}


def read_wfdb(path: pathlib.Path) -> Scan:
  """Decodes the record of a `.hea` file: a signal (T, C), float32, in physical units.

  A signal sampled several times a frame is averaged over each frame, as the frame rate is the
  record's. Missing samples are interpolated, and counted in the notes. Comments of the header,
  which hold age and diagnoses, are not read, nor is its date.

  Raises:
    UserError: if the header is none, of a kind that cannot be read (several segments, FLAC), or
      its files are missing, truncated or do not match their checksums.
  """
  rate, length, signals = _read_header(path)
  files = list(dict.fromkeys(signal.file for signal in signals))
  columns = {file: [i for i, s in enumerate(signals) if s.file == file] for file in files}
  values = np.empty((length or _frames(path, signals, columns), len(signals)), np.float32)
  notes = []
  for members in columns.values():
    samples = _read_samples(path, [signals[i] for i in members], len(values))
    for i, column in zip(members, samples, strict=True):
      values[:, i], missing = _physical(signals[i], column)
      if missing:
        notes.append(f"{missing:,} samples of channel {i + 1} missing, interpolated")
  units = [signal.units for signal in signals]
  return Scan(
    values,
    SIGNAL,
    spacing=(1.0 / rate,),
    units=units[0] if len(set(units)) == 1 else ",".join(units),
    channels=tuple(signal.name for signal in signals),
    notes=tuple(notes),
  )


def _read_header(path: pathlib.Path) -> tuple[float, int, list[_Signal]]:
  """Frames a second, frames (0: not told) and the signals."""
  with path.open("rb") as file:
    text = file.read(_MAX_HEADER).decode("latin-1")
  lines = [line.strip() for line in text.splitlines()]
  lines = [line for line in lines if line and not line.startswith("#")]
  fields = lines[0].split() if lines else []
  if len(fields) < 2 or not fields[1].isdecimal():
    raise UserError("is not a WFDB header; export it again, or correct its extension")
  if "/" in fields[0]:
    raise UserError("has several segments; list the header of one of them")
  try:
    count, rate = int(fields[1]), float(re.split("[/(]", fields[2])[0]) if fields[2:] else _RATE
    length = int(fields[3]) if fields[3:] else 0
    signals = [_parse_signal(line) for line in lines[1 : count + 1]]
  except UserError:
    raise
  except (ValueError, OverflowError):
    raise UserError(_BROKEN) from None
  frame = sum(signal.per_frame for signal in signals)
  if not 0 < count == len(signals) or not 1e-9 < rate < 1e9 or length < 0:
    raise UserError(_BROKEN)
  if max(length, 1) * frame > MAX_VALUES:
    raise UserError(f"has more than {MAX_VALUES:,} samples; cut it into records")
  return rate, length, signals


def _parse_signal(line: str) -> _Signal:
  found = _SIGNAL.match(line)
  if not found:
    raise ValueError
  value = found.groupdict()
  if pathlib.PurePath(value["file"]).name != value["file"] or "\0" in value["file"]:
    raise UserError("names samples in another folder; copy them beside it")
  kind = int(value["format"])
  if kind not in _FORMATS:
    raise UserError(f"has samples of format {kind}; known: {', '.join(map(str, _FORMATS))}")
  gain = float(value["gain"] or 0) or _GAIN
  per_frame = int(value["per_frame"] or 1)
  if not math.isfinite(gain) or not 1 <= per_frame <= 10_000:
    raise ValueError
  return _Signal(
    file=value["file"],
    format=kind,
    per_frame=per_frame,
    skew=int(value["skew"] or 0),
    offset=int(value["offset"] or 0),
    gain=gain,
    baseline=int(value["baseline"] or value["zero"] or 0),
    units=value["units"] or "mV",
    checksum=None if value["checksum"] is None else int(value["checksum"]),
    name=(value["name"] or "").strip(),
  )


def _frames(path: pathlib.Path, signals: Sequence[_Signal], columns: dict[str, list[int]]) -> int:
  """How many frames the first file has room for, where the header does not say."""
  file, members = next(iter(columns.items()))
  first = signals[members[0]]
  try:
    size = path.with_name(file).stat().st_size - first.offset
  except OSError as error:
    raise UserError(f"lacks its samples {file} ({error.strerror}); copy them beside it") from None
  frame = sum(signals[i].per_frame for i in members) * _FORMATS[first.format][1]
  frames = int(size / frame)
  if not 0 < frames * sum(signal.per_frame for signal in signals) <= MAX_VALUES:
    raise UserError(_BROKEN)
  return frames


def _read_samples(
  path: pathlib.Path, signals: Sequence[_Signal], frames: int
) -> list[Int[np.ndarray, "frames per_frame"]]:
  """The samples of the signals that share a file, as stored."""
  first = signals[0]
  if any((s.format, s.offset) != (first.format, first.offset) for s in signals):
    raise UserError(_BROKEN)
  decode, width, _ = _FORMATS[first.format]
  frame = sum(signal.per_frame for signal in signals)
  most = max(signal.skew for signal in signals)
  try:
    with path.with_name(first.file).open("rb") as file:
      file.seek(first.offset)
      data = file.read(math.ceil((frames + most) * frame * width) + 4)
  except OSError as error:
    raise UserError(
      f"lacks its samples {first.file} ({error.strerror}); copy them beside it"
    ) from None
  data += b"\0" * (-len(data) % 4) if first.format in (310, 311) else b""
  samples = decode(np.frombuffer(data, np.uint8))
  if samples.size < frames * frame:
    raise UserError(f"has truncated samples in {first.file}; copy or export them again")
  rows = samples[: samples.size // frame * frame].reshape(-1, frame)
  starts = np.cumsum([0, *(signal.per_frame for signal in signals)])
  columns = []
  for signal, start in zip(signals, starts, strict=False):
    column = rows[:frames, start : start + signal.per_frame]
    if signal.checksum is not None and (int(column.sum()) - signal.checksum) % 2**16:
      raise UserError(f"does not match the checksum of {first.file}; copy or export them again")
    shifted = rows[signal.skew : signal.skew + frames, start : start + signal.per_frame]
    columns.append(np.concatenate([shifted, column[len(shifted) :]]) if signal.skew else column)
  return columns


def _physical(
  signal: _Signal, samples: Int[np.ndarray, "frames per_frame"]
) -> tuple[Float[np.ndarray, " frames"], int]:
  """In physical units, averaged over frames; and how many frames had to be interpolated."""
  bits = _FORMATS[signal.format][2]
  valid = samples != -(2 ** (bits - 1))
  counts = valid.sum(axis=1)
  sums = np.where(valid, samples.astype(np.float64), 0.0).sum(axis=1)
  values = (sums / np.maximum(counts, 1) - signal.baseline) / signal.gain
  known = np.flatnonzero(counts)
  missing = len(values) - len(known)
  if missing:
    index = np.arange(len(values))
    values = np.interp(index, known, values[known]) if len(known) else np.zeros(len(values))
  return values.astype(np.float32), missing
