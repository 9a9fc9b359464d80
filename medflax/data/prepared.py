"""A data set that `medflax.tools.prepare_data` has prepared, as a `Dataset`. See docs/data.md."""

import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from medflax.data.builders import store
from medflax.data.builders.base import MEDIA
from medflax.data.documents import (
  IMAGE,
  IMAGE_TOKEN,
  MEDIA_RANKS,
  VOLUME,
  Document,
  Media,
  Sample,
  Source,
  Text,
)
from medflax.data.exclude import read_exclusions, report_exclusions
from medflax.data.folder import ALL_TASKS
from medflax.data.media_chain import Draw, MediaChain, sample_text
from medflax.data.support import TRAIN_PASSES, PoolEpisodes, split_episodes
from medflax.utils import UserError, nearest

_AT_ONCE = 4096  # records


class PreparedDataset:
  """Random access to a prepared folder; its media are decoded when a sample is read.

  Attributes:
    name: of the builder.
    version: of the data set, with a hash of its content.
    tasks: "vqa" (all records), then the tasks that records have.
    splits: names of the splits, with how many records of each are used.
    media_per_sample: the most media of each kind that one record has.
    interleaved: whether its records are documents, read by `documents`, not by `episodes`.
    info: all of `dataset.json`.
    skipped: records left out by `exclude`: dicts of `split`, `id`, `reason`.
    noted: files that are used in spite of what is odd about them: dicts of `path` and `notes`.
  """

  def __init__(
    self,
    root: str | os.PathLike,
    image_size: Sequence[int],
    volume_size: Sequence[int],
    *,
    exclude: str | os.PathLike = "",
    transforms: Mapping[str, Any] = MappingProxyType({}),
    seed: int = 0,
  ):
    """Reads the index, no media.

    Args:
      root: the prepared folder.
      image_size: (H, W) that images are fitted to.
      volume_size: (D, H, W) that volumes are fitted to; signals keep their length.
      exclude: a list of records to leave out, see `exclude.read_exclusions`; "": none.
      transforms: of each kind of media, see `MediaChain`; those of chance in training alone.
      seed: decides the order of episodes, their support samples and draws.

    Raises:
      UserError: if the folder is none, is unfinished, or lacks one of its files, or if there is no
        such list.
    """
    self._root = pathlib.Path(root)
    sizes = {IMAGE: tuple(image_size), VOLUME: tuple(volume_size)}
    self._chain, self._seed = MediaChain(sizes, transforms, seed), seed
    self.info = _read_info(self._root)
    self.name: str = self.info["name"]
    self.version: str = self.info["version"]
    self.interleaved: bool = self.info["interleaved"]
    self.tasks: tuple[str, ...] = (
      ALL_TASKS,
      *(task for task in self.info["tasks"] if task != ALL_TASKS),
    )
    self.media_per_sample: Mapping[str, int] = {
      kind: self.info["media_per_sample"].get(kind, 0) for kind in MEDIA_RANKS
    }
    self._shards = {part: self._open(part) for part in self.info["shards"]}
    records = self.info["records"]
    self._columns = {
      split: json.loads(self._content(f"{store.INDEX}/{split}.json")) for split in records
    }
    self._used: Mapping[str, Sequence[int]] = {s: range(count) for s, count in records.items()}
    self.skipped: list[dict[str, str]] = []
    self.noted: list[dict[str, str]] = [*map(json.loads, self._content(store.NOTED).splitlines())]
    if os.fspath(exclude):
      self._exclude(exclude)
    self.splits: Mapping[str, int] = {split: len(used) for split, used in self._used.items()}

  def _content(self, name: str) -> bytes:
    try:
      return (self._root / name).read_bytes()
    except OSError:
      raise UserError(f"{self._root} lacks {name}; prepare it again elsewhere") from None

  def _exclude(self, path: str | os.PathLike) -> None:
    """Leaves out the records that a list names."""
    listed = read_exclusions(path, self.name)
    if not listed:
      return
    ids = {split: [text.id for text in self.texts(split)] for split in self._used}
    report_exclusions(path, self.name, listed, itertools.chain(*ids.values()))
    reason = f"in {path}"
    self._used = {
      split: [index for index, name in enumerate(names) if name not in listed]
      for split, names in ids.items()
    }
    self.skipped = [
      {"split": split, "id": name, "reason": reason}
      for split, names in ids.items()
      for name in names
      if name in listed
    ]

  def _open(self, part: str) -> ArrayRecordDataSource:
    shards = self.info["shards"][part]
    missing = [shard["file"] for shard in shards if not (self._root / shard["file"]).is_file()]
    if missing:
      raise UserError(f"{self._root} lacks {missing[0]}; prepare it again elsewhere")
    try:
      source = ArrayRecordDataSource([str(self._root / s["file"]) for s in shards])
      found = len(source)
    except RuntimeError:  # of a file that has been cut short
      raise self._damaged(part) from None
    if found != sum(shard["records"] for shard in shards):
      raise self._damaged(part)
    return source

  def _damaged(self, part: str, where: str = "") -> UserError:
    return UserError(f"{self._root} has damaged {part} shards{where}; prepare it again elsewhere")

  def samples(self, task: str, split: str, *, augmented: bool = False) -> "PreparedSamples":
    """Random access to the records of a task and split, in the source's order.

    With `augmented` the transforms of chance are drawn.

    Raises:
      UserError: if there is no such task or split, or it has no records.
    """
    if task not in self.tasks:
      raise UserError(f"data set {self.name!r} has no task {task!r}{nearest(task, self.tasks)}")
    if split not in self.splits:
      raise UserError(f"data set {self.name!r} has no split {split!r}{nearest(split, self.splits)}")
    tasks = self._columns[split]["task"]
    rows = [i for i in self._used[split] if task in (ALL_TASKS, tasks[i])]
    if not rows:
      have = ", ".join(f"{count:,} {split}" for split, count in self.splits.items())
      raise UserError(
        f"data set {self.name!r} has no records of task {task!r} in split {split!r} ({have} in "
        "all); choose another split"
      )
    return PreparedSamples(self, split, rows, self._columns[split], augmented)

  def episodes(
    self, task: str, split: str, num_shots: int | tuple[int, int], num_episodes: int | None = None
  ) -> PoolEpisodes:
    """Queries of one split with support samples from the training split; see `split_episodes`.

    Raises:
      UserError: as `samples`, if the training split is too small for `num_shots`, or if the
        data set is interleaved.
    """
    if self.interleaved:
      raise UserError(f"data set {self.name!r} holds documents, not questions; it has no episodes")
    training = split == "train"
    return split_episodes(
      self.samples(task, split, augmented=training),
      lambda: self.samples(ALL_TASKS, "train", augmented=training),
      num_shots if isinstance(num_shots, int) else (num_shots[0], num_shots[1]),
      seed=(self._seed, list(self.splits).index(split)),
      training=training,
      num_episodes=num_episodes,
    )

  def documents(self, task: str, split: str) -> "PreparedDocuments":
    """The interleaved documents of a task and split; training goes over them again and again.

    Raises:
      UserError: as `samples`, or if the data set is not interleaved.
    """
    if not self.interleaved:
      raise UserError(f"data set {self.name!r} holds questions, not documents; use its episodes")
    training = split == "train"
    samples = self.samples(task, split, augmented=training)
    return PreparedDocuments(samples, TRAIN_PASSES if training else 1)

  def sample(self, split: str, index: int, epoch: int | None = None) -> Sample:
    """Reads record `index` of a split and decodes its media.

    Args:
      split: a key of `splits`.
      index: of the record.
      epoch: of the draws of transforms; None: nothing is left to chance.
    """
    record = self._record(split, index)
    text = sample_text(record["question"], record["answer"], record["choices"])
    draw = lambda number: None if epoch is None else Draw(epoch, number, text)
    media = tuple(self._media(kind, number, draw(number)) for kind, number in record["media"])
    return self._sample(split, record, media)

  def text(self, split: str, index: int) -> Sample:
    """Record `index` of a split without its media."""
    return self._sample(split, self._record(split, index), ())

  def texts(self, split: str) -> Iterator[Sample]:
    """All records of a split without their media, also those left out; much faster than `text`.

    Raises:
      UserError: if the shards are damaged.
    """
    count = len(self._shards[split])
    for start in range(0, count, _AT_ONCE):
      try:
        records = self._shards[split].__getitems__(range(start, min(start + _AT_ONCE, count)))
      except RuntimeError:  # the shards have checksums
        raise self._damaged(split) from None
      yield from (self._sample(split, json.loads(record), ()) for record in records)

  def media_keys(self, split: str, index: int) -> tuple[tuple[str, int], ...]:
    """The kind and number of each of the media of record `index`."""
    return tuple((kind, number) for kind, number in self._record(split, index)["media"])

  def _record(self, split: str, index: int) -> dict[str, Any]:
    return json.loads(self.stored(split, index))

  def _sample(self, split: str, record: Mapping[str, Any], media: tuple[Media, ...]) -> Sample:
    return Sample(
      id=record["id"],
      media=media,
      question=record["question"],
      answer=record["answer"],
      source=Source(self.name, self.version, split),
      task=record["task"],
      choices=tuple(record["choices"]),
      group=record["group"],
      meta=record["meta"] | {"answer_type": record["answer_type"]},
    )

  def stored(self, part: str, index: int) -> bytes:
    """Record `index` of a split or of `MEDIA` as it lies in the shards.

    Raises:
      UserError: if the shards are damaged.
    """
    try:
      return self._shards[part][index]
    except RuntimeError:  # the shards have checksums
      raise self._damaged(part, f" (record {index})") from None

  def _media(self, kind: str, number: int, draw: Draw | None) -> Media:
    stored = self.stored(MEDIA, number)
    scan = store.decode_media(stored, smallest=self._chain.smallest(kind))
    try:
      return self._chain(scan, draw)
    except UserError as error:
      raise UserError(f"{self.name}: {kind} {number} {error}") from None


