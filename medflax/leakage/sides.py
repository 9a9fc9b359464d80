"""The two sides of a comparison: the samples and media of some splits, as fingerprints."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import tqdm

from medflax.data.browse import Collection, browse
from medflax.data.documents import IMAGE, VOLUME, Media, Sample
from medflax.leakage.pictures import SIDE, digest, fingerprint, views
from medflax.utils import UserError, nearest

EMBED_BATCH = 64
NUM_VIEWS = {IMAGE: 1, VOLUME: 3}


class Part(NamedTuple):
  """One split of a data set."""

  collection: Collection
  split: str

  @property
  def place(self) -> tuple[pathlib.Path | None, str]:
    root = self.collection.root
    return (root and root.resolve(), self.split)


class Known(NamedTuple):
  """A sample without its media: where it is and what may not be shared.

  `named`: whether its data set names the group, rather than its file.
  """

  part: Part
  index: int
  id: str
  group: str
  named: bool
  text: tuple[str, str]

  def load(self) -> Sample:
    return self.part.collection.splits[self.part.split][self.index]


class Medium(NamedTuple):
  """Media of the same pixels: the samples that show them, and their place in the first."""

  digest: bytes
  kind: str
  samples: list[int]
  ordinal: int


@runtime_checkable
class Embedder(Protocol):
  """Turns media into vectors of unit length that are near each other for alike content."""

  kinds: Sequence[str]

  def prepare(self, media: Media) -> np.ndarray:
    """The media at the size that `__call__` takes."""
    ...

  def __call__(self, kind: str, batch: np.ndarray) -> np.ndarray:
    """Vectors [n, d] of prepared media of one kind."""
    ...


@dataclasses.dataclass(frozen=True)
class Side:
  """Training data, or what is to be evaluated on.

  Attributes:
    parts: the splits it consists of.
    samples: all of them, in order.
    media: all different ones; `prints`, `slices` and `vectors` point to them.
    prints: by kind, the media's indices [n] and their fingerprints [n, views, side, side].
    slices: indices of volumes and the fingerprints of each of their slices.
    vectors: by kind, the media's indices [n] and their embeddings [n, d].
    unreadable: samples that could not be read: dicts of `data`, `split`, `id` and `reason`.
  """

  parts: Sequence[Part]
  samples: Sequence[Known]
  media: Sequence[Medium]
  prints: Mapping[str, tuple[np.ndarray, np.ndarray]]
  slices: tuple[np.ndarray, np.ndarray]
  vectors: Mapping[str, tuple[np.ndarray, np.ndarray]]
  unreadable: Sequence[Mapping[str, Any]]


def open_parts(specs: Sequence[str], browse: Callable[[str], Collection] = browse) -> list[Part]:
  """The splits that `FOLDER` (all of them) and `FOLDER:SPLIT` name.

  Raises:
    UserError: if there is no such folder or split.
  """
  parts: list[Part] = []
  for spec in specs:
    where, colon, split = spec.rpartition(":")
    if not colon or pathlib.Path(spec).exists():
      where, split = spec, ""
    collection = browse(where)
    if split and split not in collection.splits:
      raise UserError(f"{where} has no split {split!r}{nearest(split, collection.splits)}")
    parts += [Part(collection, name) for name in ([split] if split else collection.splits)]
  return parts


def read_side(
  parts: Sequence[Part], what: str, *, slices: bool = False, embedder: Embedder | None = None
) -> Side:
  """Reads every sample once.

  Args:
    parts: the splits.
    what: the name on the progress bar.
    slices: whether to take fingerprints of the slices of volumes, too.
    embedder: of media, if any.
  """
  reader = _Reader(slices, embedder)
  total = sum(len(part.collection.splits[part.split]) for part in parts)
  with tqdm.tqdm(desc=what, total=total, unit=" samples", disable=None) as progress:
    for part in parts:
      for index in range(len(part.collection.splits[part.split])):
        reader.add(part, index)
        progress.update()
  return reader.side(parts)


def normalised(text: str) -> str:
  """Without differences of case and spacing."""
  return " ".join(text.casefold().split())


class _Reader:
  def __init__(self, slices: bool, embedder: Embedder | None):
    self._with_slices, self._embedder = slices, embedder
    self._samples: list[Known] = []
    self._media: dict[bytes, int] = {}
    self._all: list[Medium] = []
    self._prints: dict[str, tuple[list, list]] = {kind: ([], []) for kind in NUM_VIEWS}
    self._slices: tuple[list, list] = ([], [])
    self._waiting: dict[str, list[tuple[int, np.ndarray]]] = {}
    self._vectors: dict[str, tuple[list, list]] = {}
    self._unreadable: list[dict[str, Any]] = []

  def add(self, part: Part, index: int) -> None:
    samples = part.collection.splits[part.split]
    text = samples.text(index)
    known = Known(
      part,
      index,
      text.id,
      text.group,
      samples.own_groups[index],
      (normalised(text.question), normalised(text.answer)),
    )
    self._samples.append(known)
    try:
      media = samples[index].media
    except UserError as error:
      place = {"data": part.collection.name, "split": part.split, "id": text.id}
      self._unreadable.append({**place, "reason": str(error)})
      return
    for ordinal, medium in enumerate(media):
      self._take(medium, ordinal)

  def _take(self, media: Media, ordinal: int) -> None:
    key, sample = digest(media), len(self._samples) - 1
    if key in self._media:
      self._all[self._media[key]].samples.append(sample)
      return
    number = self._media[key] = len(self._all)
    self._all.append(Medium(key, media.kind, [sample], ordinal))
    if pictures := views(media):
      numbers, prints = self._prints[media.kind]
      numbers.append(number)
      prints.append(np.stack([fingerprint(picture) for picture in pictures]))
    if self._with_slices and media.kind == VOLUME:
      self._slices[0].extend([number] * len(media.array))
      self._slices[1].extend(fingerprint(picture) for picture in media.array)
    if self._embedder and media.kind in self._embedder.kinds:
      waiting = self._waiting.setdefault(media.kind, [])
      waiting.append((number, self._embedder.prepare(media)))
      if len(waiting) == EMBED_BATCH:
        self._embed(media.kind)

  def _embed(self, kind: str) -> None:
    numbers, batch = zip(*self._waiting.pop(kind), strict=True)
    held = self._vectors.setdefault(kind, ([], []))
    held[0].extend(numbers)
    assert self._embedder
    held[1].extend(self._embedder(kind, np.stack(batch)))

  def side(self, parts: Sequence[Part]) -> Side:
    for kind in list(self._waiting):
      self._embed(kind)
    stacked = lambda numbers, arrays, shape: (
      np.array(numbers, int),
      np.stack(arrays) if arrays else np.zeros((0, *shape), np.uint8),
    )
    frame = (SIDE, SIDE)
    return Side(
      parts=parts,
      samples=self._samples,
      media=self._all,
      prints={k: stacked(*self._prints[k], (n, *frame)) for k, n in NUM_VIEWS.items()},
      slices=stacked(*self._slices, frame),
      vectors={kind: stacked(*held, (1,)) for kind, held in self._vectors.items()},
      unreadable=self._unreadable,
    )
