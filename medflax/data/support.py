"""Few-shot episodes from a pool of real samples."""

import collections
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from medflax.data.documents import Episode, Sample, SampleSource
from medflax.utils import UserError


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


# Training comes back to a sample with new support, so it is a generator in all but name.
TRAIN_PASSES = 1000


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
    self._low, self._high = (num_shots,) * 2 if isinstance(num_shots, int) else num_shots
    if not 0 <= self._low <= self._high:
      raise UserError(f"num_shots is {num_shots}; it must be a number ≥ 0 or a range (low, high)")
    self._queries, self._pool, self._seed = queries, pool, tuple(seed)
    self._length = len(queries) if num_episodes is None else num_episodes
    self._order = np.random.default_rng(self._seed).permutation(len(queries))
    _, (self._query_groups, self._groups) = _codes(queries.groups, pool.groups)
    num_topics, (self._query_topics, topics) = _codes(queries.topics, pool.topics)
    self._by_topic = [np.flatnonzero(topics == topic) for topic in range(num_topics)]
    self._check_pool()

  def _check_pool(self):
    members = collections.Counter(self._groups.tolist())
    for group in np.unique(self._query_groups).tolist():
      eligible = len(self._pool) - members[group]
      if eligible < self._high:
        raise UserError(
          f"{self._high} shots need as many samples outside the query's group, and the pool holds "
          f"{eligible} for group {self._queries.groups[self._query_groups.tolist().index(group)]!r}"
          f" ({len(self._pool)} in all); lower num_shots or add training samples"
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
    rng = np.random.default_rng((*self._seed, index))
    count = int(rng.integers(self._low, self._high + 1))
    chosen: list[int] = []
    for candidates in (self._by_topic[self._query_topics[query]], np.arange(len(self._pool))):
      if len(chosen) < count:
        excluded = int(self._query_groups[query])
        chosen += self._draw(rng.permutation(candidates), count - len(chosen), excluded, chosen)
    return rng.permutation(np.array(chosen, int)).tolist()

  def _draw(
    self, shuffled: Int[np.ndarray, " n"], count: int, excluded: int, chosen: list[int]
  ) -> list[int]:
    """The first `count` not in the `excluded` group nor `chosen`, those of new groups before."""
    fresh, repeats, groups = [], [], {excluded}
    for index in shuffled.tolist():
      group = int(self._groups[index])
      if group == excluded or index in chosen:
        continue
      (repeats if group in groups else fresh).append(index)
      groups.add(group)
      if len(fresh) == count:
        break
    return (fresh + repeats)[:count]


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


def _codes(*columns: Sequence[str]) -> tuple[int, list[Int[np.ndarray, " n"]]]:
  """Strings as integers, shared between columns: how many there are, and the columns."""
  codes: dict[str, int] = {}
  coded = [np.array([codes.setdefault(x, len(codes)) for x in column], int) for column in columns]
  return len(codes), coded
