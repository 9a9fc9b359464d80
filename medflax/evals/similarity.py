"""How alike samples are: their media by features or fingerprints, their questions by words."""

import collections
import concurrent.futures
import math
import os
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
import tqdm
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from medflax.data.documents import IMAGE, VOLUME, Media
from medflax.data.support import PoolSource
from medflax.leakage.check import Limits, print_pairs
from medflax.leakage.pictures import SIDE, digest, fingerprint, views
from medflax.metrics.text import normalise

# One vector for each media, all of one kind and shape.
Embed = Callable[[Sequence[Media]], Float[np.ndarray, "n d"]]

_READ_AHEAD = 64  # samples that are decoded side by side
_EMBEDDED = 64  # media of one call of `Embed`
_QUERIES = 64  # whose similarities to the whole pool are held at once
_DARK = 8 / 255  # of the margin that fitting a picture to a size leaves, and compression blurs


class Vectors(NamedTuple):
  """Unit vectors of samples: `rows[index[i]]` is that of sample i, zeros where it has none."""

  rows: Float[np.ndarray, "u d"] | scipy.sparse.csr_array
  index: Int[np.ndarray, " n"]


class MediaTable:
  """The distinct media of samples, numbered: each is embedded and fingerprinted once.

  Only features and fingerprints are kept.
  """

  def __init__(self, embed: Embed | None, *, prints: bool):
    """`embed` None: there will be no features; `prints`: whether `near` is to be asked."""
    self._embed, self._with_prints = embed, prints
    self._known: dict[Hashable, int] = {}  # by what the data set calls them
    self._numbers: dict[bytes, int] = {}  # by their pixels
    self._features: dict[int, Float[np.ndarray, " d"]] = {}
    self._prints: dict[str, dict[int, UInt8[np.ndarray, "views s s"]]] = {IMAGE: {}, VOLUME: {}}
    self._waiting: dict[tuple, list[tuple[int, Media]]] = {}

  def read(self, source: PoolSource, what: str) -> list[tuple[int, ...]]:
    """The numbers of each sample's media; `what` is the name on the progress bar."""
    keys = [source.media_keys(index) for index in range(len(source))]
    unread, claimed = [], set(self._known)
    for index, names in enumerate(keys):
      if not claimed.issuperset(names):
        unread.append(index)
        claimed.update(names)
    with (
      concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads,
      tqdm.tqdm(desc=what, total=len(unread), unit=" samples", leave=False, disable=None) as bar,
    ):
      for start in range(0, len(unread), _READ_AHEAD):
        ahead = unread[start : start + _READ_AHEAD]
        for index, sample in zip(ahead, threads.map(source.__getitem__, ahead), strict=True):
          self._known.update(zip(keys[index], map(self._take, sample.media), strict=True))
          bar.update()
    return [tuple(self._known[name] for name in names) for names in keys]

  def _take(self, media: Media) -> int:
    key = digest(media)
    if key in self._numbers:
      return self._numbers[key]
    number = self._numbers[key] = len(self._numbers)
    if self._with_prints and media.kind in self._prints:
      pictures = [_without_margin(picture) for picture in views(media)]
      self._prints[media.kind][number] = np.stack([fingerprint(picture) for picture in pictures])
    if self._embed:
      shape = (media.kind, media.array.shape, media.array.dtype.str)
      self._waiting.setdefault(shape, []).append((number, media))
      if len(self._waiting[shape]) == _EMBEDDED:
        self._flush(shape)
    return number

  def _flush(self, shape: tuple) -> None:
    numbers, media = zip(*self._waiting.pop(shape), strict=True)
    assert self._embed
    self._features.update(zip(numbers, _unit(np.asarray(self._embed(media))), strict=True))

  def vectors(self, numbers: Sequence[tuple[int, ...]]) -> Vectors:
    """For each sample the mean of its media's unit features, at unit length."""
    for shape in list(self._waiting):
      self._flush(shape)
    distinct = {key: row for row, key in enumerate(dict.fromkeys(numbers))}
    width = len(next(iter(self._features.values()), ()))
    rows = np.zeros((len(distinct), width), np.float32)
    for key, row in distinct.items():
      if key:
        rows[row] = np.mean([self._features[number] for number in key], axis=0)
    return Vectors(_unit(rows), np.array([distinct[key] for key in numbers], int))

  def near(
    self, queries: Sequence[tuple[int, ...]], pool: Sequence[tuple[int, ...]]
  ) -> list[set[int]]:
    """For each query the positions in the pool of samples with media nearly identical to its own.

    These are media of the same pixels, copies and crops, by the limits of `medflax.leakage`.
    """
    holders: dict[int, set[int]] = collections.defaultdict(set)
    for position, numbers in enumerate(pool):
      for number in numbers:
        holders[number].add(position)
    asked = {number for numbers in queries for number in numbers}
    alike = {number: {number} for number in asked}
    limits = Limits()
    for kind, least in {IMAGE: limits.crop, VOLUME: limits.volume}.items():
      mine, yours = self._printed(kind, holders), self._printed(kind, asked)
      for _, i, j, _ in print_pairs(mine, yours, limits.phash, least):
        alike[j].add(i)
    found = {number: {p for n in alike[number] for p in holders.get(n, ())} for number in asked}
    return [{p for number in numbers for p in found[number]} for numbers in queries]

  def _printed(
    self, kind: str, numbers: Collection[int]
  ) -> tuple[Int[np.ndarray, " n"], UInt8[np.ndarray, "n _ s s"]]:
    """Those of some media that have fingerprints, and these."""
    prints = self._prints[kind]
    known = [number for number in numbers if number in prints]
    if not known:
      return np.zeros(0, int), np.zeros((0, 1, SIDE, SIDE), np.uint8)
    return np.array(known), np.stack([prints[number] for number in known])


