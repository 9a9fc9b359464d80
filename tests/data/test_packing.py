import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflax.data.documents import VOLUME, Media
from medflax.data.encode import Encoded, RowShape
from medflax.data.packing import (
  PackedRows,
  by_mixture,
  capacity,
  first_fit_decreasing,
  pack,
  scarce_slots,
  size,
)

PICTURE = Media(np.zeros((1, 1, 3), np.uint8))
CUBE = Media(np.zeros((1, 1, 1, 1), np.uint8), VOLUME)
SHAPE = RowShape(10, {"image": (4, 1, 1, 3), "volume": (1, 1, 1, 1, 1)})


def document(number, length, images=0, volumes=0):
  zeros = np.zeros(length, np.int32)
  return Encoded(
    tokens=zeros + np.int32(number),
    loss_mask=zeros.astype(np.float32),
    media_index=zeros,
    media_first=zeros,
    soft_index=zeros,
    media=[PICTURE] * images + [CUBE] * volumes,
    dropped_chunks=0,
    cut_tokens=0,
    entry="",
  )


def stream(count):
  rng = np.random.default_rng(0)
  sizes = np.stack(
    [rng.integers(1, 9, count), rng.integers(0, 5, count), rng.integers(0, 2, count)]
  )
  return [document(i, *map(int, row)) for i, row in enumerate(sizes.T)]


def packed(shards=(0,), of=1, num_bins=5, seed=0):
  """Rows of 1,000 documents; of `of` shards the s-th has every one that is s modulo `of`."""
  sizes = stream(1000)

  def read(start):
    return (sizes[turn * of + shard] for turn in itertools.count(start) for shard in shards)

  return PackedRows(read, shards, SHAPE, num_bins, seed)


def rows_of(count, shard=0, **options):
  rows = packed(**options)
  return [rows.next_row(shard) for _ in range(count)]


def numbers(row):
  return [int(d["tokens"][0]) for d in row]


SIZES = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 3)), min_size=1, max_size=30)


@pytest.mark.parametrize("how", [first_fit_decreasing, by_mixture, pack])
@given(SIZES)
def test_every_item_is_in_one_bin_and_no_bin_overflows(how, sizes):
  sizes, limit = np.array(sizes), np.array([10, 3])
  bins = how(sizes, limit)
  assert sorted(item for items in bins for item in items) == list(range(len(sizes)))
  assert all((sizes[items].sum(axis=0) <= limit).all() for items in bins)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=30))
def test_at_most_one_bin_is_half_empty(sizes):
  bins = first_fit_decreasing(np.array(sizes)[:, None], np.array([10]))
  loads = [sum(sizes[i] for i in items) for items in bins]
  assert sum(load <= 5 for load in loads) <= 1


def test_complements_share_bins():
  assert first_fit_decreasing(np.array([[3], [9], [1], [7]]), np.array([10])) == [[1, 2], [3, 0]]


def test_short_items_are_spread_where_they_would_fill_bins_with_media():
  sizes = np.array([[5, 1]] * 20 + [[1, 1]] * 40)
  limit = np.array([11, 5])
  assert len(first_fit_decreasing(sizes, limit)) > len(by_mixture(sizes, limit))
  assert len(pack(sizes, limit)) == len(by_mixture(sizes, limit))


def test_slots_that_are_full_before_the_tokens_are_named():
  assert scarce_slots(np.array([[8, 1, 0], [9, 4, 0]]), SHAPE) == ""
  hint = scarce_slots(np.array([[2, 3, 0], [3, 3, 0]]), SHAPE)
  assert "data.max_media.image = 4 with at most 33% of their tokens" in hint
  assert "12 slots" in hint
  assert "data.max_media.volume = 1" in scarce_slots(np.array([[2, 1, 1]]), SHAPE)


def test_the_hint_is_logged_once_a_run(caplog):
  caplog.set_level("INFO")
  rows_of(40, num_bins=2)
  assert caplog.text.count("data.max_media.") == 1
  caplog.clear()
  rows_of(4, shard=1, shards=(1,), of=2)
  assert not caplog.text


def test_an_item_larger_than_a_bin_is_refused():
  with pytest.raises(ValueError, match=r"\[4, 0\]"):
    first_fit_decreasing(np.array([[1, 1]]), np.array([4, 0]))


def test_size_counts_tokens_and_media_by_kind():
  assert capacity(SHAPE).tolist() == [10, 4, 1]
  assert size(document(0, 7, images=2, volumes=1), SHAPE).tolist() == [7, 2, 1]


def test_groups_are_packed_completely_and_within_bounds():
  rows, found = packed(), []
  while rows.get_state()[0]["group"] < 3:
    row = rows.next_row(0)
    assert (sum(size(d, SHAPE) for d in row) <= capacity(SHAPE)).all()
    assert numbers(row) == sorted(numbers(row))
    found += numbers(row)
  assert sorted(found) == list(range(rows.get_state()[0]["start"]))


def test_rows_depend_on_the_seed_and_nothing_else():
  first, again, other = ([numbers(row) for row in rows_of(40, seed=s)] for s in (0, 0, 1))
  assert first == again != other


def test_rows_are_not_in_order_of_size():
  lengths = [sum(len(d["tokens"]) for d in row) for row in rows_of(40, num_bins=40)]
  assert lengths != sorted(lengths, reverse=True)


@given(st.integers(0, 20))
def test_resuming_anywhere_gives_the_remaining_rows(taken):
  rows = packed()
  for _ in range(taken):
    rows.next_row(0)
  state = rows.get_state()
  rest = [numbers(rows.next_row(0)) for _ in range(9)]
  resumed = packed()
  resumed.next_row(0)
  resumed.set_state(state)
  assert [numbers(resumed.next_row(0)) for _ in range(9)] == rest


@given(st.lists(st.integers(0, 3), max_size=30))
@settings(max_examples=10, deadline=None)
def test_a_shard_gives_the_same_rows_whoever_reads_it_beside_others(turns):
  together = packed(range(4), of=4)
  alone = [packed((shard,), of=4) for shard in range(4)]
  for shard in turns:
    assert numbers(together.next_row(shard)) == numbers(alone[shard].next_row(shard))
  pair = packed((2, 3), of=4)  # goes on from a state in which the shards are at different places
  pair.set_state(together.get_state())
  for shard in (2, 3, 3):
    assert numbers(pair.next_row(shard)) == numbers(alone[shard].next_row(shard))
