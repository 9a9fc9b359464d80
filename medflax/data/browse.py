"""Every sample of a data set for looking at: nothing is resized, and no fault stops the rest.

Training refuses a folder with a bad row or a group in two splits; the tools that look for such
faults have to read it nevertheless.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from medflax.data.builders import store
from medflax.data.builders.base import MEDIA
from medflax.data.documents import SIGNAL, Media, Sample, Source
from medflax.data.folder import ALL_TASKS
from medflax.data.manifest import SPLITS, Row, assign_splits, group_rows, parse_manifest
from medflax.data.phantoms import Phantoms
from medflax.data.prepared import PreparedDataset
from medflax.data.readers import read_scan
from medflax.data.transforms.grids import fit
from medflax.data.transforms.intensity import show, to_bytes, to_media
from medflax.data.transforms.scan import Scan
from medflax.utils import UserError

MANIFEST = "manifest.jsonl"
PHANTOM = "phantom"
UNDIVIDED = "all"  # the split of rows that name none and are too few to be divided
_PHANTOMS_PER_TASK = 8  # of a split: phantoms are endless
_CACHED = 64  # media of one folder: the questions on an image mostly follow each other


@runtime_checkable
class Samples(Protocol):
  """The samples of a split.

  Attributes:
    groups: of each sample.
    own_groups: whether its data set names the group, rather than its file.
  """

  groups: Sequence[str]
  own_groups: Sequence[bool]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Sample:
    """The sample with its media; a UserError tells what is wrong with a file."""
    ...

  def text(self, index: int) -> Sample:
    """The sample without its media."""
    ...

  def texts(self) -> Iterator[Sample]:
    """All samples without their media."""
    return map(self.text, range(len(self)))


@dataclasses.dataclass(frozen=True)
class Collection:
  """A data set laid open.

  Attributes:
    name: of the data set, as `Source.dataset`.
    version: of the data set.
    root: the folder; None for generated data.
    splits: the samples by split, none of them empty.
    bad: rows that cannot be used: dicts of `line`, `id` and `reason`.
    group: what a group of it is, as "patient"; "" where that is not known.
  """

  name: str
  version: str
  root: pathlib.Path | None
  splits: Mapping[str, Samples]
  bad: Sequence[Mapping[str, Any]] = ()
  group: str = ""


def browse(where: str) -> Collection:
  """Opens "phantom", a folder with a manifest or a prepared folder; reads no media.

  Raises:
    UserError: if it is none of them, or nothing in it can be used.
  """
  root = pathlib.Path(where)
  if (root / MANIFEST).is_file():
    return _folder(root)
  if (root / store.DATASET).is_file() or (root / store.CHUNKS).is_dir():
    return _prepared(root)
  if where == PHANTOM:
    return _phantoms()
  raise UserError(
    f"{where!r} is no data: give a folder with {MANIFEST}, a folder that "
    f"medflax.tools.prepare_data has written, or {PHANTOM!r}"
  )


def _native(scan: Scan) -> Media:
  """A scan as it is shown; an image or a volume gets square pixels."""
  scan = show(scan)
  if scan.kind == SIGNAL:
    return to_media(scan)
  *depth, height, width, _ = scan.array.shape
  shape = (*depth, max(1, round(height * scan.aspect)), width)
  scan = to_bytes(scan)
  return to_media(scan if shape == scan.array.shape[:-1] else fit(scan, shape))


class _Rows(Samples):
  """Rows of a manifest as `Samples`."""

  def __init__(self, rows: Sequence[Row], source: Source, root: pathlib.Path):
    self._rows, self._source, self._root = rows, source, root
    self._read = functools.lru_cache(_CACHED)(self._media)
    self.groups: Sequence[str] = [row.group for row in rows]
    files = {path for row in rows for _, path in row.media}
    self.own_groups: Sequence[bool] = [row.group not in files for row in rows]

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Sample:
    media = tuple(self._read(path, kind) for kind, path in self._rows[index].media)
    return dataclasses.replace(self.text(index), media=media)

  def text(self, index: int) -> Sample:
    row = self._rows[index]
    return Sample(
      id=row.id,
      media=(),
      question=row.question,
      answer=row.answer,
      source=self._source,
      task=row.task or ALL_TASKS,
      choices=row.choices,
      group=row.group,
      meta=row.meta,
    )

  def _media(self, path: str, kind: str) -> Media:
    scan = read_scan(self._root / path, name=path)
    if scan.kind != kind:
      raise UserError(f"{path} is one {scan.kind}, not one {kind}; list it under `{scan.kind}s`")
    return _native(scan)


def _folder(root: pathlib.Path) -> Collection:
  content = (root / MANIFEST).read_bytes()
  rows, bad = parse_manifest(content, root)
  if not rows:
    reason = f", the first (line {bad[0].line}): {bad[0].reason}" if bad else ""
    raise UserError(f"{root / MANIFEST} has no usable row{reason}")
  name, version = root.resolve().name, hashlib.sha256(content).hexdigest()[:12]
  groups, splits = group_rows(rows), [row.split or UNDIVIDED for row in rows]
  if set(splits) == {UNDIVIDED} and len(set(groups)) >= len(SPLITS):
    splits = assign_splits(rows, groups)
  by_split: dict[str, list[Row]] = collections.defaultdict(list)
  for row, group, split in zip(rows, groups, splits, strict=True):
    by_split[split].append(dataclasses.replace(row, group=group))
  parts = {
    split: _Rows(by_split[split], Source(name, version, split), root)
    for split in sorted(by_split, key=_order)
  }
  return Collection(name, version, root, parts, [dataclasses.asdict(row) for row in bad])


def _order(split: str) -> tuple[int, str]:
  return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


class _Prepared(Samples):
  """A split of a prepared data set as `Samples`."""

  def __init__(self, dataset: PreparedDataset, split: str):
    self._dataset, self._split = dataset, split
    self._samples = dataset.samples(ALL_TASKS, split)
    self.groups: Sequence[str] = self._samples.groups
    self.own_groups: Sequence[bool] = [True] * len(self.groups)

  def __len__(self) -> int:
    return len(self._samples)

  def __getitem__(self, index: int) -> Sample:
    stored = (self._dataset.stored(MEDIA, number) for _, number in self._record(index)["media"])
    media = tuple(_native(store.decode_media(medium)) for medium in stored)
    return dataclasses.replace(self.text(index), media=media)

  def text(self, index: int) -> Sample:
    return self._samples.text(index)

  def texts(self) -> Iterator[Sample]:
    return self._dataset.texts(self._split)

  def _record(self, index: int) -> dict[str, Any]:
    return json.loads(self._dataset.stored(self._split, index))


def _prepared(root: pathlib.Path) -> Collection:
  dataset = PreparedDataset(root, (1, 1), (1, 1, 1))  # the sizes are not used
  parts = {
    split: _Prepared(dataset, split)
    for split, count in sorted(dataset.splits.items(), key=lambda item: _order(item[0]))
    if count
  }
  return Collection(dataset.name, dataset.version, root, parts, group=dataset.info["group"])


class _Phantoms(Samples):
  """The first phantoms of every task in turn as `Samples`."""

  def __init__(self, phantoms: Phantoms, split: str):
    self._episodes = [phantoms.episodes(task, split, 0) for task in phantoms.tasks]
    self._draw = functools.cache(lambda number, task: self._episodes[task][number].query)
    texts = [self.text(index) for index in range(len(self))]
    self.groups: Sequence[str] = [text.group for text in texts]
    self.own_groups: Sequence[bool] = [True] * len(texts)

  def __len__(self) -> int:
    return _PHANTOMS_PER_TASK * len(self._episodes)

  def __getitem__(self, index: int) -> Sample:
    if not 0 <= index < len(self):
      raise IndexError(f"phantom {index} of {len(self)}")
    return self._draw(*divmod(index, len(self._episodes)))

  def text(self, index: int) -> Sample:
    return dataclasses.replace(self[index], media=())


def _phantoms() -> Collection:
  phantoms = Phantoms((96, 96), (12, 64, 64))
  parts = {split: _Phantoms(phantoms, split) for split in SPLITS}
  return Collection(phantoms.name, phantoms.version, None, parts, group="phantom")
