"""From a data set to batches: mixture, shards, workers, packing.

  episodes or documents → shuffle → deal out to shards → encode   for each entry of data.train
  → mix by weights → threads or worker processes → pack each shard → collate

Every stage is a function of (config, seed) and the position, so an iterator's state is small and
resuming is exact. Each shard gives its own rows of every global batch, so that neither batches nor
states depend on which process reads a shard, or with how many workers.
"""

import dataclasses
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import ml_collections
import numpy as np

from medflax.data.documents import (
  ENDLESS,
  IMAGE,
  VOLUME,
  Dataset,
  Document,
  Episode,
  Media,
  Prompt,
  episode_document,
)
from medflax.data.encode import (
  Batch,
  Encoded,
  RowShape,
  collate,
  encode_document,
  media_options,
)
from medflax.data.loss_words import LossWords
from medflax.data.mixture import resolve
from medflax.data.packing import PackedRows
from medflax.data.tokenizer import Tokenizer
from medflax.utils import UserError, nearest

CHANNELS = {IMAGE: 3, VOLUME: 1}

# Arrays of workers as large as this come through shared memory; smaller ones are not worth a file.
_SHARED_BYTES = 2**16
# Documents that a thread reads at a time: switching costs as much as a document's bookkeeping.
_CHUNK = 8
# Threads of the process (or of each worker process) that read ahead, and how many chunks.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
_STATE_FORMAT = 2
# What is counted for all data and for each entry of the mixture.
_COUNTED = ("documents", "tokens", "media", "dropped_chunks", "cut_tokens")


def with_media_slots(
  config: ml_collections.ConfigDict, media_per_sample: Mapping[str, int]
) -> ml_collections.ConfigDict:
  """The whole config with every `data.max_media` of -1 replaced by what the data set needs.

  That is room for the longest training document: the media of as many samples as it has.
  """
  samples = 1 + max((np.max(entry.num_shots) for entry in config.data.train.values()), default=0)
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for kind, slots in config.data.max_media.items():
      if slots < 0:
        config.data.max_media[kind] = int(samples) * media_per_sample.get(kind, 0)
  return config


def row_shape(config: ml_collections.ConfigDict) -> RowShape:
  """The shapes of one row of a training batch.

  Args:
    config: `config.data`; a kind with 0 slots in `max_media` gets no array.

  Raises:
    UserError: if a kind of media has no fixed size in the config.
  """
  media = {}
  for kind in sorted(config.max_media):
    if config.max_media[kind]:
      if kind not in CHANNELS:
        raise UserError(f"data.max_media.{kind}: unknown kind{nearest(kind, CHANNELS)}")
      media[kind] = (config.max_media[kind], *config[f"{kind}_size"], CHANNELS[kind])
  return RowShape(config.max_tokens, media, inline=config.media_tokens > 0)


@dataclasses.dataclass(frozen=True)
class Encode:
  """An `Episode`, or a `Document` that is one already, to `Encoded`.

  `weigh` tells what their tokens count for, `targets` names the support answers to learn besides
  the query's, `entry` the part of the mixture.
  """

  tokenizer: Tokenizer
  prompt: Prompt
  media: Mapping[str, Any]  # of `media_options`
  shape: RowShape
  weigh: LossWords
  targets: str = "all"
  entry: str = ""

  def __call__(self, item: Episode | Document) -> Encoded:
    if isinstance(item, Episode):
      item = episode_document(item, self.prompt, targets=self.targets)
    encoded = encode_document(
      item,
      self.tokenizer,
      **self.media,
      weigh=self.weigh,
      max_tokens=self.shape.length,
      max_media={kind: slots for kind, (slots, *_) in self.shape.media.items()},
    )
    encoded["entry"] = self.entry
    return encoded


