"""Masks and the attention that every part uses."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

UNBOUNDED = 2**30  # a window that no row fills
LONG = 1024  # tokens that all see each other are left to XLA below this: padding costs more


class KeysValues(NamedTuple):
  """Keys and values of some tokens or media, heads first: as matrix products want them.

  One row is for all queries' rows alike.
  """

  key: Float[Array, "_ kv_heads s head_dim"]
  value: Float[Array, "_ kv_heads s head_dim"]


def keys_values(
  key: Float[Array, "b s kv_heads head_dim"], value: Float[Array, "b s kv_heads head_dim"]
) -> KeysValues:
  """As linear maps make them, put heads first."""
  return KeysValues(key.swapaxes(1, 2), value.swapaxes(1, 2))


def dot_product_attention(
  query: Float[Array, "b t heads head_dim"],
  key: Float[Array, "b s kv_heads head_dim"],
  value: Float[Array, "b s kv_heads head_dim"],
  mask: Bool[Array, "b t s"] | None = None,
  *,
  scale: float | None = None,
  bias: Float[Array, "_ heads t s"] | None = None,
  implementation: str | None = None,
) -> Float[Array, "b t heads head_dim"]:
  """Softmax attention; grouped queries when kv_heads < heads.

  A query whose mask row allows no key returns exactly zero. `jax.nn.dot_product_attention`
  would return the mean of the values there, which hands every image to text that may see none.

  Args:
    scale: of the logits; None for head_dim^-0.5.
    bias: added to the scaled logits.
    implementation: of `jax.nn.dot_product_attention`.
  """
  heads_mask = None if mask is None else mask[:, None]
  options: dict[str, Any] = dict(scale=scale, implementation=implementation)
  out = jax.nn.dot_product_attention(query, key, value, bias, heads_mask, **options)
  return out if mask is None else jnp.where(mask.any(-1)[:, :, None, None], out, 0)


def attention_over(
  parts: Sequence[KeysValues],
  query: Float[Array, "b t heads head_dim"],
  mask: Bool[Array, "b t s"],
  *,
  scale: float | None = None,
  bias: Float[Array, "_ heads t s"] | None = None,
  softcap: float = 0.0,
) -> Float[Array, "b t heads head_dim"]:
  """`dot_product_attention` to keys in several arrays, one softmax over all of them.

  What was read before stays where it is, and what all rows share is there once.

  Args:
    parts: their lengths sum to the mask's.
    softcap: c · tanh(logits / c) bounds the scaled logits, before `bias`; 0 for none.
  """
  b, t, heads, head_dim = query.shape
  kv_heads = parts[0].key.shape[1]
  query = query.reshape(b, t, kv_heads, heads // kv_heads, head_dim)
  logits = jnp.concatenate([_logits(query, part.key) for part in parts], axis=-1)
  logits = logits * (head_dim**-0.5 if scale is None else scale)
  if softcap:
    logits = softcap * jnp.tanh(logits / softcap)
  if bias is not None:
    logits = logits + bias.reshape(-1, kv_heads, heads // kv_heads, t, bias.shape[-1])
  logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)
  ends = np.cumsum([part.key.shape[2] for part in parts])[:-1]
  split = jnp.split(weights, ends, axis=-1)
  means = [_mean(w, part.value) for w, part in zip(split, parts, strict=True)]
  out = functools.reduce(jnp.add, means).transpose(0, 3, 1, 2, 4).reshape(b, t, heads, head_dim)
  return jnp.where(mask.any(-1)[:, :, None, None], out, 0)


def _logits(
  query: Float[Array, "b t kv_heads group head_dim"], key: Float[Array, "_ kv_heads s head_dim"]
) -> Float[Array, "b kv_heads group t s"]:
  shared = len(key) < len(query)
  form = "btkgd,ksd->bkgts" if shared else "btkgd,bksd->bkgts"
  return jnp.einsum(form, query, key[0] if shared else key, preferred_element_type=jnp.float32)


def _mean(
  weights: Float[Array, "b kv_heads group t s"], value: Float[Array, "_ kv_heads s head_dim"]
) -> Float[Array, "b kv_heads group t head_dim"]:
  shared = len(value) < len(weights)
  form = "bkgts,ksd->bkgtd" if shared else "bkgts,bksd->bkgtd"
  return jnp.einsum(form, weights, value[0] if shared else value)


class Seen(NamedTuple):
  """Which keys a query sees. Where `segments` are known, they and what follows say it all.

  Attributes:
    mask: `[b, t, s]`; None: all of them.
    segments: `[b, t]` of queries and `[b, s]` of keys, which see each other where they are the
      same; those of a query that sees nothing are 0. None: only the mask knows.
    causal: within a segment a query sees only keys up to its own place.
    windows, window, axes: see `splash_attention`.
  """

  mask: Bool[Array, "b t s"] | None
  segments: tuple[Int[Array, "b t"], Int[Array, "b s"]] | None = None
  causal: bool = False
  windows: Sequence[int] = (UNBOUNDED,)
  window: Int[Array, ""] | None = None
  axes: tuple[str | None, ...] = ("batch", "length", "act_heads")


def everything(t: int, b: int) -> Seen:
  """What media see of themselves, which are split over all devices one by one."""
  segments = jnp.ones((b, t), jnp.int32)
  known = None if t < LONG else (segments, segments)
  return Seen(None, known, axes=("media", None, None))


def _xla(query, key, value, seen: Seen, *, scale, bias=None, softcap=0.0, implementation=None):
  if softcap:
    parts, options = [keys_values(key, value)], dict(scale=scale, bias=bias, softcap=softcap)
    mask = jnp.ones((len(query), query.shape[1], key.shape[1]), bool)
    return attention_over(parts, query, mask if seen.mask is None else seen.mask, **options)
  options = dict(scale=scale, bias=bias, implementation=implementation)
  return dot_product_attention(query, key, value, seen.mask, **options)


def _splash(query, key, value, seen: Seen, *, scale, bias=None, softcap=0.0, interpret=False):
  if seen.segments is None or bias is not None:
    return _xla(query, key, value, seen, scale=scale, bias=bias, softcap=softcap)
  from medflax.models.splash import splash_attention  # a second that others need not wait

  options = dict(causal=seen.causal, windows=seen.windows, window=seen.window, axes=seen.axes)
  options |= dict(scale=scale, softcap=softcap, interpret=interpret)
  out = splash_attention(query, key, value, *seen.segments, **options)
  return jnp.where((seen.segments[0] > 0)[..., None, None], out, 0)


# Each takes query, key, value, what is seen, scale, bias and softcap, as `attention_over` has
# them. Splash is for TPUs, cuDNN for NVIDIA GPUs and 16-bit floats; splash leaves to XLA what has
# a bias or a mask that nothing shorter describes.
ATTENTIONS: dict[str, Callable[..., Float[Array, "b t heads head_dim"]]] = {
  "xla": _xla,
  "cudnn": functools.partial(_xla, implementation="cudnn"),
  "splash": _splash,
  "splash_interpreted": functools.partial(_splash, interpret=True),  # on any platform, for tests
}
BY_PLATFORM = {"tpu": "splash"}  # what `model.attention="auto"` means there; elsewhere XLA


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
