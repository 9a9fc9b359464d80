"""What a model has read of its prompts, so that it goes on without reading them again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from medflax.models.attention import KeysValues
from medflax.models.language.decoder import Cache


class Read(NamedTuple):
  """A prompt of `p` tokens and `m` media in each row, and room for `r` new tokens.

  Attributes:
    parts: keys and values, of what all rows begin with (one row), of the rest, of the room.
    positions: of the tokens and what stands in the room.
    seen: which tokens are the prompt's; new tokens see those.
    media_ordinal: of the media.
    media_seen: which media new tokens see: those that the last token saw.
    next_position: of the first new token.
    count: how many new tokens were appended.
  """

  parts: tuple[Cache, ...]
  positions: Int[Array, "b p+r"]
  seen: Bool[Array, "b p"]
  media_ordinal: Int[Array, "b m"]
  media_seen: Bool[Array, "b 1 m"]
  next_position: Int[Array, "b 1"]
  count: Int[Array, ""]

  @property
  def room(self) -> int:
    """How many new tokens there are places for."""
    return self.positions.shape[1] - self.seen.shape[1]

  def without_media(self) -> "Read":
    """The same where no token to come may see any of these media."""
    kept = lambda stack: {name: kv for name, kv in stack.items() if name != "xattn"}
    return self._replace(
      parts=tuple({name: kept(stack) for name, stack in part.items()} for part in self.parts),
      media_ordinal=self.media_ordinal[:, :0],
      media_seen=self.media_seen[..., :0],
    )

  def for_rows(self, b: int) -> "Read":
    """One row for many; the keys and values stay one, which attention knows."""
    spread = lambda x: jnp.broadcast_to(x, (b, *x.shape[1:]))
    fields = ("positions", "seen", "media_ordinal", "media_seen", "next_position")
    return self._replace(**{name: spread(getattr(self, name)) for name in fields})


def nothing_read(b: int) -> Read:
  """What a prompt without a prefix follows."""
  none = jnp.zeros((b, 0), jnp.int32)
  seen = jnp.zeros((b, 0), bool)
  return Read((), none, seen, none, seen[:, None], jnp.zeros((b, 1), jnp.int32), jnp.int32(0))


def append(
  places: Int[Array, "b n"],
  prompt: Bool[Array, "b p"],
  next_position: Int[Array, "b 1"],
  count: Int[Array, ""],
  seen: Bool[Array | np.ndarray, "#b t k"],
) -> tuple[Int[Array, "b t"], Int[Array, "b n"], Bool[Array, "b t n"]]:
  """Where `t` new tokens stand behind a prompt, all places with theirs, and what they see there.

  Args:
    places: positions of the prompt, and of the room behind it.
    prompt, next_position, count: `seen`, `next_position` and `count` of `Read`.
    seen: which of the new tokens so far each of these sees; see `VLM.extend`.
  """
  size, room = prompt.shape[1], places.shape[1] - prompt.shape[1]
  if seen.shape[2] > room:
    raise ValueError(f"{seen.shape[2]} new tokens, but room for {room}")
  seen = jnp.broadcast_to(seen, (len(prompt), *seen.shape[1:]))
  positions = next_position + seen.sum(-1, dtype=jnp.int32) - 1
  places = jax.lax.dynamic_update_slice_in_dim(places, positions, size + count, axis=1)
  before = jnp.broadcast_to(prompt[:, None], (*seen.shape[:2], size))
  new = jnp.pad(seen, ((0, 0), (0, 0), (0, room - seen.shape[2])))
  return positions, places, jnp.concatenate([before, new], axis=2)


def with_room(kept: Cache, size: int) -> tuple[Cache, ...]:
  """What a decoder kept of some tokens, with a part for `size` more behind it."""
  empty = lambda x: jnp.zeros((*x.shape[:-2], size, x.shape[-1]), x.dtype)
  tokens = {
    stack: {name: KeysValues(*map(empty, kv)) for name, kv in one.items() if name != "xattn"}
    for stack, one in kept.items()
  }
  return (kept, tokens) if size else (kept,)