def _leave_interrupts(index: int, count: int) -> None:
  """Leaves Ctrl-C, which a terminal sends to workers as well, to the process that closes them."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)


def _to_arrays(chunk: Sequence[Encoded]) -> list[dict[str, Any]]:
  """Media as plain arrays, which workers hand over in shared memory."""
  arrays = lambda encoded: [(media.kind, media.array) for media in encoded["media"]]
  return [encoded | {"media": arrays(encoded)} for encoded in chunk]


def _from_arrays(chunk: Sequence[dict[str, Any]]) -> list[Encoded]:
  """Copies, since shared memory is scarce and a document may wait for its group to fill."""
  media = lambda encoded: [Media(np.array(array), kind) for kind, array in encoded["media"]]
  return [Encoded(**encoded | {"media": media(encoded)}) for encoded in chunk]


def _each(chunks: grain.DatasetIterator) -> Iterator[Encoded]:
  try:
    for chunk in chunks:
      yield from chunk
  finally:
    chunks.close()


def _num_shots(value: Any) -> int | tuple[int, int]:
  return value if isinstance(value, int) else (value[0], value[1])


def _training_items(dataset: Dataset, name: str, entry: Any) -> Sequence:
  """What an entry of the mixture trains on: episodes or, of interleaved data, documents."""
  if entry.task not in dataset.tasks:
    hint = nearest(entry.task, dataset.tasks)
    raise UserError(f"data.train.{name}: {dataset.name} has no task {entry.task!r}{hint}")
  part, task = resolve(dataset, entry.task)
  if getattr(part, "interleaved", False):
    items = part.documents(task, "train")  # pyright: ignore[reportAttributeAccessIssue]
  else:
    items = part.episodes(task, "train", _num_shots(entry.num_shots))
  if not len(items):
    raise UserError(f"data.train.{name}: {dataset.name} has no training data of {entry.task!r}")
  return items


def _weights(items: Mapping[str, Sequence], config: ml_collections.ConfigDict) -> list[float]:
  """Of the entries of the mixture: as given, or by their sizes where that is left to the data."""
  given = {name: config.train[name].weight for name in items}
  if all(weight > 0 for weight in given.values()):
    return list(given.values())
  if any(weight != -1 for weight in given.values()):
    name = next(name for name, weight in given.items() if weight <= 0)
    raise UserError(
      f"data.train.{name}.weight must be positive, or -1 for all entries: then they are mixed by "
      "their sizes; delete the entry to leave it out"
    )
  for name, part in items.items():
    if len(part) >= ENDLESS:
      raise UserError(f"data.train.{name}.weight is -1, but its data are endless; give a weight")
  return [len(part) ** (1 / config.temperature) for part in items.values()]


def _training_documents(
  dataset: Dataset,
  encode: Encode,
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  shard_count: int,
) -> list[grain.MapDataset]:
  """The endless mixture of config.data.train as `Encoded` documents of each shard."""
  entries = sorted(config.train.items())
  if not entries:
    raise UserError("data.train names no task to train on; add an entry")
  items = {name: _training_items(dataset, name, entry) for name, entry in entries}
  parts = []
  for number, (name, entry) in enumerate(entries):
    part = grain.MapDataset.source(items[name])
    if len(items[name]) < ENDLESS:
      part = part.shuffle(seed=int(np.random.SeedSequence((seed, number)).generate_state(1)[0]))
    to_encoded = dataclasses.replace(encode, targets=entry.targets, entry=name)
    # Dealing out each part, not the mixture, keeps every shard's mixture at the weights.
    part = part.repeat()
    parts.append([part[shard::shard_count].map(to_encoded) for shard in range(shard_count)])
  weights = _weights(items, config)
  return [grain.MapDataset.mix(shard, weights) for shard in zip(*parts, strict=True)]


class TrainIterator:
  """Endless batches of this process's rows; state and counters are those after the last batch."""

  def __init__(
    self, packed: PackedRows, shards: Sequence[int], shard_count: int, rows: int, shape: RowShape,
    pad_id: int,
  ):  # fmt: skip
    """Use `train_iterator`.

    Args:
      packed: the rows of `shards`.
      shards: those of this process, of `shard_count` in all.
      shard_count: how many there are in all.
      rows: of a batch from each shard.
      shape: of a row.
      pad_id: the token that fills rows up.
    """
    self._packed, self._shard_count = packed, shard_count
    self._order = [shard for shard in shards for _ in range(rows)]
    self._shape, self._pad_id = shape, pad_id
    self._counts: dict[int, dict[str, int]] = {shard: {} for shard in shards}

  @property
  def counters(self) -> dict[str, int]:
    """Totals of this process's shards since the start of training, resumed with the state.

    `documents`, `tokens`, `media` and what truncation took of them, `dropped_chunks` (shots) and
    `cut_tokens`: of all, and as `<entry>/documents` and so on of each entry of the mixture;
    `token_slots` and `media_slots`: the room there was; `truncated_documents`.
    """
    names = dict.fromkeys(name for counts in self._counts.values() for name in counts)
    return {name: sum(c.get(name, 0) for c in self._counts.values()) for name in names}

  def __iter__(self) -> "TrainIterator":
    return self

  def __next__(self) -> Batch:
    rows = [self._packed.next_row(shard) for shard in self._order]
    for shard, row in zip(self._order, rows, strict=True):
      self._count(self._counts[shard], row)
    return collate(rows, self._shape, self._pad_id)

  def _count(self, counts: dict[str, int], row: Sequence[Encoded]) -> None:
    def add(name: str, amount: int) -> None:
      counts[name] = counts.get(name, 0) + amount

    for document in row:
      sizes = (1, len(document["tokens"]), len(document["media"]))
      taken = (document["dropped_chunks"], document["cut_tokens"])
      for name, amount in zip(_COUNTED, (*sizes, *taken), strict=True):
        add(name, amount)
        add(f"{document['entry']}/{name}", amount)
      add("truncated_documents", int(any(taken)))
    add("token_slots", self._shape.length)
    add("media_slots", sum(slots for slots, *_ in self._shape.media.values()))

  def get_state(self) -> bytes:
    """A line of JSON from which an iterator of the same config goes on after the last batch."""
    shards = {
      shard: {"place": place, "counters": self._counts[shard]}
      for shard, place in self._packed.get_state().items()
    }
    state = {"format": _STATE_FORMAT, "data.shards": self._shard_count, "shards": shards}
    return json.dumps(state).encode()

  def set_state(self, state: bytes) -> None:
    """Continues from `get_state`.

    Args:
      state: lines of all processes, of however many there were, in any order; or this process's.

    Raises:
      UserError: if the state is damaged or of another number of shards.
    """
    shards = {}
    for line in state.splitlines() or [b""]:
      try:
        loaded = json.loads(line)
        saved_format, shard_count = loaded["format"], loaded.get("data.shards")
        shards |= {int(shard): kept for shard, kept in loaded.get("shards", {}).items()}
      except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
          "the data iterator's saved state is damaged; use another checkpoint"
        ) from None
      if saved_format != _STATE_FORMAT:
        raise UserError(f"the data iterator's state has format {saved_format}, not {_STATE_FORMAT}")
      if shard_count != self._shard_count:
        raise UserError(
          f"cannot resume the data iterator: saved with {shard_count} shards, this run has "
          f"{self._shard_count}; set data.shards = {shard_count}"
        )
    if lost := self._counts.keys() - shards.keys():
      raise UserError(
        f"the data iterator's state lacks shard {min(lost)}; resume with the files of all processes"
      )
    self._packed.set_state({shard: shards[shard]["place"] for shard in self._counts})
    self._counts = {shard: shards[shard]["counters"] for shard in self._counts}

  def close(self) -> None:
    """Ends threads and worker processes."""
    self._packed.close()


