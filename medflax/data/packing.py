"""Packing: several short documents share one row of fixed shape.

Documents are read in groups of a few rows' worth, and each group is packed on its own by
first-fit decreasing, which leaves at most a part of one row empty a group. Because a group
depends on nothing before it, the state of the iterator is the parent's at the group's start
and the number of rows already handed out: small, and exact.
"""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from medflax.data.encode import Encoded, RowShape


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


class PackIterDataset(grain.IterDataset):
  """Turns a stream of `Encoded` documents into rows: lists of documents that fit `shape`.

  Args:
    parent: the documents.
    shape: of a row.
    num_bins: how many rows' worth of documents are packed together. More pack tighter, and
      resuming reads up to so many again.
    seed: of the order of rows within a group (packing sorts documents by size).
  """

  def __init__(self, parent: grain.IterDataset, shape: RowShape, num_bins: int, seed: int):
    super().__init__(parent)
    self._shape, self._num_bins, self._seed = shape, num_bins, seed

  def __iter__(self) -> grain.DatasetIterator:
    return _PackIterator(iter(self._parent), self._shape, self._num_bins, self._seed)


class _PackIterator(grain.DatasetIterator):
  def __init__(self, parent: grain.DatasetIterator, shape: RowShape, num_bins: int, seed: int):
    super().__init__(parent)
    self._shape, self._capacity, self._seed = shape, capacity(shape), seed
    self._enough = num_bins * self._capacity
    self._begin_group(0)

  def _begin_group(self, group: int) -> None:
    self._group, self._row = group, 0
    self._rows: list[list[Encoded]] | None = None
    self._parent_state = self._parent.get_state()

  def __next__(self) -> Sequence[Encoded]:
    if self._rows is None:
      self._rows = self._pack_group()
    row = self._rows[self._row]
    self._row += 1
    if self._row == len(self._rows):
      self._begin_group(self._group + 1)
    return row

  def _pack_group(self) -> list[list[Encoded]]:
    documents, sizes = [], []
    total = np.zeros_like(self._capacity)
    while (total <= self._enough).all() if documents else True:
      try:
        document = next(self._parent)
      except StopIteration:
        break
      documents.append(document)
      sizes.append(size(document, self._shape))
      total += sizes[-1]
    if not documents:
      raise StopIteration
    rows = first_fit_decreasing(np.stack(sizes), self._capacity)
    order = np.random.default_rng((self._seed, self._group)).permutation(len(rows))
    # Within a row the stream's order is kept, so that a document's size does not tell its place.
    return [[documents[i] for i in sorted(rows[r])] for r in order]

  def get_state(self) -> dict[str, Any]:
    return {"parent": self._parent_state, "group": self._group, "row": self._row}

  def set_state(self, state: dict[str, Any]) -> None:
    self._parent.set_state(state["parent"])
    self._begin_group(state["group"])
    self._row = state["row"]
