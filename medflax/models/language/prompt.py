"""Learned vectors before the tokens of every row (Lester et al. 2021, prompt tuning)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def learned_prompt(leaves: Mapping[str, Any]) -> Float[Array | np.ndarray, "p e"] | None:
  """The vectors that a decoder's leaves hold, None if they hold none.

  They are `prompt`, or what the maps `prompt_kernel_0`, `prompt_bias_0` and so on make of it, with
  a ReLU between two (p-tuning, Liu et al. 2021; the MLP of the peft library).
  """
  x = leaves.get("prompt")
  for i in range(len(leaves)):
    if f"prompt_kernel_{i}" in leaves:
      x = (nn.relu(x) if i else x) @ leaves[f"prompt_kernel_{i}"] + leaves[f"prompt_bias_{i}"]
  return x


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
