import dataclasses
import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from medflax.data.documents import Sample, Source
from medflax.data.support import PoolEpisodes, Subset, draw, draw_balanced, shuffled
from medflax.utils import UserError


@dataclasses.dataclass
class Samples:
  """A `PoolSource` of samples without media, named by their position."""

  name: str
  groups: list[str]
  topics: list[str]

  def __len__(self):
    return len(self.groups)

  def __getitem__(self, index):
    return self.read(index, 0)

  def text(self, index):
    return self.read(index, 0)

  def media_keys(self, index):
    return ()

  def read(self, index, epoch):
    group, topic = self.groups[index], self.topics[index]
    source = Source("made", "1", self.name)
    return Sample(f"{self.name}-{index}", (), "q", "a", source, task=topic, group=group)


def samples(name, groups, topics=None):
  return Samples(name, list(groups), list(topics or "t" * len(groups)))


def ids(episode):
  return [sample.id for sample in episode.support]


POOLS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xy")), min_size=1)


@hypothesis.given(POOLS, st.integers(0, 4), st.integers(0, 4), st.integers(0, 99))
@hypothesis.settings(deadline=None)
def test_support_never_shares_the_querys_group_and_prefers_its_topic(pool, low, more, seed):
  everything = samples("train", *zip(*pool, strict=True))
  try:
    episodes = PoolEpisodes(everything, everything, (low, low + more), seed=(seed,))
  except UserError:
    eligible = min(sum(g != group for g, _ in pool) for group, _ in pool)
    assert eligible < low + more
    return
  assert sorted(e.query.id for e in episodes) == sorted(s.id for s in everything)
  for episode in episodes:
    query, support = episode.query, episode.support
    assert low <= len(support) <= low + more
    assert len(set(ids(episode))) == len(support)
    assert query.group not in {sample.group for sample in support}
    same = [g for g, t in pool if t == query.task and g != query.group]
    shown = [sample.group for sample in support if sample.task == query.task]
    assert len(shown) == min(len(support), len(same))
    assert len(set(shown)) == min(len(shown), len(set(same)))


def test_an_episode_depends_on_seed_and_index_alone():
  pool, queries = samples("train", "abcdefgh"), samples("val", "ABCD")

  def support(seed, shots=3):
    return [ids(episode) for episode in PoolEpisodes(queries, pool, shots, seed=seed)]

  assert support((0, 1)) == support((0, 1))
  assert support((0, 1)) != support((1, 1))
  again = PoolEpisodes(queries, pool, 3, seed=(0, 1))
  assert [ids(again[i]) for i in (3, 0, 3)] == [support((0, 1))[i] for i in (3, 0, 3)]


def test_queries_come_in_the_same_order_for_every_number_of_shots():
  pool, queries = samples("train", "abcdefgh"), samples("val", "ABCDEFGHIJ")
  orders = [
    [e.query.id for e in PoolEpisodes(queries, pool, shots, seed=(0,), num_episodes=4)]
    for shots in (0, 2, (0, 5))
  ]
  assert orders[0] == orders[1] == orders[2]
  assert len(set(orders[0])) == 4


def test_a_second_pass_shows_other_support():
  pool, queries = samples("train", "abcdefgh"), samples("val", "AB")
  episodes = PoolEpisodes(queries, pool, 4, seed=(0,), num_episodes=8)
  assert len(episodes) == 8
  assert episodes[0].query.id == episodes[2].query.id
  assert len({tuple(ids(episode)) for episode in episodes}) > 4
  with pytest.raises(IndexError):
    episodes[8]


def test_the_number_of_shots_covers_its_range_and_the_draw_the_pool():
  pool, queries = samples("train", "abcdef"), samples("val", "A")
  episodes = list(PoolEpisodes(queries, pool, (0, 3), seed=(0,), num_episodes=600))
  counts = np.bincount([len(episode.support) for episode in episodes])
  assert len(counts) == 4
  assert counts.min() > 100
  first = np.bincount([int(ids(e)[0][6:]) for e in episodes if e.support], minlength=6)
  assert first.min() > 40


def test_fewer_shots_are_a_subset_of_more():
  pool, queries = samples("train", "aabbccddeeffgg", "xyxxyyxyxyxyxx"), samples("val", "ag", "xy")
  shots = [PoolEpisodes(queries, pool, k, seed=(3,)) for k in range(9)]
  for fewer, more in itertools.pairwise(shots):
    for index in range(2):
      assert set(ids(fewer[index])) < set(ids(more[index]))


@pytest.mark.parametrize("size", [0, 1, 7, 300, 3000])
def test_shuffling_lazily_is_a_permutation(size):
  candidates = np.arange(size) * 2
  order = list(shuffled(np.random.default_rng(0), candidates))
  assert sorted(order) == candidates.tolist()
  assert size < 2 or order != candidates.tolist()


def test_shuffling_lazily_is_uniform():
  rng, size = np.random.default_rng(0), 300
  firsts = [list(itertools.islice(shuffled(rng, np.arange(size)), 5)) for _ in range(6000)]
  assert all(len(set(first)) == 5 for first in firsts)
  counts = np.array([np.bincount([f[place] for f in firsts], minlength=size) for place in range(5)])
  chi = ((counts - 20) ** 2 / 20).sum(axis=1)  # of 299 degrees of freedom: 299 ± 24
  assert (abs(chi - 299) < 100).all()


def test_a_draw_from_many_touches_few():
  touched = []
  pool = np.arange(200_000)
  drawn = draw(np.random.default_rng(0), [pool, pool], pool, lambda i: not touched.append(i))
  assert len(set(itertools.islice(drawn, 8))) == len(touched) == 8


@hypothesis.given(
  st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1),
  st.integers(0, 9),
  st.integers(0, 12),
  st.integers(0, 99),
)
@hypothesis.settings(deadline=None)
def test_balanced_draws_are_as_equal_as_can_be(pool, excluded, count, seed):
  labels, groups = (np.array(column) for column in zip(*pool, strict=True))
  classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
  rng = np.random.default_rng(seed)
  drawn = draw_balanced(rng, classes, groups, lambda i: bool(groups[i] != excluded))
  taken = list(itertools.islice(drawn, count))
  assert len(taken) == len(set(taken)) == min(count, int((groups != excluded).sum()))
  assert excluded not in groups[taken]
  sizes = {c: int(((labels == c) & (groups != excluded)).sum()) for c in labels.tolist()}
  counts = {c: int((labels[taken] == c).sum()) for c in sizes}
  for c in sizes:
    assert counts[c] == sizes[c] or counts[c] >= max(counts.values()) - 1


def test_a_subset_is_a_source_of_its_own():
  pool = Subset(samples("train", "abcdef", "xyxyxy"), [1, 4])
  assert (len(pool), pool.groups, pool.topics) == (2, ["b", "e"], ["y", "x"])
  assert [pool[1].id, pool.text(0).id] == ["train-4", "train-1"]
  assert pool.media_keys(0) == ()
  [episode] = PoolEpisodes(samples("val", "b"), pool, 1, seed=(0,))
  assert ids(episode) == ["train-4"]


def test_too_small_a_pool_is_refused_with_its_numbers():
  with pytest.raises(UserError, match=r"4 shots .* holds 3 for group 'a' \(5 in all\)"):
    PoolEpisodes(samples("val", "ba"), samples("train", "aabcd"), 4, seed=(0,))
  with pytest.raises(UserError, match="num_shots"):
    PoolEpisodes(samples("val", "b"), samples("train", "aabcd"), (3, 1), seed=(0,))
