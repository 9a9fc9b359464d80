"""Packing: several short documents share one row of fixed shape.

Documents are dealt out to shards, one after the other. A shard reads its own in groups of a few
rows' worth, and packs each group by itself. Because a group depends on nothing before it, the state
of a shard is its group's first document and the number of rows already handed out: small, exact,
and independent of who reads which shard and how.
"""

import collections
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Int

from medflax.data.encode import Encoded, RowShape

log = logging.getLogger(__name__)
_GOOD = 0.95  # share of the tokens of a row that should be used


def capacity(shape: RowShape) -> Int[np.ndarray, " d"]:
  """What a row holds: tokens, then media slots of each kind in the order of `shape.media`."""
  return np.array([shape.length, *(slots for slots, *_ in shape.media.values())])


def size(document: Encoded, shape: RowShape) -> Int[np.ndarray, " d"]:
  """What a document takes of `capacity`."""
  kinds = [media.kind for media in document["media"]]
  return np.array([len(document["tokens"]), *(kinds.count(kind) for kind in shape.media)])


def first_fit_decreasing(
  sizes: Int[np.ndarray, "n d"], capacity: Int[np.ndarray, " d"]
) -> list[list[int]]:
  """Puts each item, largest first, into the first bin that has room for it in every dimension.

  Args:
    sizes: of n items in d dimensions.
    capacity: of every bin; a dimension of capacity 0 takes no item that needs it.

  Returns:
    The items of each bin, as indices into `sizes`.

  Raises:
    ValueError: if an item is larger than an empty bin.
  """
  if (sizes > capacity).any():
    raise ValueError(f"an item exceeds the capacity {capacity.tolist()} of an empty bin")
  share = (sizes / np.maximum(capacity, 1)).max(axis=1)
  free = np.tile(capacity, (len(sizes), 1))
  bins: list[list[int]] = []
  for item in np.argsort(-share, kind="stable"):
    fits = (free[: len(bins) + 1] >= sizes[item]).all(axis=1)
    bin_index = int(np.argmax(fits))
    if bin_index == len(bins):
      bins.append([])
    free[bin_index] -= sizes[item]
    bins[bin_index].append(int(item))
  return bins


def by_mixture(sizes: Int[np.ndarray, "n d"], capacity: Int[np.ndarray, " d"]) -> list[list[int]]:
  """Fills bin after bin so that each holds about the mixture of all items.

  A bin begins with the largest item left. Then comes the largest that fits of those that are heavy
  in the dimension of which the bin has least, both measured by the mean item; or of all that fit.
  The idea is that of Leinberger et al. 1999, "Multi-capacity bin packing algorithms".

  Args:
    sizes: of n items in d dimensions, none larger than an empty bin.
    capacity: of every bin.

  Returns:
    The items of each bin, as indices into `sizes`.
  """
  shares = sizes / np.maximum(capacity, 1)
  order = np.argsort(-shares.max(axis=1), kind="stable")
  sizes, shares, mean = sizes[order], shares[order], shares.mean(axis=0)
  relative = shares / np.where(mean > 0, mean, 1)
  heavy = relative.argmax(axis=1)
  left = np.ones(len(sizes), bool)
  bins: list[list[int]] = []
  while left.any():
    free, used = capacity.copy(), np.where(mean > 0, 0.0, np.inf)
    items, fits = [], left
    while fits.any():
      wanted = fits & (heavy == used.argmin()) if items else fits
      item = int(np.argmax(wanted if wanted.any() else fits))
      items.append(int(order[item]))
      left[item] = False
      free, used = free - sizes[item], used + relative[item]
      fits = left & (sizes <= free).all(axis=1)
    bins.append(items)
  return bins


def pack(sizes: Int[np.ndarray, "n d"], capacity: Int[np.ndarray, " d"]) -> list[list[int]]:
  """Puts items into as few bins as it can.

  That is first-fit decreasing. Bins that it fills with small items may run out of another dimension
  than the first; where the first, tokens, is what all items together need most of, they are spread
  `by_mixture` if that takes fewer bins.

  Raises:
    ValueError: as `first_fit_decreasing`.
  """
  bins = first_fit_decreasing(sizes, capacity)
  needed = sizes.sum(axis=0) / np.maximum(capacity, 1)
  if needed.argmax() or len(bins) == math.ceil(needed[0]):
    return bins
  return min(bins, by_mixture(sizes, capacity), key=len)