def train_iterator(
  dataset: Dataset,
  tokenizer: Tokenizer,
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
) -> TrainIterator:
  """Endless packed batches of `config.data.train`, exactly resumable.

  Args:
    dataset: where episodes and documents come from.
    tokenizer: from `load_tokenizer`.
    config: the whole config; reads `data`, `prompt` and `train.batch_size`.
    seed: of all order; the same (config, seed) gives the same batches.
    process_index, process_count: each process yields its `train.batch_size / process_count` rows
      of the global batch, which is the same for every number of processes that divides
      `data.shards`.

  With `data.num_workers` > 0 documents are read in so many processes; their program must have
  parsed absl's flags. With 0 threads of this process read ahead. The batches are the same.

  Raises:
    UserError: if the mixture or the batch size does not fit.
  """
  shard_count = process_count if config.data.shards == -1 else config.data.shards
  if shard_count < 1 or shard_count % process_count:
    raise UserError(
      f"data.shards = {shard_count} must be a multiple of the {process_count} processes"
    )
  rows, rest = divmod(config.train.batch_size, shard_count)
  if rest:
    raise UserError(
      f"train.batch_size = {config.train.batch_size} must be a multiple of the {shard_count} shards"
      f" that {process_count} processes read"
    )
  each = shard_count // process_count
  shards = range(process_index * each, (process_index + 1) * each)
  prompt, shape = Prompt(**config.prompt), row_shape(config.data)
  words = LossWords(config.data.loss_words)
  encode = Encode(tokenizer, prompt, media_options(config.data), shape, words)
  documents = _training_documents(dataset, encode, config.data, seed=seed, shard_count=shard_count)

  def read(start: int) -> Iterator[Encoded]:
    stream = grain.MapDataset.mix([documents[shard][start:] for shard in shards])
    stream = stream.batch(_CHUNK, batch_fn=list)
    if not config.data.num_workers:
      return _each(iter(stream.to_iter_dataset(_READ)))
    stream = stream.map(_to_arrays).to_iter_dataset(_READ)
    stream = grain.experimental.WithOptionsIterDataset(
      stream, grain.experimental.DatasetOptions(min_shm_size=_SHARED_BYTES)
    )
    workers = grain.MultiprocessingOptions(config.data.num_workers)
    stream = stream.mp_prefetch(workers, worker_init_fn=_leave_interrupts)
    return _each(iter(stream.map(_from_arrays)))

  packed = PackedRows(read, shards, shape, config.data.packing_bins, seed)
  return TrainIterator(packed, shards, shard_count, rows, shape, tokenizer.pad_id)
