"""Stop strings by the automaton against a search in the text."""

import hypothesis
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

from medflax.data.tokenizer import load_tokenizer
from medflax.inference.stops import STOP_REASONS, make_stops
from medflax.utils import UserError


class Pieces:
  def __init__(self, pieces):
    self._pieces = pieces

  def pieces(self):
    return self._pieces


def reasons(stops, tokens):
  """After each token, until one ends the text."""
  state, found = jnp.zeros(1, jnp.int32), []
  for token in tokens:
    state, reason = stops.after(state, jnp.asarray([token], jnp.int32))
    found.append(STOP_REASONS[int(reason[0])])
    if found[-1] != "length":
      break
  return found


LETTERS = st.text("abé", min_size=1, max_size=4)


@hypothesis.given(
  st.lists(st.binary(max_size=3), min_size=1, max_size=6),
  st.lists(LETTERS, min_size=1, max_size=4),
  st.data(),
)
def test_strings_end_a_text_where_a_search_finds_them(random, strings, data):
  cuts = [piece for s in strings for piece in (s.encode()[:1], s.encode()[1:], s.encode())]
  pieces = random + cuts
  tokens = data.draw(st.lists(st.integers(0, len(pieces) - 1), max_size=12))
  found = reasons(make_stops(Pieces(pieces), [], strings), tokens)
  texts = [b"".join(pieces[t] for t in tokens[: i + 1]) for i in range(len(tokens))]
  hits = [any(s.encode() in text for s in strings) for text in texts]
  length = hits.index(True) + 1 if True in hits else len(tokens)
  want = ["length"] * length
  if True in hits:
    want[-1] = "stop_string"
  assert found == want


def test_a_stop_token_is_told_apart_and_other_tokens_begin_anew():
  stops = make_stops(Pieces([b"a", b"b"]), [1, 7], ["ab", "aa"])
  assert reasons(stops, [0, 0]) == ["length", "stop_string"]
  assert reasons(stops, [0, 1]) == ["length", "stop_token"]
  assert reasons(stops, [0, 5, 0, 7]) == ["length"] * 3 + ["stop_token"]  # 5 is not the tokenizer's


def test_without_strings_the_tokenizer_is_not_asked():
  assert make_stops(Pieces(None), [2], []).table.shape == (1, 1)


def test_no_string_is_empty():
  with pytest.raises(UserError, match="empty string"):
    make_stops(Pieces([b"a"]), [], ["a", ""])


def test_the_shipped_tokenizer():
  tokenizer = load_tokenizer()
  stops = make_stops(tokenizer, [tokenizer.eos_id], ["Question:", "\n"])
  found = reasons(stops, tokenizer.encode(" left lung Question: where"))
  assert found[-1] == "stop_string" and "where" not in tokenizer.decode(range(0))
  assert len(found) == len(tokenizer.encode(" left lung Question:"))
  assert reasons(stops, [*tokenizer.encode(" yes"), tokenizer.eos_id])[-1] == "stop_token"
