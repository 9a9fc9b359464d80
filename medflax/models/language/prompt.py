"""Learned vectors before the tokens of every row (Lester et al. 2021, prompt tuning)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def with_prompt(
  length: int,
  positions: Int[Array, "b t"],
  key_positions: Int[Array, "b s"],
  mask: Bool[Array, "b t s"],
  media_mask: Bool[Array, "b t m"] | None,
  *,
  cached: bool,
) -> tuple[Int[Array, "b _"], Int[Array, "b _"], Bool[Array, "b _ _"], Bool[Array, "b _ m"] | None]:
  """A decoder's arguments with `length` vectors in front of its tokens, or of the cache.

  Every token that sees anything sees them, in whichever document of the row; they see those
  before them and no media. Every document begins at position `length`.

  Args:
    cached: whether the vectors are in the cache already.
  """
  b, _, s = mask.shape
  seen = jnp.broadcast_to(mask.any(-1, keepdims=True), (*mask.shape[:2], length))
  mask = jnp.concatenate([seen, mask], axis=-1)
  places = jnp.broadcast_to(jnp.arange(length, dtype=positions.dtype), (b, length))
  positions = positions + length
  key_positions = jnp.concatenate([places, key_positions + length], axis=1)
  if cached:
    return positions, key_positions, mask, media_mask
  own = jnp.tril(jnp.ones((length, length + s), bool))
  mask = jnp.concatenate([jnp.broadcast_to(own, (b, *own.shape)), mask], axis=1)
  if media_mask is not None:
    media_mask = jnp.pad(media_mask, ((0, 0), (length, 0), (0, 0)))
  return jnp.concatenate([places, positions], axis=1), key_positions, mask, media_mask
