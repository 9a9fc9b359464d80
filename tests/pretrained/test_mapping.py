"""Tables between our leaves and foreign checkpoints."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from medflax.pretrained.mapping import Tensor, check, to_ours, to_theirs
from medflax.utils import UserError

WIDTH, HEADS, HEAD_DIM = 6, 2, 4


def numbered(*shape):
  return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


def test_a_torch_linear_is_transposed_and_split_into_heads():
  mapping = {"q": Tensor("q.weight", axes=(1, 0), shape=(-1, WIDTH))}
  theirs = numbered(HEADS * HEAD_DIM, WIDTH)
  ours = to_ours(mapping, {"q": np.empty((WIDTH, HEADS, HEAD_DIM))}, {"q.weight": theirs})["q"]
  assert ours[3, 1, 2] == theirs[1 * HEAD_DIM + 2, 3]


def test_the_output_projection_merges_the_other_axes():
  mapping = {"o": Tensor("o.weight", axes=(1, 0), shape=(WIDTH, -1))}
  theirs = numbered(WIDTH, HEADS * HEAD_DIM)
  ours = to_ours(mapping, {"o": np.empty((HEADS, HEAD_DIM, WIDTH))}, {"o.weight": theirs})
  assert ours["o"][1, 2, 3] == theirs[3, 1 * HEAD_DIM + 2]
  np.testing.assert_array_equal(to_theirs(mapping, ours)["o.weight"], theirs)


def test_layers_are_stacked_in_the_order_given():
  mapping = {"x": Tensor("h.{}.x", layers=(3, 1))}
  source = {"h.1.x": numbered(2), "h.3.x": 10 + numbered(2)}
  ours = to_ours(mapping, {"x": np.empty((2, 2))}, source)
  np.testing.assert_array_equal(ours["x"], [[10, 11], [0, 1]])


def test_interleaved_heads_as_gpt_neox_fuses_them():
  theirs = numbered(HEADS * 3 * HEAD_DIM, WIDTH)  # rows: head, then q/k/v, then head_dim
  cut = lambda i: Tensor(
    "qkv",
    rows=(i * HEAD_DIM, (i + 1) * HEAD_DIM),
    groups=HEADS,
    axes=(1, 0),
    shape=(-1, WIDTH),
  )
  mapping = {"q": cut(0), "k": cut(1), "v": cut(2)}
  leaf = np.empty((WIDTH, HEADS, HEAD_DIM))
  ours = to_ours(mapping, dict.fromkeys(mapping, leaf), {"qkv": theirs})
  assert ours["k"][5, 1, 2] == theirs[(1 * 3 + 1) * HEAD_DIM + 2, 5]
  np.testing.assert_array_equal(to_theirs(mapping, ours)["qkv"], theirs)


def test_rows_that_no_leaf_holds_are_written_as_zeros():
  mapping = {"table": Tensor("positions", rows=(2, 5))}
  written = to_theirs(mapping, {"table": np.ones((3, 1), np.float32)})["positions"]
  np.testing.assert_array_equal(written[:, 0], [0, 0, 1, 1, 1])


@st.composite
def tables(draw):
  """A mapping's arguments: a foreign tensor cut among several leaves; and that tensor's layers."""
  rank = draw(st.integers(1, 3))
  axis = draw(st.integers(0, rank - 1))
  groups = draw(st.integers(0, 3))
  sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
  rest = draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
  layers = tuple(draw(st.lists(st.integers(0, 9), max_size=3, unique=True)))
  axes = tuple(draw(st.permutations(range(rank)))) if draw(st.booleans()) else ()
  mapping, abstract, start = {}, {}, 0
  for i, size in enumerate(sizes):
    cut = list(rest)
    cut[axis] = (groups or 1) * size
    inner = [cut[a] for a in axes] if axes else cut
    shape, first = (), inner[0]
    if draw(st.booleans()):  # our leaf splits its first axis
      shape, inner = tuple(cut), [1, first, *inner[1:]]
      unknown = draw(st.integers(0, rank))
      shape = tuple(-1 if i == unknown else n for i, n in enumerate(shape))
    rows = (start, start + size)
    key = "h.{}.w" if layers else "w"
    mapping[f"leaf{i}"] = (key, layers, rows, groups, axis, axes, shape)
    abstract[f"leaf{i}"] = np.empty([len(layers), *inner] if layers else inner)
    start += size
  rest[axis] = (groups or 1) * start
  names = [f"h.{n}.w" for n in layers] or ["w"]
  return mapping, abstract, {name: numbered(*rest) + 100 * i for i, name in enumerate(names)}


@given(tables())
def test_there_and_back_is_bit_identical(table):
  arguments, abstract, source = table
  mapping = {path: Tensor(*args) for path, args in arguments.items()}
  ours = to_ours(mapping, abstract, source)
  assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in abstract.items()}
  assert sum(x.size for x in ours.values()) == sum(x.size for x in source.values())
  back = to_theirs(mapping, ours)
  assert back.keys() == source.keys()
  for name, array in source.items():
    np.testing.assert_array_equal(back[name], array)


def test_what_does_not_fit_is_named_by_kind():
  mapping = {"a": Tensor("a"), "b": Tensor("b"), "c": Tensor("h.{}.c", layers=(0, 1))}
  abstract = {"a": np.empty(2), "b": np.empty(3), "c": np.empty((2, 4)), "d": np.empty(1)}
  source = {"b": np.empty(4), "h.0.c": np.empty(4), "more": np.empty(1), "rotary.freq": np.empty(1)}
  with pytest.raises(UserError) as caught:
    to_ours(mapping, abstract, source, ignore=".*freq")
  message = str(caught.value)
  assert "missing: a, h.1.c" in message
  assert "without a counterpart: d" in message
  assert "unexpected: more;" in message
  assert "misshapen: b (4,) for b (3,)" in message
  assert "\n" not in message


def test_a_shape_is_not_believed_for_its_size_alone():
  mapping = {"q": Tensor("q", axes=(1, 0), shape=(-1, WIDTH))}
  abstract = {"q": np.empty((WIDTH, HEADS, HEAD_DIM))}
  with pytest.raises(UserError, match="misshapen"):
    check(mapping, abstract, {"q": np.empty((WIDTH, HEADS * HEAD_DIM))}, ignore="")


def test_leaves_without_a_place_are_named_when_writing():
  with pytest.raises(UserError, match="no place for: b"):
    to_theirs({"a": Tensor("a")}, {"a": np.ones(1), "b": np.ones(1)})
