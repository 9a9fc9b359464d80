"""Your own images: a folder with a `manifest.jsonl` as a `Dataset`. See docs/data.md."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import math
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import tqdm

from medflax.data.documents import IMAGE, VOLUME, Media, Sample, Source
from medflax.data.exclude import read_exclusions, report_exclusions
from medflax.data.manifest import SPLITS, BadRow, Row, assign_splits, group_rows, parse_manifest
from medflax.data.media_chain import Draw, MediaChain, sample_text
from medflax.data.readers import read_kind
from medflax.data.support import PoolEpisodes, split_episodes
from medflax.data.transforms.scan import Scan
from medflax.utils import UserError, nearest

CACHE_BYTES = 2**30  # all media of a data set stay decoded in memory up to this size
ALL_TASKS = "vqa"
_ON_BAD_SAMPLE = ("raise", "skip")


class FolderDataset:
  """Questions about the images and volumes of a folder, listed in its manifest.

  Everything is checked here, before anything is trained: every row, and every file by decoding it.
  Decoded media of up to `CACHE_BYTES` in all are kept; beyond that they are read when needed.

  Attributes:
    name: the folder's name.
    version: a hash of the manifest.
    tasks: "vqa" (all rows), then the distinct values of the rows' `task`.
    media_per_sample: the most images and volumes that one row has.
    skipped: rows left out by `on_bad_sample="skip"` or `exclude`: dicts of `line`, `id`, `reason`.
    noted: files that are read in spite of what is odd about them, such as slices that are missing:
      dicts of `path` and `notes`.
  """

  def __init__(
    self,
    root: str | os.PathLike,
    image_size: Sequence[int],
    volume_size: Sequence[int],
    *,
    on_bad_sample: str = "raise",
    exclude: str | os.PathLike = "",
    transforms: Mapping[str, Any] = MappingProxyType({}),
    seed: int = 0,
    manifest: str = "manifest.jsonl",
  ):
    """Reads and checks the folder.

    Args:
      root: the folder; media paths in the manifest are relative to it.
      image_size: (H, W) that images are fitted to.
      volume_size: (D, H, W) that volumes are fitted to.
      on_bad_sample: "raise" an error at the first bad row, or "skip" bad rows and list them.
      exclude: a list of rows to leave out, see `exclude.read_exclusions`; "": none.
      transforms: of each kind of media, see `MediaChain`; those of chance in training alone.
      seed: decides the order of episodes, their support samples and draws, not the splits.
      manifest: name of the manifest in `root`.

    Raises:
      UserError: naming the manifest's line, what is wrong and what to do about it.
    """
    if on_bad_sample not in _ON_BAD_SAMPLE:
      raise UserError(
        f"data.on_bad_sample is {on_bad_sample!r}{nearest(on_bad_sample, _ON_BAD_SAMPLE)}"
      )
    self._root = pathlib.Path(root)
    self._sizes = {IMAGE: tuple(image_size), VOLUME: tuple(volume_size)}
    self._chain, self._seed = MediaChain(self._sizes, transforms, seed), seed
    content = _read_manifest(root, manifest)
    rows, bad = parse_manifest(content, self._root)
    self.name = self._root.resolve().name
    excluded = read_exclusions(exclude, self.name) if os.fspath(exclude) else frozenset()
    self._cache: dict[tuple[str, str], Media] = {}
    self.noted: list[dict[str, str]] = []
    if not bad or on_bad_sample == "skip":
      rows, undecodable = self._decode(rows)
      bad = sorted([*bad, *undecodable], key=lambda row: row.line)
    if bad and on_bad_sample == "raise":
      more = f" ({len(bad) - 1} more bad rows)" if len(bad) > 1 else ""
      raise UserError(
        f"{manifest} line {bad[0].line}: {bad[0].reason}{more}; "
        "data.on_bad_sample=skip leaves such rows out"
      )
    if not rows:
      first = f", the first (line {bad[0].line}): {bad[0].reason}" if bad else "; add some"
      raise UserError(f"{self._root / manifest} has no usable row{first}")
    kept = [row for row in rows if row.id not in excluded]
    if excluded:
      report_exclusions(exclude, self.name, excluded, [row.id for row in rows])
      bad += [BadRow(row.line, row.id, f"in {exclude}") for row in rows if row.id in excluded]
    try:
      # A row's split must not change because others are left out; given ones are what they are.
      divided = kept if any(row.split for row in rows) else rows
      groups = group_rows(divided)
      splits = assign_splits(divided, groups)
    except UserError as error:
      raise UserError(f"{manifest}: {error}") from None
    self._rows = [
      dataclasses.replace(row, group=group, split=split)
      for row, group, split in zip(divided, groups, splits, strict=True)
      if row.id not in excluded
    ]
    self.version = hashlib.sha256(content).hexdigest()[:12]
    self.tasks = (ALL_TASKS, *sorted({row.task for row in self._rows} - {"", ALL_TASKS}))
    counts = [collections.Counter(kind for kind, _ in row.media) for row in self._rows]
    self.media_per_sample: Mapping[str, int] = {
      kind: max(count[kind] for count in counts) for kind in self._sizes
    }
    self.skipped: list[dict[str, Any]] = [dataclasses.asdict(row) for row in bad]

  def __getstate__(self) -> dict[str, Any]:
    """Data workers read files themselves rather than receive a copy of the cache each."""
    return self.__dict__ | {"_cache": {}}

  def samples(self, task: str, split: str, *, augmented: bool = False) -> "FolderSamples":
    """Random access to the rows of a task and split, in the manifest's order.

    With `augmented` the transforms of chance are drawn.

    Raises:
      UserError: if there is no such task or split, or it has no rows.
    """
    if task not in self.tasks:
      raise UserError(f"data set {self.name!r} has no task {task!r}{nearest(task, self.tasks)}")
    if split not in SPLITS:
      raise UserError(f"data set {self.name!r} has no split {split!r}{nearest(split, SPLITS)}")
    rows = [row for row in self._rows if row.split == split and task in (ALL_TASKS, row.task)]
    if not rows:
      sizes = collections.Counter(row.split for row in self._rows)
      have = ", ".join(f"{sizes[split]} {split}" for split in SPLITS)
      raise UserError(
        f"data set {self.name!r} has no rows of task {task!r} in split {split!r} ({have} in all); "
        "add some or choose another split"
      )
    return FolderSamples(self, rows, augmented)

  def episodes(
    self, task: str, split: str, num_shots: int | tuple[int, int], num_episodes: int | None = None
  ) -> PoolEpisodes:
    """Queries of one split with support samples from the training split; see `split_episodes`.

    Raises:
      UserError: as `samples`, or if the training split is too small for `num_shots`.
    """
    training = split == "train"
    return split_episodes(
      self.samples(task, split, augmented=training),
      lambda: self.samples(ALL_TASKS, "train", augmented=training),
      num_shots if isinstance(num_shots, int) else (num_shots[0], num_shots[1]),
      seed=(self._seed, SPLITS.index(split)),
      training=training,
      num_episodes=num_episodes,
    )

  def sample(self, row: Row, epoch: int | None = None) -> Sample:
    """Decodes a row; `epoch` is that of the draws, None: there are none."""
    text = sample_text(row.question, row.answer, row.choices)
    media = tuple(self._media(kind, path, epoch, text) for kind, path in row.media)
    return dataclasses.replace(self.text(row), media=media)

  def text(self, row: Row) -> Sample:
    """A row without its media."""
    return Sample(
      id=row.id,
      media=(),
      question=row.question,
      answer=row.answer,
      source=Source(self.name, self.version, row.split),
      task=row.task or ALL_TASKS,
      choices=row.choices,
      group=row.group,
      meta=row.meta,
    )

  def _media(self, kind: str, path: str, epoch: int | None, text: str) -> Media:
    if epoch is not None and self._chain.is_random(kind):
      return self._read(kind, path, Draw(epoch, zlib.crc32(path.encode()), text))
    return self._cache.get((kind, path)) or self._read(kind, path)

  def _read(self, kind: str, path: str, draw: Draw | None = None) -> Media:
    return self._shown(self._scan(kind, path), path, draw)

  def _scan(self, kind: str, path: str) -> Scan:
    smallest = self._chain.smallest(kind)
    return read_kind(self._root / path, kind, name=path, smallest=smallest)

  def _shown(self, scan: Scan, path: str, draw: Draw | None = None) -> Media:
    try:
      return self._chain(scan, draw)
    except UserError as error:
      raise UserError(f"{path} {error}") from None

  def _decode(self, rows: Sequence[Row]) -> tuple[list[Row], list[BadRow]]:
    """Decodes every file once: the rows that can be used and those that cannot; fills `noted`."""
    files = sorted({media for row in rows for media in row.media})
    channels = {IMAGE: 3, VOLUME: 1}
    size = sum(math.prod(self._sizes[kind]) * channels[kind] for kind, _ in files)

    def decode(file: tuple[str, str]) -> tuple[str, str]:
      """What is wrong with a file, and what is odd about it."""
      try:
        scan = self._scan(*file)
        media = self._shown(scan, file[1])
      except UserError as error:
        return str(error), ""
      if size <= CACHE_BYTES:
        self._cache[file] = media
      return "", "; ".join(scan.notes)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      found = list(
        tqdm.tqdm(pool.map(decode, files), "checking files", len(files), disable=None, leave=False)
      )
    told = dict(zip(files, found, strict=True))
    broken = {file: reason for file, (reason, _) in told.items() if reason}
    self.noted = [{"path": path, "notes": notes} for (_, path), (_, notes) in told.items() if notes]
    bad = [
      BadRow(row.line, row.id, next(broken[media] for media in row.media if media in broken))
      for row in rows
      if not broken.keys().isdisjoint(row.media)
    ]
    return [row for row in rows if broken.keys().isdisjoint(row.media)], bad


class FolderSamples:
  """Some rows of a `FolderDataset` as a `PoolSource`.

  Attributes:
    groups: the rows' groups.
    topics: the rows' tasks, or the question itself where a row has none.
  """

  def __init__(self, dataset: FolderDataset, rows: Sequence[Row], augmented: bool):
    self._dataset, self._rows, self._augmented = dataset, rows, augmented
    self.groups: Sequence[str] = [row.group for row in rows]
    self.topics: Sequence[str] = [row.task or row.question for row in rows]

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Sample:
    return self.read(index, 0)

  def read(self, index: int, epoch: int) -> Sample:
    """The row, with the draws of an epoch if there are any."""
    return self._dataset.sample(self._rows[index], epoch if self._augmented else None)

  def text(self, index: int) -> Sample:
    """The row without its media; nothing is decoded."""
    return self._dataset.text(self._rows[index])

  def media_keys(self, index: int) -> tuple[tuple[str, str], ...]:
    """The kind and path of each of the row's media."""
    return self._rows[index].media


def _read_manifest(root: str | os.PathLike, manifest: str) -> bytes:
  if not os.fspath(root):
    raise UserError("data=folder needs the folder: --config.data.root=DIR")
  if not pathlib.Path(root).is_dir():
    raise UserError(f"data folder {str(root)!r} does not exist; correct --config.data.root")
  try:
    return (pathlib.Path(root) / manifest).read_bytes()
  except OSError as error:
    raise UserError(
      f"data folder {str(root)!r} has no readable {manifest} ({error.strerror}); see docs/data.md"
    ) from None
