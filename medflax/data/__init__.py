"""Data: from samples to batches, in NumPy."""

from collections.abc import Callable
from typing import Any

from medflax.data.documents import Dataset
from medflax.data.folder import FolderDataset
from medflax.data.mixture import Mixture
from medflax.data.phantoms import Phantoms
from medflax.data.phantoms.charts import Charts
from medflax.data.prepared import PreparedDataset
from medflax.data.remote import fetch, is_remote


def _phantom(data: Any, seed: int) -> Dataset:
  return Phantoms(data.image_size, data.volume_size, seed)


def _folder(data: Any, seed: int) -> Dataset:
  return FolderDataset(
    data.root,
    data.image_size,
    data.volume_size,
    on_bad_sample=data.on_bad_sample,
    exclude=data.exclude,
    transforms=data.transforms.to_dict(),
    seed=seed,
  )


def _prepared(data: Any, seed: int) -> Dataset:
  root = fetch(data.root, data.cache) if is_remote(data.root) else data.root
  return PreparedDataset(
    root,
    data.image_size,
    data.volume_size,
    exclude=data.exclude,
    transforms=data.transforms.to_dict(),
    seed=seed,
  )


def _mixture(data: Any, seed: int) -> Dataset:
  parts = {}
  for name, fields in data.sources.items():
    part = data.copy_and_resolve_references()
    part.update(fields)
    parts[name] = DATASETS[part.source](part, seed)
  return Mixture(parts)


# config.data.source → the data set, from config.data and the seed.
DATASETS: dict[str, Callable[[Any, int], Dataset]] = {
  "phantom": _phantom,
  "charts": lambda data, seed: Charts(data.image_size, seed),
  "folder": _folder,
  "prepared": _prepared,
  "mixture": _mixture,
}
