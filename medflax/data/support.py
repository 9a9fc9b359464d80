"""Few-shot episodes from a pool of real samples."""

import collections
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from medflax.data.documents import Episode, Sample, SampleSource, shots_range
from medflax.utils import UserError, nearest


@runtime_checkable
class PoolSource(SampleSource, Protocol):
  """Samples whose keys are known without decoding them; item i is `read(i, 0)`.

  Attributes:
    groups: what may not be shared between a query and its support; never empty.
    topics: what is asked; support samples of the query's own topic are preferred.
  """

  groups: Sequence[str]
  topics: Sequence[str]

  def read(self, index: int, epoch: int) -> Sample:
    """Sample `index`; where media are augmented, anew for every `epoch`."""
    ...

  def text(self, index: int) -> Sample:
    """Sample `index` without its media, none of which is decoded."""
    ...

  def media_keys(self, index: int) -> Sequence[Hashable]:
    """Names of its media, the same for the same ones anywhere in the data set."""
    ...


# Training comes back to a sample with new support, so it is a generator in all but name.
TRAIN_PASSES = 1000
_TRIES = 256
_KEYS = ("id", "task", "group", "question", "answer", "choices")  # beside those of `Sample.meta`
_MOST_VALUES = 12  # named in a message


class PoolEpisodes(Sequence[Episode]):
  """Each query with support samples drawn from a pool.

  Support samples never share the query's group, so they never are the query. Those of its topic
  come first, then, within a topic, those of groups not drawn yet; among equals the draw is
  uniform, and so is the order they are shown in. Episode i depends on (seed, i) and nothing else.

  Queries come in an order shuffled by the seed, the same for every number of shots: a shorter
  sequence is a fair subset, and scores at several numbers of shots are paired. Beyond the last
  query the sequence starts over, with other support samples.

  Raises:
    UserError: if some query finds fewer eligible samples in the pool than it may need.
  """

  def __init__(
    self,
    queries: PoolSource,
    pool: PoolSource,
    num_shots: int | tuple[int, int],
    *,
    seed: Sequence[int],
    num_episodes: int | None = None,
  ):
    self._low, self._high = shots_range(num_shots)
    self._queries, self._pool, self._seed = queries, pool, tuple(seed)
    self._length = len(queries) if num_episodes is None else num_episodes
    self._order = np.random.default_rng(self._seed).permutation(len(queries))
    _, (self._query_groups, self._groups) = codes(queries.groups, pool.groups)
    num_topics, (self._query_topics, topics) = codes(queries.topics, pool.topics)
    self._by_topic = split_codes(topics, num_topics)
    self._all = np.arange(len(pool))
    self._check_pool()

  def _check_pool(self):
    sizes = collections.Counter(self._groups.tolist())
    for place, group in enumerate(self._query_groups.tolist()):
      eligible = len(self._pool) - sizes[group]
      if eligible < self._high:
        raise UserError(
          f"{self._high} shots need as many samples outside the query's group, and the pool holds "
          f"{eligible} for group {self._queries.groups[place]!r} ({len(self._pool)} in all); lower "
          "num_shots or add training samples"
        )

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Episode:
    if not 0 <= index < self._length:
      raise IndexError(f"episode {index} of {self._length}")
    query = int(self._order[index % len(self._order)])
    # A sample comes again in many episodes, so that the episode's number is what tells them apart.
    support = tuple(self._pool.read(i, index) for i in self.support_indices(index, query))
    return Episode(self._queries.read(query, index), support)

  def support_indices(self, index: int, query: int) -> list[int]:
    """Positions in the pool of episode `index`'s support samples, in the order shown."""
    if not self._high:
      return []
    rng = np.random.default_rng((*self._seed, index))
    count = int(rng.integers(self._low, self._high + 1))
    stages = (self._by_topic[self._query_topics[query]], self._all)
    excluded = self._query_groups[query]
    drawn = draw(rng, stages, self._groups, lambda i: bool(self._groups[i] != excluded))
    return rng.permutation(np.array(list(itertools.islice(drawn, count)), int)).tolist()


def split_episodes(
  queries: PoolSource,
  pool: Callable[[], PoolSource],
  num_shots: int | tuple[int, int],
  *,
  seed: Sequence[int],
  training: bool,
  num_episodes: int | None,
) -> PoolEpisodes:
  """The episodes of a split of finite size.

  Outside the training split no query comes twice, so `num_episodes` above the number of queries
  means all of them; training goes over its samples again and again with new support.

  Args:
    queries: the samples of the split.
    pool: gives what support is drawn from; not called for zero shots.
    num_shots: a number or an inclusive range.
    seed: of the data set and the split.
    training: whether it is the training split.
    num_episodes: how many; None: all there are.

  Raises:
    UserError: if the pool is too small for `num_shots`.
  """
  most = len(queries) * (TRAIN_PASSES if training else 1)
  return PoolEpisodes(
    queries,
    pool() if num_shots != 0 else queries,
    num_shots,
    seed=seed,
    num_episodes=most if num_episodes is None else min(num_episodes, most),
  )


def shuffled(rng: np.random.Generator, candidates: Int[np.ndarray, " n"]) -> Iterator[int]:
  """All candidates in an order that is uniform at random.

  The first of very many cost no permutation of all: what is drawn with replacement begins one, in
  the order in which it first appears.
  """
  seen: dict[int, None] = {}
  if len(candidates) > _TRIES:
    for place in rng.integers(len(candidates), size=_TRIES).tolist():
      if place not in seen:
        seen[place] = None
        yield int(candidates[place])
  yield from rng.permutation(np.delete(candidates, np.array(list(seen), int))).tolist()


