"""From a data set to batches: mixture, shards, workers, packing, prefetch.

  episodes → shuffle → shard by process → document → encode   for each entry of config.data.train
  → mix by weights → threads or worker processes → pack → collate → prefetch

Every stage is a function of (config, seed) and the position, so an iterator's state is small and
resuming is exact.
"""

import dataclasses
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import grain
import ml_collections
import numpy as np

from medflax.data.documents import (
  ENDLESS,
  IMAGE,
  VOLUME,
  Dataset,
  Episode,
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
from medflax.data.packing import PackIterDataset
from medflax.data.tokenizer import Tokenizer
from medflax.utils import UserError, nearest

CHANNELS = {IMAGE: 3, VOLUME: 1}

# Threads of the process (or of each worker process) that read ahead, and how far.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=32)
_STATE_FORMAT = 1


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
class EncodeEpisode:
  """An `Episode` to `Encoded`; `targets` names the support answers to learn besides the query's."""

  tokenizer: Tokenizer
  prompt: Prompt
  media: Mapping[str, Any]  # of `media_options`
  shape: RowShape
  targets: str = "all"

  def __call__(self, episode: Episode) -> Encoded:
    return encode_document(
      episode_document(episode, self.prompt, targets=self.targets),
      self.tokenizer,
      **self.media,
      max_tokens=self.shape.length,
      max_media={kind: slots for kind, (slots, *_) in self.shape.media.items()},
    )


def _num_shots(value: Any) -> int | tuple[int, int]:
  return value if isinstance(value, int) else (value[0], value[1])


def _training_documents(
  dataset: Dataset,
  encode: EncodeEpisode,
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  process_index: int,
  process_count: int,
) -> grain.MapDataset:
  """The endless mixture of config.data.train as `Encoded` documents of this process."""
  parts, weights = [], []
  for number, (name, entry) in enumerate(sorted(config.data.train.items())):
    if entry.task not in dataset.tasks:
      hint = nearest(entry.task, dataset.tasks)
      raise UserError(f"data.train.{name}: {dataset.name} has no task {entry.task!r}{hint}")
    if entry.weight <= 0:
      raise UserError(
        f"data.train.{name}.weight must be positive; delete the entry to leave it out"
      )
    episodes = dataset.episodes(entry.task, "train", _num_shots(entry.num_shots))
    if not len(episodes):
      raise UserError(f"data.train.{name}: {dataset.name} has no training data of {entry.task!r}")
    part = grain.MapDataset.source(episodes)
    if len(episodes) < ENDLESS:
      part = part.shuffle(seed=int(np.random.SeedSequence((seed, number)).generate_state(1)[0]))
    # Sharding each part, not the mixture, keeps every process's mixture at the weights.
    part = part.repeat()[process_index::process_count]
    parts.append(part.map(dataclasses.replace(encode, targets=entry.targets)))
    weights.append(entry.weight)
  if not parts:
    raise UserError("data.train names no task to train on; add an entry")
  return grain.MapDataset.mix(parts, weights)


class TrainIterator:
  """Endless batches of this process's rows; state and counters are those after the last batch.

  Attributes:
    counters: totals since the start of training, resumed with the state: `documents`; `tokens`
      of `token_slots`; `media` of `media_slots`; `truncated_documents`, which lost
      `dropped_chunks` shots and `cut_tokens` tokens of text.
  """

  def __init__(
    self,
    rows: grain.IterDataset,
    to_batch: Callable[[list[list[Encoded]]], Batch],
    layout: dict[str, int],
  ):
    """Use `train_iterator`.

    Args:
      rows: yields lists of rows, each a list of documents.
      to_batch: collates them.
      layout: what the state depends on and a resumed run must share.
    """
    self._iterator, self._to_batch, self._layout = iter(rows), to_batch, layout
    self.counters = dict.fromkeys(
      (
        *("documents", "tokens", "token_slots", "media", "media_slots"),
        *("truncated_documents", "dropped_chunks", "cut_tokens"),
      ),
      0,
    )

  def __iter__(self) -> "TrainIterator":
    return self

  def __next__(self) -> Batch:
    rows = next(self._iterator)
    batch = self._to_batch(rows)
    documents = [document for row in rows for document in row]
    self._count("documents", len(documents))
    self._count("tokens", sum(len(document["tokens"]) for document in documents))
    self._count("token_slots", batch["tokens"].size)
    self._count("media", sum(len(document["media"]) for document in documents))
    slots = (array.size for key, array in batch.items() if key.startswith("media_ordinal/"))
    self._count("media_slots", sum(slots))
    for document in documents:
      if document["dropped_chunks"] or document["cut_tokens"]:
        self._count("truncated_documents", 1)
        self._count("dropped_chunks", document["dropped_chunks"])
        self._count("cut_tokens", document["cut_tokens"])
    return batch

  def _count(self, name: str, amount: int) -> None:
    self.counters[name] += amount

  def get_state(self) -> bytes:
    """JSON from which an iterator of the same config goes on after the last batch."""
    state = {"format": _STATE_FORMAT, "layout": self._layout, "counters": self.counters}
    return json.dumps(state | {"stream": self._iterator.get_state()}).encode()

  def set_state(self, state: bytes) -> None:
    """Continues from `get_state`.

    Raises:
      UserError: if the state is damaged or of another number of workers or processes.
    """
    try:
      loaded = json.loads(state)
      saved_format, layout = loaded["format"], loaded["layout"]
    except (ValueError, KeyError, TypeError):
      raise UserError(
        "the data iterator's saved state is damaged; use another checkpoint"
      ) from None
    if saved_format != _STATE_FORMAT:
      raise UserError(f"the data iterator's state has format {saved_format}, not {_STATE_FORMAT}")
    for name, here in self._layout.items():
      if layout.get(name) != here:
        raise UserError(
          f"cannot resume the data iterator: saved with {name} = {layout.get(name)}, this run has "
          f"{here}; use the same"
        )
    self._iterator.set_state(loaded["stream"])
    self.counters = loaded["counters"]

  def close(self) -> None:
    """Ends threads and worker processes."""
    self._iterator.close()


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
    dataset: where episodes come from.
    tokenizer: from `load_tokenizer`.
    config: the whole config; reads `data`, `prompt` and `train.batch_size`.
    seed: of all order; the same (config, seed) gives the same batches.
    process_index, process_count: processes see disjoint documents, which together are those
      a single process would see. Each yields `train.batch_size / process_count` rows.

  With `data.num_workers` > 0 documents are read in so many processes; their program must have
  parsed absl's flags. With 0 threads of this process read ahead.

  Raises:
    UserError: if the mixture or the batch size does not fit.
  """
  local_rows, rest = divmod(config.train.batch_size, process_count)
  if rest:
    raise UserError(
      f"train.batch_size = {config.train.batch_size} must be a multiple of the "
      f"{process_count} processes"
    )
  prompt, shape = Prompt(**config.prompt), row_shape(config.data)
  encode = EncodeEpisode(tokenizer, prompt, media_options(config.data), shape)
  documents = _training_documents(
    dataset, encode, config, seed=seed, process_index=process_index, process_count=process_count
  ).to_iter_dataset(_READ)
  if config.data.num_workers:
    documents = documents.mp_prefetch(grain.MultiprocessingOptions(config.data.num_workers))
  packed = PackIterDataset(documents, shape, config.data.packing_bins, seed)
  return TrainIterator(
    packed.batch(local_rows, batch_fn=list),
    lambda rows: collate(rows, shape, tokenizer.pad_id),
    {
      "data.num_workers": config.data.num_workers,
      "process_index": process_index,
      "process_count": process_count,
    },
  )


@runtime_checkable
class Resumable(Protocol):
  """What `prefetch_to_device` reads from."""

  counters: dict[str, int]

  def __next__(self) -> Batch: ...
  def get_state(self) -> bytes: ...


class prefetch_to_device:
  """Runs an iterator ahead in a thread, so that host work and transfers overlap compute.

  A class in lower case, because it is called like a function.

  Attributes:
    wait_seconds: how long the consumer has waited for batches in all.
    counters: the iterator's, as of the batch last handed out.
  """

  def __init__(self, iterator: Resumable, put: Callable[[Batch], Any], size: int = 2):
    """Starts the thread.

    Args:
      iterator: yields NumPy batches; from here on only the thread touches it.
      put: sends a batch to the devices.
      size: how many batches to hold ready.
    """
    self._state, self.counters = iterator.get_state(), dict(iterator.counters)
    self.wait_seconds = 0.0
    self._ready: queue.Queue = queue.Queue(size)
    self._stop = threading.Event()
    self._thread = threading.Thread(
      target=self._produce, args=(iterator, put), name="prefetch", daemon=True
    )
    self._thread.start()

  def _produce(self, iterator: Resumable, put: Callable[[Batch], Any]) -> None:
    while not self._stop.is_set():
      try:
        item = (put(next(iterator)), iterator.get_state(), dict(iterator.counters))
      except BaseException as error:  # handed to the consumer, StopIteration included
        item = error
      self._offer(item)
      if isinstance(item, BaseException):
        return

  def _offer(self, item: Any) -> None:
    while not self._stop.is_set():
      try:
        return self._ready.put(item, timeout=0.1)
      except queue.Full:
        pass

  def __iter__(self) -> "prefetch_to_device":
    return self

  def __next__(self) -> Any:
    if self._stop.is_set():
      raise StopIteration
    start = time.perf_counter()
    item = self._ready.get()
    self.wait_seconds += time.perf_counter() - start
    if isinstance(item, BaseException):
      self.close()
      raise item
    batch, self._state, self.counters = item
    return batch

  def get_state(self) -> bytes:
    """The iterator's state right after the batch last handed out."""
    return self._state

  def close(self) -> None:
    """Stops the thread and waits for it; the iterator is then the caller's again."""
    self._stop.set()
    self._thread.join()
