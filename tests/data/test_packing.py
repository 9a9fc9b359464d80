import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax.data.documents import VOLUME, Media
from medflax.data.encode import Encoded, RowShape
from medflax.data.packing import PackIterDataset, capacity, first_fit_decreasing, size

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
    media=[PICTURE] * images + [CUBE] * volumes,
    dropped_chunks=0,
    cut_tokens=0,
  )


def stream(count):
  rng = np.random.default_rng(0)
  sizes = np.stack(
    [rng.integers(1, 9, count), rng.integers(0, 5, count), rng.integers(0, 2, count)]
  )
  return [document(i, *map(int, row)) for i, row in enumerate(sizes.T)]


def rows_of(count, num_bins=5, seed=0):
  dataset = grain.MapDataset.source(stream(count)).to_iter_dataset()
  return PackIterDataset(dataset, SHAPE, num_bins, seed)


def numbers(row):
  return [int(d["tokens"][0]) for d in row]


SIZES = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 3)), min_size=1, max_size=30)


@given(SIZES)
def test_every_item_is_in_one_bin_and_no_bin_overflows(sizes):
  sizes, limit = np.array(sizes), np.array([10, 3])
  bins = first_fit_decreasing(sizes, limit)
  assert sorted(item for items in bins for item in items) == list(range(len(sizes)))
  assert all((sizes[items].sum(axis=0) <= limit).all() for items in bins)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=30))
def test_at_most_one_bin_is_half_empty(sizes):
  bins = first_fit_decreasing(np.array(sizes)[:, None], np.array([10]))
  loads = [sum(sizes[i] for i in items) for items in bins]
  assert sum(load <= 5 for load in loads) <= 1


def test_complements_share_bins():
  assert first_fit_decreasing(np.array([[3], [9], [1], [7]]), np.array([10])) == [[1, 2], [3, 0]]


def test_an_item_larger_than_a_bin_is_refused():
  with pytest.raises(ValueError, match=r"\[4, 0\]"):
    first_fit_decreasing(np.array([[1, 1]]), np.array([4, 0]))


def test_size_counts_tokens_and_media_by_kind():
  assert capacity(SHAPE).tolist() == [10, 4, 1]
  assert size(document(0, 7, images=2, volumes=1), SHAPE).tolist() == [7, 2, 1]


def test_a_finite_stream_is_packed_completely_and_within_bounds():
  rows = list(rows_of(50))
  assert sorted(n for row in rows for n in numbers(row)) == list(range(50))
  for row in rows:
    assert (sum(size(d, SHAPE) for d in row) <= capacity(SHAPE)).all()
    assert numbers(row) == sorted(numbers(row))


def test_rows_depend_on_the_seed_and_nothing_else():
  first, again, other = ([numbers(row) for row in rows_of(50, seed=s)] for s in (0, 0, 1))
  assert first == again
  assert first != other
  assert sorted(first) == sorted(other)


def test_rows_are_not_in_order_of_size():
  lengths = [sum(len(d["tokens"]) for d in row) for row in rows_of(200, num_bins=40)]
  assert lengths != sorted(lengths, reverse=True)


@given(st.integers(0, 20))
def test_resuming_anywhere_gives_the_remaining_rows(taken):
  iterator = iter(rows_of(50))
  for _ in range(taken):
    next(iterator)
  state = iterator.get_state()
  rest = [numbers(row) for row in iterator]
  resumed = iter(rows_of(50))
  next(resumed)
  resumed.set_state(state)
  assert [numbers(row) for row in resumed] == rest


def test_an_empty_stream_has_no_rows():
  dataset = grain.MapDataset.source(stream(5)).to_iter_dataset().filter(lambda _: False)
  assert list(PackIterDataset(dataset, SHAPE, 5, 0)) == []
