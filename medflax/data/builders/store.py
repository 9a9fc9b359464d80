"""The files of a prepared data set: how records and media lie in them.

A prepared folder holds

* `dataset.json`: what the data set is, its splits, counts and shards; written last;
* `index/SPLIT.json`: the columns by which samples are chosen without reading them;
* `SPLIT-00000.array_record`, …: records, JSON each, whose media are numbers;
* `media-00000.array_record`, …: every media file once, in the order of its number: one line of
  JSON, then PNG or JPEG as they were, or the raw values of an array;
* `rejected.jsonl`: rows of the source that could not be used, with the reason;
* `noted.jsonl`: files that are used in spite of what is odd about them, with what that is.
"""

import io
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from medflax.data.builders.base import Record
from medflax.data.documents import VOLUME
from medflax.data.readers import READERS, extension
from medflax.data.readers.png_jpeg import read_image
from medflax.data.transforms.grids import Channel
from medflax.data.transforms.intensity import show, to_bytes
from medflax.data.transforms.scan import Scan
from medflax.utils import UserError

FORMAT = 1
DATASET, INDEX, CHUNKS = "dataset.json", "index", "unfinished"
REJECTED, NOTED = "rejected.jsonl", "noted.jsonl"
# What a record holds, for readers other than `PreparedDataset`.
FEATURES = {
  **dict.fromkeys(("id", "task", "group", "question", "answer", "answer_type"), "text"),
  "choices": "list of texts",
  "media": "list of [kind, number of the record in the media shards]",
  "meta": "object",
}
COLUMNS = ("group", "task", "topic")

_FIELDS = (
  "kind",
  "spacing",
  "ratio",
  "units",
  "channels",
  "notes",
)  # of a scan that is stored as an array
_ENCODED = (".png", ".jpg", ".jpeg")  # kept as they are; anything else becomes an array
# One record a block: reading at random is what training does. Compressing a JPEG costs next to
# nothing, and volumes need it.
_WRITE_OPTIONS = "group_size:1,zstd"


def shard_name(part: str, number: int) -> str:
  """File name of the shard of a split, or of `MEDIA`."""
  return f"{part}-{number:05}.array_record"


def write_shard(path: pathlib.Path, records: Iterable[bytes]) -> int:
  """Writes a shard, whole or not at all, and none without records; returns how many it has."""
  temporary = path.with_name(f".{path.name}.tmp")
  writer = ArrayRecordWriter(str(temporary), _WRITE_OPTIONS)
  count = 0
  try:
    for record in records:
      writer.write(record)
      count += 1
    writer.close()
    with temporary.open("rb") as file:
      os.fsync(file.fileno())
    if count:
      os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return count


def encode_record(record: Record, numbers: Sequence[int]) -> bytes:
  """A record as JSON; `numbers` are those of its media."""
  return json.dumps(
    {
      "id": record.id,
      "task": record.task,
      "group": record.group,
      "question": record.question,
      "answer": record.answer,
      "answer_type": record.answer_type,
      "choices": record.choices,
      "media": [[kind, number] for (kind, _), number in zip(record.media, numbers, strict=True)],
      "meta": record.meta,
    },
    ensure_ascii=False,
  ).encode()


def load_media(path: pathlib.Path, kind: str, index: int | None = None) -> bytes:
  """A file, or the volume `index` of it, as it is stored, after decoding it to see that it can be.

  Raises:
    UserError: as a predicate of the file: "is truncated; …".
  """
  suffix = extension(path)
  try:
    scan = READERS[suffix](path)
    if scan.kind != kind:
      raise UserError(f"is one {scan.kind}, not one {kind}")
    if suffix in _ENCODED:
      return _packed({"format": suffix}, path.read_bytes())
  except OSError as error:
    raise UserError(f"cannot be read ({error.strerror})") from None
  if index is not None:
    scan = Channel(index)(scan, np.random.default_rng(), None)
  if kind == VOLUME and scan.array.shape[-1] > 1:
    raise UserError(f"has {scan.array.shape[-1]} volumes in one file; save the one you mean")
  if scan.voi or scan.inverted:  # how a DICOM file asks to be shown is a function
    scan = to_bytes(show(scan))
  array = _compact(np.ascontiguousarray(scan.array))
  header = {"format": "array", "dtype": array.dtype.str, "shape": array.shape}
  header |= {name: getattr(scan, name) for name in _FIELDS}
  return _packed(header, array.tobytes())


def notes_of(stored: bytes) -> list[str]:
  """What is odd about a stored file, as `Scan.notes`; pictures have no notes."""
  return json.loads(stored.partition(b"\n")[0]).get("notes", [])


def decode_media(stored: bytes, *, smallest: Sequence[int] | None = None) -> Scan:
  """What the file was decoded to; integers of 16 bits come back as float32.

  `smallest` is that of `read_image`.
  """
  head, _, payload = stored.partition(b"\n")
  header: dict[str, Any] = json.loads(head)
  if header["format"] in _ENCODED:
    return read_image(io.BytesIO(payload), smallest)
  shape = header["shape"]
  array = np.frombuffer(payload, header["dtype"], math.prod(shape)).reshape(shape)
  fields = {name: header[name] for name in _FIELDS if name in header}
  fields |= {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
  return Scan(array.astype(np.float32) if array.dtype == np.int16 else array, **fields)


def _compact(array: np.ndarray) -> np.ndarray:
  """float32 as int16 where nothing is lost, as in most CT and MR."""
  if array.dtype != np.float32 or np.abs(array).max() > np.iinfo(np.int16).max:
    return array
  small = array.astype(np.int16)
  return small if (small == array).all() else array


def _packed(header: dict[str, Any], payload: bytes) -> bytes:
  return json.dumps(header).encode() + b"\n" + payload