class PreparedSamples:
  """Some records of a split as a `PoolSource`.

  Attributes:
    groups: the records' groups.
    topics: what is asked.
  """

  def __init__(
    self,
    dataset: PreparedDataset,
    split: str,
    rows: Sequence[int],
    columns: Mapping[str, Sequence[Any]],
    augmented: bool,
  ):
    self._dataset, self._split, self._rows = dataset, split, rows
    self._augmented = augmented
    self.groups: Sequence[str] = [columns["group"][row] for row in rows]
    self.topics: Sequence[str] = [columns["topic"][row] for row in rows]

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Sample:
    return self.read(index, 0)

  def read(self, index: int, epoch: int) -> Sample:
    """The record, with the draws of an epoch if there are any."""
    return self._dataset.sample(self._split, self._rows[index], epoch if self._augmented else None)

  def text(self, index: int) -> Sample:
    """The record without its media; nothing is decoded."""
    return self._dataset.text(self._split, self._rows[index])

  def media_keys(self, index: int) -> tuple[tuple[str, int], ...]:
    """The kind and number of each of the record's media."""
    return self._dataset.media_keys(self._split, self._rows[index])


class PreparedDocuments(Sequence[Document]):
  """Interleaved records as documents: text to be learnt, with the media where they stand."""

  def __init__(self, samples: PreparedSamples, passes: int):
    self._samples, self._passes = samples, passes

  def __len__(self) -> int:
    return len(self._samples) * self._passes

  def __getitem__(self, index: int) -> Document:
    if not 0 <= index < len(self):
      raise IndexError(f"document {index} of {len(self)}")
    epoch, index = divmod(index, len(self._samples))
    sample = self._samples.read(index, epoch)
    first, *texts = sample.answer.split(IMAGE_TOKEN)
    segments: list[Text | Media] = [Text(first, loss=True)] if first else []
    for media, text in zip(sample.media, texts, strict=True):
      segments += [media, Text(text, loss=True)] if text else [media]
    return Document(tuple(segments), sample.source, sample.id)


def _read_info(root: pathlib.Path) -> dict[str, Any]:
  if not os.fspath(root) or not root.is_dir():
    raise UserError(f"prepared folder {str(root)!r} does not exist; correct --config.data.root")
  if not (root / store.DATASET).exists():
    state = "is unfinished; run the same" if (root / store.CHUNKS).is_dir() else "is none; run"
    raise UserError(f"prepared folder {str(root)!r} {state} medflax.tools.prepare_data")
  info = json.loads((root / store.DATASET).read_text())
  if info["format"] != store.FORMAT:
    raise UserError(f"{root} was prepared by another version of medflax; prepare it again")
  return info
