"""Data: from samples to batches, in NumPy."""

from collections.abc import Callable
from typing import Any

from medflax.data.documents import Dataset
from medflax.data.folder import FolderDataset
from medflax.data.phantoms import Phantoms
from medflax.data.prepared import PreparedDataset


def _phantom(data: Any, seed: int) -> Dataset:
  return Phantoms(data.image_size, data.volume_size, seed)


def _folder(data: Any, seed: int) -> Dataset:
  return FolderDataset(
    data.root,
    data.image_size,
    data.volume_size,
    on_bad_sample=data.on_bad_sample,
    exclude=data.exclude,
    seed=seed,
  )


def _prepared(data: Any, seed: int) -> Dataset:
  return PreparedDataset(data.root, data.image_size, data.volume_size, seed=seed)


# config.data.source → the data set, from config.data and the seed.
DATASETS: dict[str, Callable[[Any, int], Dataset]] = {
  "phantom": _phantom,
  "folder": _folder,
  "prepared": _prepared,
}
