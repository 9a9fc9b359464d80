"""What ends an answer: tokens, and strings that are searched for while it is made.

A string may begin and end inside tokens, so that it is matched byte by byte: an automaton for all
strings (Aho & Corasick 1975), stepped by whole tokens in a table.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int8, Int32

from medflax.utils import UserError

ENDED = -1  # the state of a text that holds one of the strings
# Why an answer ended, by `Generation.reason`.
STOP_REASONS = {0: "length", 1: "stop_token", 2: "stop_string"}


class Stops(NamedTuple):
  """Ends of answers.

  Attributes:
    ids: of tokens that end an answer.
    table: the automaton's state after a token, by the state before (0 first); `ENDED` if a string
      is complete. A token behind the last column begins anew.
  """

  ids: Int32[Array | np.ndarray, " stops"]
  table: Int32[Array | np.ndarray, "states vocab"]

  def after(
    self, state: Int32[Array, "*n"], token: Int32[Array, "*n"]
  ) -> tuple[Int32[Array, "*n"], Int8[Array, "*n"]]:
    """The state after a token, and why the text ends there: a key of `STOP_REASONS`, 0 if not."""
    state = jnp.asarray(self.table).at[state, token].get(mode="fill", fill_value=0)
    by_token: Bool[Array, "*n"] = jnp.isin(token, self.ids)
    return state, jnp.where(by_token, 1, jnp.where(state == ENDED, 2, 0)).astype(jnp.int8)


@runtime_checkable
class HasPieces(Protocol):
  """A tokenizer that knows its tokens' text."""

  def pieces(self) -> Sequence[bytes]: ...


def stop_at(ids: Sequence[int] | Int[np.ndarray, " n"]) -> Stops:
  """Ends an answer at any of these tokens."""
  return Stops(np.array(ids, np.int32), np.zeros((1, 1), np.int32))


def make_stops(tokenizer: HasPieces, ids: Sequence[int], strings: Sequence[str]) -> Stops:
  """Ends an answer at any of the tokens `ids`, and where its text first holds any of `strings`.

  Raises:
    UserError: for an empty string.
  """
  stops = stop_at(ids)
  if not strings:
    return stops
  automaton = _automaton([string.encode() for string in strings])
  return stops._replace(table=_by_token(automaton, tokenizer.pieces()))


def _automaton(strings: Sequence[bytes]) -> Int32[np.ndarray, "states 256"]:
  """The state after a byte: how much of a string the text ends with."""
  children: list[dict[int, int]] = [{}]
  complete = set()
  for string in strings:
    if not string:
      raise UserError("stop_strings: an empty string ends every answer; leave it out")
    state = 0
    for byte in string:
      if byte not in children[state]:
        children[state][byte] = len(children)
        children.append({})
      state = children[state][byte]
    complete.add(state)
  table = np.zeros((len(children), 256), np.int32)
  fallback, queue = [0] * len(children), [0]
  for state in queue:  # nearest to the root first
    table[state] = table[fallback[state]] if state else 0
    for byte, child in children[state].items():
      fallback[child] = int(table[state, byte]) if state else 0
      table[state, byte] = child
      if fallback[child] in complete:
        complete.add(child)
      queue.append(child)
  return np.where(np.isin(table, list(complete)), ENDED, table).astype(np.int32)


def _by_token(
  automaton: Int32[np.ndarray, "states 256"], pieces: Sequence[bytes]
) -> Int32[np.ndarray, "states vocab"]:
  """The automaton stepped by the bytes of whole tokens, from every state."""
  lengths = np.array([len(piece) for piece in pieces])
  text, starts = np.frombuffer(b"".join(pieces), np.uint8), np.cumsum(lengths) - lengths
  # A last row that is never left: `ENDED` is the index of it.
  automaton = np.concatenate([automaton, np.full((1, 256), ENDED, np.int32)])
  states = np.repeat(np.arange(len(automaton) - 1, dtype=np.int32)[:, None], len(pieces), axis=1)
  for place in range(max(lengths, default=0)):
    longer = np.flatnonzero(lengths > place)
    states[:, longer] = automaton[states[:, longer], text[starts[longer] + place]]
  return states
