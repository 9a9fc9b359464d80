"""From a downloaded data set to a prepared folder: in chunks, so that it can be interrupted.

A chunk is a run of the source's rows. Its shards are written first and its summary,
`unfinished/00000.json`, last: a chunk with a summary is done. A restart reads the source's tables
again but no media of the chunks that are done, and goes on with the next; the folder ends up with
the same bytes as in one go. All of it follows from the source's files alone.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tqdm

from medflax.data.builders import store
from medflax.data.builders.base import MEDIA, Builder, Record, Rejected, split_volume
from medflax.data.builders.source import SourceFolder
from medflax.utils import UserError, write_atomic

CHUNK_ROWS = 4096
CHUNK_BYTES = 2**28  # of media files
LOCK = "lock"
AHEAD = 32  # media files that are held in memory


@dataclasses.dataclass(frozen=True)
class Chunk:
  """A run of rows, with the media files that no earlier chunk has.

  Attributes:
    rows: how many they are.
    items: their records, in order.
    files: size by kind and path; 0: there is no such file within the source.
  """

  rows: int
  items: list[Record | Rejected]
  files: dict[tuple[str, str], int]

  def digest(self) -> str:
    """Tells this chunk from any other: what it says, and its files by name and size."""
    text = json.dumps([[dataclasses.asdict(item) for item in self.items], [*self.files.items()]])
    return hashlib.sha256(text.encode()).hexdigest()


def prepare(
  builder: Builder,
  source: str | os.PathLike,
  target: str | os.PathLike,
  *,
  chunk_rows: int = CHUNK_ROWS,
) -> dict[str, Any]:
  """Builds a data set from its files, or goes on where a former call was interrupted.

  Args:
    builder: of the data set.
    source: folder with the files as downloaded; only read.
    target: folder to write, and nothing is written elsewhere: a new or empty one, or one that
      the same call has left unfinished.
    chunk_rows: rows of the source after which a chunk is closed.

  Returns:
    The content of `dataset.json`.

  Raises:
    UserError: if the folders cannot be used, the source is none of this data set, has changed
      since the interrupted call, or has no usable record.
  """
  folder = SourceFolder(source)
  root = _open_target(pathlib.Path(target), folder.root)
  writer = _Writer(builder, folder, root)
  resumed = any((root / store.CHUNKS).glob("*.json"))
  with (
    _locked(root / store.CHUNKS / LOCK),
    tqdm.tqdm(desc=builder.name, unit=" rows", disable=None) as progress,
  ):
    try:
      for number, chunk in enumerate(_chunks(builder, folder, chunk_rows)):
        writer.add(number, chunk)
        progress.set_postfix(rejected=len(writer.rejected), refresh=False)
        progress.update(chunk.rows)
      return writer.finish()
    except UserError:
      if not (resumed or writer.worthwhile):
        shutil.rmtree(root / store.CHUNKS)
        (root / store.INDEX).rmdir()
      raise


def _open_target(target: pathlib.Path, source: pathlib.Path) -> pathlib.Path:
  target = target.resolve()
  if target.is_relative_to(source):
    raise UserError(f"{str(target)!r} lies inside the source, which stays as it is; choose another")
  if (target / store.DATASET).exists():
    raise UserError(f"{str(target)!r} holds a prepared data set; choose another or remove it")
  unfinished = (target / store.CHUNKS).is_dir()
  if target.exists() and not unfinished and (not target.is_dir() or any(target.iterdir())):
    raise UserError(f"{str(target)!r} is not an empty folder; choose another or remove it")
  (target / store.CHUNKS).mkdir(parents=True, exist_ok=True)
  (target / store.INDEX).mkdir(exist_ok=True)
  return target


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  """Keeps a second process out; the lock goes with the process, however that ends."""
  with path.open("a") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(f"{path.parent.parent} is being prepared by another process") from None
    yield


def _chunks(builder: Builder, source: SourceFolder, chunk_rows: int) -> Iterator[Chunk]:
  """The source's rows in chunks of limited length and size of media."""
  seen: set[tuple[str, str]] = set()
  items: list[Record | Rejected] = []
  files: dict[tuple[str, str], int] = {}
  rows = size = 0
  for found in builder.read(source):
    rows += 1
    items += found
    media = {medium for item in found if isinstance(item, Record) for medium in item.media}
    for medium in sorted(media - seen):
      files[medium] = _size(source, medium[1])
      size += files[medium]
    seen |= media
    if rows == chunk_rows or size >= CHUNK_BYTES:
      yield Chunk(rows, items, files)
      items, files, rows, size = [], {}, 0, 0
  if rows:
    yield Chunk(rows, items, files)