def draw(
  rng: np.random.Generator,
  stages: Sequence[Int[np.ndarray, " _"]],
  groups: Int[np.ndarray, " pool"],
  eligible: Callable[[int], bool],
) -> Iterator[int]:
  """Positions in the pool, none twice, as long as there are eligible ones in any of `stages`.

  Those of the first stage come first, and within a stage those of groups not drawn yet.
  """
  given: set[int] = set()
  drawn: set[int] = set()
  for stage in stages:
    for index in _new_groups_first(rng, stage, groups, eligible, drawn):
      if index not in given:
        given.add(index)
        yield index


def draw_balanced(
  rng: np.random.Generator,
  classes: Sequence[Int[np.ndarray, " _"]],
  groups: Int[np.ndarray, " pool"],
  eligible: Callable[[int], bool],
) -> Iterator[int]:
  """Eligible positions of each class in turn, in a random order of disjoint classes.

  However many are taken, no class has two more than another that is not used up. Within a class,
  those of groups not drawn yet come first.
  """
  drawn: set[int] = set()
  order = rng.permutation(len(classes)).tolist()
  turns = [_new_groups_first(rng, classes[c], groups, eligible, drawn) for c in order]
  while turns:
    going = []
    for turn in turns:
      if (index := next(turn, None)) is not None:
        going.append(turn)
        yield index
    turns = going


def _new_groups_first(
  rng: np.random.Generator,
  candidates: Int[np.ndarray, " n"],
  groups: Int[np.ndarray, " pool"],
  eligible: Callable[[int], bool],
  drawn: set[int],
) -> Iterator[int]:
  """The eligible candidates at random, those of groups not in `drawn` first; adds to it."""
  repeats = []
  for index in shuffled(rng, candidates):
    if not eligible(index):
      continue
    group = int(groups[index])
    if group in drawn:
      repeats.append(index)
    else:
      drawn.add(group)
      yield index
  yield from repeats


class Subset:
  """Some samples of a `PoolSource`, itself one."""

  def __init__(self, source: PoolSource, positions: Sequence[int]):
    self._source, self._positions = source, positions
    self.groups: Sequence[str] = [source.groups[i] for i in positions]
    self.topics: Sequence[str] = [source.topics[i] for i in positions]

  def __len__(self) -> int:
    return len(self._positions)

  def __getitem__(self, index: int) -> Sample:
    return self.read(index, 0)

  def read(self, index: int, epoch: int) -> Sample:
    """The sample, as its source reads it."""
    return self._source.read(self._positions[index], epoch)

  def text(self, index: int) -> Sample:
    """The sample without its media."""
    return self._source.text(self._positions[index])

  def media_keys(self, index: int) -> Sequence[Hashable]:
    """Names of the sample's media."""
    return self._source.media_keys(self._positions[index])


def record(sample: Sample) -> dict[str, Any]:
  """A sample's keys, by which it can be selected."""
  named = {key: getattr(sample, key) for key in _KEYS}
  return {**sample.meta, **named}


def select(place: str, source: PoolSource, where: Mapping[str, Any]) -> PoolSource:
  """The samples whose record has the values of `where`, without decoding media.

  Values are compared as text. Several, as a tuple or list, are alternatives; a record that has a
  list needs one of them in it.

  Raises:
    UserError: naming `place`, if no record has a key, or none has the values.
  """
  if not where:
    return source
  wanted = {key: set(_texts(value)) for key, value in where.items()}
  held: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  keys: set[str] = set()
  kept = []
  for index in range(len(source)):
    found = record(source.text(index))
    keys |= found.keys()
    values = {key: _texts(found.get(key, ())) for key in wanted}
    for key in wanted:
      held[key].update(values[key])
    if all(not wanted[key].isdisjoint(values[key]) for key in wanted):
      kept.append(index)
  for key in wanted:
    if key not in keys:
      raise UserError(f"{place}: no record has the key {key!r}{nearest(key, keys)}")
  if not kept:
    there = "; ".join(f"{key} is one of {_listed(held[key])}" for key in wanted)
    raise UserError(f"{place} leaves none of {len(source):,} samples: {there}")
  return Subset(source, kept)


def _texts(value: Any) -> list[str]:
  return [str(x) for x in value] if isinstance(value, list | tuple) else [str(value)]


def _listed(values: Mapping[str, int]) -> str:
  names = sorted(values)
  more = f", … ({len(names):,} in all)" if len(names) > _MOST_VALUES else ""
  return ", ".join(map(repr, names[:_MOST_VALUES])) + more


def codes(*columns: Sequence[str]) -> tuple[int, list[Int[np.ndarray, " _"]]]:
  """Strings as integers, shared between columns: how many there are, and the columns."""
  known: dict[str, int] = {}
  coded = [np.array([known.setdefault(x, len(known)) for x in column], int) for column in columns]
  return len(known), coded


def split_codes(coded: Int[np.ndarray, " n"], count: int) -> list[Int[np.ndarray, " _"]]:
  """For each of `count` codes its positions, ascending."""
  order = np.argsort(coded, kind="stable")
  return np.split(order, np.searchsorted(coded[order], np.arange(1, count)))