def scarce_slots(sizes: Int[np.ndarray, "n d"], shape: RowShape) -> str:
  """What to raise so that rows are not full of media before they are of tokens; "": nothing."""
  needed = sizes.sum(axis=0) / np.maximum(capacity(shape), 1)  # rows, were nothing else scarce
  scarcest = int(needed.argmax())
  if needed[0] >= _GOOD * needed[scarcest]:
    return ""
  kind = list(shape.media)[scarcest - 1]
  slots, share = shape.media[kind][0], needed[0] / needed[scarcest]
  return (
    f"rows are full at data.max_media.{kind} = {slots} with at most {share:.0%} of their tokens "
    f"used; {math.ceil(slots / share)} slots would hold more in each row, or lower data.max_tokens"
  )


class ShardState(TypedDict):
  """The place of a shard: its group's number and first document, and rows of it handed out."""

  group: int
  start: int
  row: int


class PackedRows:
  """Rows, lists of documents that fit `shape`, of some shards of an endless stream.

  Args:
    read: gives, from each shard's `start`-th document on, the first shard's, the second's, …, the
      first's next, and so on.
    shards: numbers of the shards.
    shape: of a row.
    num_bins: how many rows' worth of documents are packed together. More pack tighter, and
      resuming reads up to so many again.
    seed: of the order of rows within a group (packing sorts documents by size).
  """

  def __init__(
    self,
    read: Callable[[int], Iterator[Encoded]],
    shards: Sequence[int],
    shape: RowShape,
    num_bins: int,
    seed: int,
  ):
    self._read, self._shards, self._shape, self._seed = read, tuple(shards), shape, seed
    self._enough = num_bins * capacity(shape)
    self.set_state({shard: ShardState(group=0, start=0, row=0) for shard in shards})

  def next_row(self, shard: int) -> list[Encoded]:
    """The next row of a shard."""
    place = self._places[shard]
    if shard not in self._groups:
      self._groups[shard] = self._next_group(shard)
    rows = self._groups[shard]
    row = rows[place["row"]]
    place["row"] += 1
    if place["row"] == len(rows):
      place["start"] += sum(len(documents) for documents in self._groups.pop(shard))
      place["group"], place["row"] = place["group"] + 1, 0
    return row

  def _next_group(self, shard: int) -> list[list[Encoded]]:
    documents, sizes = [], []
    total = np.zeros_like(self._enough)
    while (total <= self._enough).all():
      while not self._waiting[shard]:
        self._read_one()
      documents.append(self._waiting[shard].popleft())
      sizes.append(size(documents[-1], self._shape))
      total += sizes[-1]
    rows = pack(np.stack(sizes), capacity(self._shape))
    key = (self._seed, self._places[shard]["group"], shard)
    if key[1:] == (0, 0) and (hint := scarce_slots(np.stack(sizes), self._shape)):
      log.info(hint)  # once a run, of whatever processes
    order = np.random.default_rng(key).permutation(len(rows))
    # Within a row the stream's order is kept, so that a document's size does not tell its place.
    return [[documents[i] for i in sorted(rows[r])] for r in order]

  def _read_one(self) -> None:
    if self._stream is None:
      self._first = min(place["start"] for place in self._places.values())
      self._stream, self._count = self._read(self._first), 0
    turn, shard = divmod(self._count, len(self._shards))
    document = next(self._stream)
    self._count += 1
    # After a restart, a shard that was ahead of another has some of its documents read in vain.
    if self._first + turn >= self._places[self._shards[shard]]["start"]:
      self._waiting[self._shards[shard]].append(document)

  def get_state(self) -> dict[int, ShardState]:
    """The place of each shard, after the rows handed out."""
    return {shard: place.copy() for shard, place in self._places.items()}

  def set_state(self, state: dict[int, ShardState]) -> None:
    """Goes on from there; `state` may know more shards than these."""
    self.close()
    self._places = {shard: state[shard].copy() for shard in self._shards}
    self._groups: dict[int, list[list[Encoded]]] = {}
    self._waiting = {shard: collections.deque[Encoded]() for shard in self._shards}

  def close(self) -> None:
    """Ends the stream, and its threads and processes."""
    if (close := getattr(getattr(self, "_stream", None), "close", None)) is not None:
      close()
    self._stream: Iterator[Encoded] | None = None
