"""Masks and the one attention call that every part uses."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def dot_product_attention(
  query: Float[Array, "b t heads head_dim"],
  key: Float[Array, "b s kv_heads head_dim"],
  value: Float[Array, "b s kv_heads head_dim"],
  mask: Bool[Array, "b t s"] | None = None,
) -> Float[Array, "b t heads head_dim"]:
  """Softmax attention with scale head_dim^-0.5; grouped queries when kv_heads < heads.

  A query whose mask row allows no key returns exactly zero. `jax.nn.dot_product_attention`
  would return the mean of the values there, which hands every image to text that may see none.
  """
  if mask is None:
    return jax.nn.dot_product_attention(query, key, value)
  out = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])
  return jnp.where(mask.any(-1)[:, :, None, None], out, 0)


def causal_mask(
  query_slots: Int[Array, " t"],
  query_segments: Int[Array, "b t"],
  key_slots: Int[Array, " s"],
  key_segments: Int[Array, "b s"],
) -> Bool[Array, "b t s"]:
  """Each token sees the tokens of its own document up to itself.

  Slots are places in the row (or the cache), segments the documents packed in it; segment 0
  is padding and sees, and is seen by, nothing.
  """
  earlier = query_slots[:, None] >= key_slots[None, :]
  same = query_segments[:, :, None] == key_segments[:, None, :]
  return earlier & same & (query_segments > 0)[:, :, None]


def media_mask(
  media_index: Int[Array, "b t"],
  media_first: Int[Array, "b t"],
  media_ordinal: Int[Array, "b m"],
) -> Bool[Array, "b t m"]:
  """Which media each token sees: `media_first <= ordinal <= media_index`, empty slots never."""
  ordinal = media_ordinal[:, None, :]
  inside = (media_first[:, :, None] <= ordinal) & (ordinal <= media_index[:, :, None])
  return inside & (ordinal > 0)
