"""Masks and the one attention call that every part uses."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def dot_product_attention(
  query: Float[Array, "b t heads head_dim"],
  key: Float[Array, "b s kv_heads head_dim"],
  value: Float[Array, "b s kv_heads head_dim"],
  mask: Bool[Array, "b t s"] | None = None,
  *,
  scale: float | None = None,
  bias: Float[Array, "_ heads t s"] | None = None,
  softcap: float = 0.0,
) -> Float[Array, "b t heads head_dim"]:
  """Softmax attention; grouped queries when kv_heads < heads.

  A query whose mask row allows no key returns exactly zero. `jax.nn.dot_product_attention`
  would return the mean of the values there, which hands every image to text that may see none.

  Args:
    scale: of the logits; None for head_dim^-0.5.
    bias: added to the scaled logits.
    softcap: c · tanh(logits / c) bounds the scaled logits, before `bias`; 0 for none.
  """
  heads_mask = None if mask is None else mask[:, None]
  if softcap:
    attend = functools.partial(_softcapped_attention, softcap=softcap)
  else:
    attend = jax.nn.dot_product_attention
  out = attend(query, key, value, bias, heads_mask, scale=scale)
  return out if mask is None else jnp.where(mask.any(-1)[:, :, None, None], out, 0)


def _softcapped_attention(
  query: Float[Array, "b t heads head_dim"],
  key: Float[Array, "b s kv_heads head_dim"],
  value: Float[Array, "b s kv_heads head_dim"],
  bias: Float[Array, "_ heads t s"] | None,
  mask: Bool[Array, "b 1 t s"] | None,
  *,
  scale: float | None,
  softcap: float,
) -> Float[Array, "b t heads head_dim"]:
  """`jax.nn.dot_product_attention`, which knows no caps, with one."""
  group = query.shape[2] // key.shape[2]
  key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
  logits = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)
  logits = logits * (query.shape[-1] ** -0.5 if scale is None else scale)
  logits = softcap * jnp.tanh(logits / softcap)
  logits = logits if bias is None else logits + bias
  logits = logits if mask is None else jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum("bhts,bshd->bthd", weights, value)


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