def _size(source: SourceFolder, path: str) -> int:
  try:
    return source.file(split_volume(path)[0]).stat().st_size
  except UserError:
    return 0


class _Writer:
  """What has been written so far, by this call or a former one."""

  def __init__(self, builder: Builder, source: SourceFolder, root: pathlib.Path):
    self._builder, self._source, self._root = builder, source, root
    self._numbers: dict[tuple[str, str], int] = {}
    self._broken: dict[tuple[str, str], str] = {}
    self._most: collections.Counter[str] = collections.Counter()
    self._rows = 0
    self._shards: dict[str, list[dict[str, Any]]] = {}
    self._columns: dict[str, dict[str, list[str]]] = {}
    self._identity = hashlib.sha256(f"{builder.name} {builder.version}".encode())
    self.rejected: list[dict[str, Any]] = []
    self._noted: list[dict[str, str]] = []

  @property
  def worthwhile(self) -> bool:
    """Whether there is a usable record, so that it pays to go on."""
    return bool(self._columns)

  def add(self, number: int, chunk: Chunk) -> None:
    """Writes a chunk, unless that is done, and takes it into account."""
    path = self._root / store.CHUNKS / f"{number:05}.json"
    digest = chunk.digest()
    if not path.exists():
      write_atomic(path, json.dumps(self._write(number, chunk) | {"digest": digest}))
    summary = json.loads(path.read_text())
    if summary["digest"] != digest:
      raise UserError(
        f"{self._source.root} is not what {path.parent} was begun with; remove {self._root} "
        "to start from the beginning"
      )
    self._take(summary)

  def _write(self, number: int, chunk: Chunk) -> dict[str, Any]:
    """Writes the shards of a chunk; returns its summary."""
    sound: list[tuple[str, str]] = []
    broken: dict[tuple[str, str], str] = {}
    noted: list[dict[str, str]] = []
    shards: dict[str, dict[str, Any]] = {}
    loaded = self._loaded(list(chunk.files), sound, broken, noted)
    self._write_shard(shards, MEDIA, number, loaded)
    new = {medium: len(self._numbers) + i for i, medium in enumerate(sound)}
    numbers = collections.ChainMap(new, self._numbers)
    reasons = collections.ChainMap(broken, self._broken)
    records = [item for item in chunk.items if isinstance(item, Record)]
    usable = [record for record in records if reasons.keys().isdisjoint(record.media)]
    parts: dict[str, list[Record]] = {}
    for record in usable:
      parts.setdefault(record.split, []).append(record)
    for split, members in parts.items():
      encoded = (store.encode_record(r, [numbers[medium] for medium in r.media]) for r in members)
      self._write_shard(shards, split, number, encoded)
    columns = {
      split: {name: [getattr(record, name) for record in members] for name in store.COLUMNS}
      for split, members in parts.items()
    }
    most: collections.Counter[str] = collections.Counter()
    for record in usable:
      most |= collections.Counter(kind for kind, _ in record.media)
    return {
      "rows": chunk.rows,
      "shards": shards,
      "columns": columns,
      "media": sound,
      "broken": [[*medium, reason] for medium, reason in broken.items()],
      "rejected": list(_rejected(chunk.items, reasons)),
      "noted": noted,
      "media_per_sample": most,
    }

  def _write_shard(
    self, shards: dict[str, dict[str, Any]], part: str, number: int, records: Iterable[bytes]
  ) -> None:
    """Writes one shard and notes it in `shards`, unless there are no records."""
    name = store.shard_name(part, number)
    count = store.write_shard(self._root / name, records)
    if count:
      shards[part] = {"file": name, "records": count}

  def _loaded(
    self,
    files: Sequence[tuple[str, str]],
    sound: list[tuple[str, str]],
    broken: dict[tuple[str, str], str],
    noted: list[dict[str, str]],
  ) -> Iterator[bytes]:
    """What is stored of each file that can be read, a few at a time; fills the other arguments."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for start in range(0, len(files), AHEAD):
        some = files[start : start + AHEAD]
        for medium, data in zip(some, pool.map(self._load, some), strict=True):
          if isinstance(data, str):
            broken[medium] = data
          else:
            sound.append(medium)
            if notes := store.notes_of(data):
              noted.append({"path": medium[1], "notes": "; ".join(notes)})
            yield data

  def _load(self, medium: tuple[str, str]) -> bytes | str:
    """A media file as it is stored, or what is wrong with it."""
    kind, name = medium
    file, index = split_volume(name)
    try:
      path = self._source.file(file)
    except UserError as error:
      return str(error)
    try:
      return store.load_media(path, kind, index)
    except UserError as error:
      return f"{name} {error}"

  def _take(self, summary: dict[str, Any]) -> None:
    self._rows += summary["rows"]
    for medium in summary["media"]:
      self._numbers[tuple(medium)] = len(self._numbers)
    self._broken.update({(kind, path): reason for kind, path, reason in summary["broken"]})
    for part, shard in summary["shards"].items():
      self._shards.setdefault(part, []).append(shard)
    for split, columns in summary["columns"].items():
      mine = self._columns.setdefault(split, {name: [] for name in store.COLUMNS})
      for name in store.COLUMNS:
        mine[name] += columns[name]
    self.rejected += summary["rejected"]
    self._noted += summary["noted"]
    self._most |= collections.Counter(summary["media_per_sample"])
    self._identity.update(summary["digest"].encode())

  def finish(self) -> dict[str, Any]:
    """Writes what is left to write, `dataset.json` last."""
    if not self.worthwhile:
      reason = f", the first: {self.rejected[0]['reason']}" if self.rejected else ""
      raise UserError(f"{self._source.root} has no usable record{reason}")
    for name, items in ((store.REJECTED, self.rejected), (store.NOTED, self._noted)):
      lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
      write_atomic(self._root / name, "".join(lines))
    for split, columns in self._columns.items():
      write_atomic(self._root / store.INDEX / f"{split}.json", json.dumps(columns))
    summary = self._summary()
    write_atomic(self._root / store.DATASET, json.dumps(summary, indent=2) + "\n")
    shutil.rmtree(self._root / store.CHUNKS)
    return summary

  def _summary(self) -> dict[str, Any]:
    declared = self._builder
    rejected = collections.Counter(item["split"] for item in self.rejected)
    tasks = {task for columns in self._columns.values() for task in columns["task"]}
    found = {split: len(columns["group"]) for split, columns in self._columns.items()}
    kinds = collections.Counter(f"{kind}s" for kind, _ in self._numbers)
    return {
      "format": store.FORMAT,
      "name": declared.name,
      "version": f"{declared.version}-{self._identity.hexdigest()[:12]}",
      "url": declared.url,
      "licence": declared.licence,
      "group": declared.group,
      "answers": declared.answers,
      "interleaved": declared.interleaved,
      "features": store.FEATURES,
      "tasks": [task for task in declared.tasks if task in tasks],
      "media_per_sample": self._most,
      "rows": self._rows,
      "records": found,
      "rejected": rejected,
      "noted": len(self._noted),
      "media": kinds,
      "published": declared.published,
      "absent": self._source.absent,
      "shared_groups": _shared(self._columns),
      "shards": self._shards,
    }


def _shared(columns: dict[str, dict[str, list[str]]]) -> dict[str, int]:
  """How many groups lie in both of two splits, where any does."""
  groups = {split: set(columns[split]["group"]) for split in columns}
  shared = {f"{a}/{b}": len(groups[a] & groups[b]) for a, b in itertools.combinations(groups, 2)}
  return {pair: count for pair, count in shared.items() if count}


def shortfalls(summary: dict[str, Any]) -> list[str]:
  """How a prepared data set differs from the counts that its owner publishes, one line each."""
  found = collections.Counter(summary["records"])
  found.update(summary["rejected"])
  found["records"], found["rows"] = found.total(), summary["rows"]
  found.update(summary["media"])
  absent = f" (not found: {', '.join(summary['absent'])})" if summary["absent"] else ""
  return [
    f"{part}: {found[part]:,} of the {published:,} published{absent if not found[part] else ''}"
    for part, published in summary["published"].items()
    if found[part] != published
  ]


def _rejected(
  items: list[Record | Rejected], broken: Mapping[tuple[str, str], str]
) -> Iterator[dict[str, Any]]:
  """The rejected rows, and the records with broken media, in the source's order."""
  for item in items:
    if isinstance(item, Rejected):
      yield dataclasses.asdict(item)
    else:
      reasons = [broken[medium] for medium in item.media if medium in broken]
      if reasons:
        yield dataclasses.asdict(Rejected(item.place, item.id, item.split, reasons[0]))