def word_vectors(queries: Sequence[str], pool: Sequence[str]) -> tuple[Vectors, Vectors]:
  """TF-IDF of texts; words that no text of the pool has count for nothing.

  A word weighs its count in the text times ln((1 + n) / (1 + m)) + 1, where m of the pool's n
  texts have it (the smoothed weight of scikit-learn's `TfidfVectorizer`).
  """
  known: collections.Counter[str] = collections.Counter()
  for text, times in collections.Counter(pool).items():
    known.update(dict.fromkeys(_words(text), times))
  weights = {word: math.log((1 + len(pool)) / (1 + m)) + 1 for word, m in known.items()}
  columns = {word: column for column, word in enumerate(weights)}

  def vectors(texts: Sequence[str]) -> Vectors:
    distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    rows, places, values = [], [], []
    for text, row in distinct.items():
      counts = collections.Counter(word for word in _words(text) if word in weights)
      weighed = np.array([count * weights[word] for word, count in counts.items()], np.float32)
      rows += [row] * len(counts)
      places += [columns[word] for word in counts]
      values += (weighed / np.linalg.norm(weighed)).tolist()
    entries = (np.array(values, np.float32), (np.array(rows, int), np.array(places, int)))
    matrix = scipy.sparse.csr_array(entries, shape=(len(distinct), len(columns)))
    return Vectors(matrix, np.array([distinct[text] for text in texts], int))

  return vectors(queries), vectors(pool)


def similarities(
  parts: Sequence[tuple[float, Vectors, Vectors]],
) -> Iterator[Float[np.ndarray, " pool"]]:
  """For each query in turn the weighted sum of its cosines with all of the pool.

  Samples with the same media and text have exactly the same sum.

  Args:
    parts: a weight, the queries' vectors and the pool's, of each kind of similarity.
  """
  total = len(parts[0][1].index)
  for start in range(0, total, _QUERIES):
    block = [_cosines(a, b, slice(start, start + _QUERIES)) * w for w, a, b in parts]
    yield from sum(block[1:], start=block[0])


def most_similar(
  scores: Float[np.ndarray, " n"],
  eligible: Bool[np.ndarray, " n"],
  preferred: Bool[np.ndarray, " n"],
  count: int,
) -> Int[np.ndarray, " k"]:
  """`count` eligible positions, or all of them: the preferred first, then the highest scores first.

  Among equal scores those of lower positions come first.
  """
  best = _highest(scores, np.flatnonzero(eligible & preferred), count)
  rest = _highest(scores, np.flatnonzero(eligible & ~preferred), count - len(best))
  return np.concatenate([best, rest])


def _highest(
  scores: Float[np.ndarray, " n"], among: Int[np.ndarray, " m"], count: int
) -> Int[np.ndarray, " k"]:
  if 0 < count < len(among):
    least = np.partition(scores[among], -count)[-count]
    among = among[scores[among] >= least]
  return among[np.lexsort((among, -scores[among]))][:count]


def _cosines(queries: Vectors, pool: Vectors, some: slice) -> Float[np.ndarray, "q n"]:
  products = queries.rows[queries.index[some]] @ pool.rows.T
  dense = products.toarray() if isinstance(products, scipy.sparse.csr_array) else products
  return np.asarray(dense, np.float32)[:, pool.index]


def _unit(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
  vectors = vectors.astype(np.float32)
  return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def _words(text: str) -> list[str]:
  return normalise(text).split()


def _without_margin(picture: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "_ _ c"]:
  """A picture fitted to a size has black bars, which would be alike in all of one shape."""
  white = 255 if picture.dtype == np.uint8 else 1
  bright = picture.max(axis=-1) > _DARK * white
  rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
  if not len(rows):
    return picture
  return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
