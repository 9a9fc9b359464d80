"""Learned vectors before the tokens of every row (Lester et al. 2021, prompt tuning)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def with_prompt(
  length: int,
  positions: Int[Array, "b t"],
  mask: Bool[Array, "b t s"],
  media_mask: Bool[Array, "b t m"] | None,
  *,
  decoding: bool,
) -> tuple[Int[Array, "b _"], Bool[Array, "b _ _"], Bool[Array, "b _ m"] | None]:
  """A decoder's arguments with `length` vectors in front, or in front of the cache's slots.

  Every token that sees anything sees them, in whichever document of the row; they see those
  before them and no media. Documents begin at position `length`. What goes by slots (windows,
  ALiBi) has them where they stand: at the row's beginning.

  Args:
    decoding: whether the vectors are in the cache already.
  """
  b, _, s = mask.shape
  seen = jnp.broadcast_to(mask.any(-1, keepdims=True), (*mask.shape[:2], length))
  mask = jnp.concatenate([seen, mask], axis=-1)
  positions = positions + length
  if decoding:
    return positions, mask, media_mask
  own = jnp.tril(jnp.ones((length, length + s), bool))
  mask = jnp.concatenate([jnp.broadcast_to(own, (b, *own.shape)), mask], axis=1)
  places = jnp.broadcast_to(jnp.arange(length, dtype=positions.dtype), (b, length))
  if media_mask is not None:
    media_mask = jnp.pad(media_mask, ((0, 0), (length, 0), (0, 0)))
  return jnp.concatenate([places, positions], axis=1), mask, media_mask
