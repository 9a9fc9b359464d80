"""Follows continuations as they are made: where they end, and what they may still become."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8, Int32

from medflax.inference.stops import Stops

NEVER = -1e9  # log-probability of what cannot be


class Trail(NamedTuple):
  """Where `n` continuations stand.

  Attributes:
    text: the state of the automaton for stop strings.
    alive: which of the answers that are allowed begin like this.
  """

  text: Int32[Array, " n"]
  alive: Bool[Array, "n c"]


class Guide(NamedTuple):
  """The rules for `n` continuations.

  Attributes:
    stops: what ends them.
    allowed: tokens of the answers that each may be, padded with -1; an end follows an answer.
      None: anything.
  """

  stops: Stops
  allowed: Int[Array, "n c l"] | None

  def begin(self, n: int) -> Trail:
    """Before the first token."""
    answers = 0 if self.allowed is None else self.allowed.shape[1]
    return Trail(jnp.zeros(n, jnp.int32), jnp.ones((n, answers), bool))

  def permit(
    self, logits: Float[Array, "n vocab"], trail: Trail, step: Int[Array, ""] | int
  ) -> Float[Array, "n vocab"]:
    """The logits without the tokens that lead to no allowed answer."""
    if self.allowed is None:
      return logits
    token = self._tokens(step)
    rows = jnp.arange(len(logits))[:, None]
    goes_on, ends = trail.alive & (token >= 0), trail.alive & (token < 0)
    permitted = jnp.zeros(logits.shape, bool).at[rows, jnp.maximum(token, 0)].max(goes_on)
    is_stop = jnp.zeros(logits.shape[1], bool).at[jnp.asarray(self.stops.ids)].set(True)
    permitted |= ends.any(1, keepdims=True) & is_stop
    return jnp.where(permitted, logits, NEVER)

  def follow(
    self, trail: Trail, token: Int32[Array, " n"], step: Int[Array, ""] | int
  ) -> tuple[Trail, Int8[Array, " n"]]:
    """After a token of each, and why it ends there: a key of `STOP_REASONS`, 0 if it does not."""
    text, reason = self.stops.after(trail.text, token)
    alive = trail.alive
    if self.allowed is not None:
      alive = alive & (self._tokens(step) == token[:, None])
    return Trail(text, alive), reason

  def _tokens(self, step: Int[Array, ""] | int) -> Int[Array, "n c"]:
    """The answers' tokens at a step, -1 behind their ends."""
    allowed = jnp.asarray(self.allowed)
    return allowed.at[:, :, step].get(mode="fill", fill_value=-1)
