"""One layer of a decoder; what tells the model families apart are its fields."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medflax.models import layers
from medflax.models.attention import (
  ATTENTIONS,
  UNBOUNDED,
  KeysValues,
  Seen,
  attention_over,
  keys_values,
)
from medflax.models.language.positions import rotary
from medflax.models.language.prefix import learned_prefix, with_prefix

Cache = dict[str, Any]

NORMS: dict[str, Callable[..., nn.Module]] = {
  "rms_norm": layers.rms_norm,
  "zero_rms_norm": layers.ZeroRMSNorm,
  "layer_norm": layers.layer_norm,
  "layer_norm_no_bias": functools.partial(layers.layer_norm, use_bias=False),
}
MLPS: dict[str, type[nn.Module]] = {"gated": layers.GatedMLP, "plain": layers.MLP}

# Each head by itself (Qwen 3, Gemma 3), or all heads of a token together (MPT-1B).
QK_NORMS: dict[str, Callable[[nn.Module, jax.Array], jax.Array]] = {
  "head": lambda norm, x: norm(x),
  "all": lambda norm, x: norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape),
}


class Context(NamedTuple):
  """What all layers see alike.

  Attributes:
    positions: of the tokens, `[b, t]`.
    mask: which keys each token sees, `[b, t, s]`: those of the cache's parts, then the tokens'.
    distance: tokens from each key up to its query, `[b, t, s]`, or `[1, t, s]` for all rows.
    bias: added to the attention logits, `[b, heads, t, s]` or `[1, …]`, or None.
    media, media_mask: `[b, n, latents, dv]`, or None, and `[b, t, m]` of the cache's media as
      well, or None.
    index: where in the cache's last part the tokens' keys are written; None: they follow it.
    both_ways: which tokens see each other whatever `mask` says, within windows, or None.
    segments: documents of the row, `[b, t]`, where all that `mask` says is that a token sees its
      own up to itself; else None.
  """

  positions: Int[Array, "b t"]
  mask: Bool[Array, "b t s"]
  distance: Int[Array, "_ t s"]
  bias: Float[Array, "_ heads t s"] | None
  media: Float[Array, "b n latents dv"] | None
  media_mask: Bool[Array, "b t m"] | None
  index: Int[Array, ""] | None
  both_ways: Bool[Array, "b t s"] | None = None
  segments: Int[Array, "b t"] | None = None


class LayerFields(nn.Module):
  """What the layers of a decoder have in common; the defaults are LLaMA's.

  Attributes:
    kv_heads: key-value heads, a divisor of `heads`.
    head_dim: 0 for width / heads.
    norm, mlp, activation, residual: names in `NORMS`, `MLPS`, `layers.ACTIVATIONS`, `RESIDUALS`.
    qkv_bias, out_bias, mlp_bias: which linear maps have one.
    qk_norm: how queries and keys are normalised before they are rotated, a name in `QK_NORMS`;
      "" for not at all.
    qkv_clip: queries, keys and values are clipped to ± this (MPT); 0 for never.
    query_scale: of the attention logits; 0 for head_dim^-0.5.
    attn_softcap: c · tanh(logits / c) bounds the attention logits (Gemma 2); 0 for never.
    rope_interleaved: neighbouring channels are rotated together (GPT-J).
    windows: how many tokens up to itself a token sees in layer i, at i modulo the length; 0 for
      all, () for all everywhere.
    attention: of tokens to each other, where nothing is cached; a name in `ATTENTIONS`.
  """

  heads: int
  kv_heads: int
  mlp_width: int
  head_dim: int = 0
  norm: str = "rms_norm"
  norm_eps: float = 1e-6
  residual: str = "pre"
  mlp: str = "gated"
  activation: str = "silu"
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  qk_norm: str = ""
  qkv_clip: float = 0.0
  query_scale: float = 0.0
  attn_softcap: float = 0.0
  rope_interleaved: bool = False
  windows: Sequence[int] = ()
  attention: str = "xla"
  dtype: Any = jnp.float32


def shared_fields(module: LayerFields) -> dict[str, Any]:
  """The values of `module` for another one of the same layer."""
  names = (field.name for field in dataclasses.fields(LayerFields))
  return {name: getattr(module, name) for name in names if name not in ("parent", "name")}


def bert_fields(
  heads: int, mlp_width: int, activation: str, norm_eps: float, dtype: Any
) -> dict[str, Any]:
  """`LayerFields` of BERT's layer: LayerNorm behind each part, a plain MLP, biases everywhere."""
  return dict(
    heads=heads,
    kv_heads=heads,
    mlp_width=mlp_width,
    norm="layer_norm",
    norm_eps=norm_eps,
    residual="post",
    mlp="plain",
    activation=activation,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    dtype=dtype,
  )


class SelfAttention(LayerFields):
  """Causal attention with grouped queries (Ainslie et al. 2023)."""

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t d"],
    context: Context,
    own: dict[str, Array],
    cache: Sequence[KeysValues] = (),
  ) -> tuple[Float[Array, "b t d"], KeysValues]:
    """Attends to what is cached and to x itself.

    Args:
      own: this layer's alone, each may be absent: `frequency` for rotary positions, `window`,
        how many keys up to itself a token sees, and `query_factor`.
      cache: parts, the last of which is written to if there is an index.

    Returns:
      The output, and the keys and values of x or the part that they were written to.
    """
    query = self._project(x, "query", self.heads, "heads")
    key = self._project(x, "key", self.kv_heads, "kv_heads")
    value = self._project(x, "value", self.kv_heads, "kv_heads")
    if self.qk_norm:
      normalise = QK_NORMS[self.qk_norm]
      query = normalise(self._norm("query_norm"), query)
      key = normalise(self._norm("key_norm"), key)
    if "frequency" in own:
      rotate = lambda y: rotary(y, context.positions, own["frequency"], self.rope_interleaved)
      query, key = rotate(query), rotate(key)
    if "query_factor" in own:
      query = query * own["query_factor"].astype(query.dtype)
    mask, bias = context.mask, context.bias
    if context.both_ways is not None:
      mask = mask | context.both_ways
    if "window" in own:
      mask = mask & (context.distance < own["window"])
    new, past = keys_values(key, value), list(cache)
    if context.index is not None:
      write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2)
      new = KeysValues(*(write(x, y, context.index) for x, y in zip(past.pop(), new, strict=True)))
    if (prefix := learned_prefix(self)) is not None:
      past.insert(0, KeysValues(*(x.astype(key.dtype) for x in prefix)))
      mask, bias = with_prefix(prefix.key.shape[2], mask, bias)
    scale = self.query_scale or None
    options = dict(scale=scale, bias=bias, softcap=self.attn_softcap)
    if past or context.index is not None:
      y = attention_over([*past, new], query, mask, **options)
    else:
      y = ATTENTIONS[self.attention](query, key, value, self._seen(mask, context, own), **options)
    out = layers.dense(
      x.shape[-1],
      ("heads", "head_dim", "embed"),
      name="out",
      num_inputs=2,
      use_bias=self.out_bias,
      dtype=self.dtype,
    )
    return out(y), new

  def _seen(self, mask: Bool[Array, "b t s"], context: Context, own: dict[str, Array]) -> Seen:
    if context.segments is None:
      return Seen(mask)
    windows = sorted({window or UNBOUNDED for window in self.windows or (0,)})
    segments = (context.segments, context.segments)
    return Seen(mask, segments, causal=True, windows=windows, window=own.get("window"))

  def _project(
    self, x: Float[Array, "b t d"], name: str, heads: int, axis: str
  ) -> Float[Array, "b t {heads} head_dim"]:
    head_dim = self.head_dim or x.shape[-1] // self.heads
    axes = ("embed", axis, "head_dim")
    options = dict(name=name, use_bias=self.qkv_bias, dtype=self.dtype)
    y = layers.dense((heads, head_dim), axes, **options)(x)
    return jnp.clip(y, -self.qkv_clip, self.qkv_clip) if self.qkv_clip else y

  def _norm(self, name: str) -> nn.Module:
    return NORMS[self.norm](name=name, epsilon=self.norm_eps, dtype=self.dtype)


class DecoderLayer(LayerFields):
  """Attention and MLP around the residual stream."""

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t d"],
    context: Context,
    own: dict[str, Array],
    cache: Sequence[KeysValues] = (),
  ) -> tuple[Float[Array, "b t d"], KeysValues]:
    attention = SelfAttention(**shared_fields(self), name="attn")
    mlp = MLPS[self.mlp](
      hidden=self.mlp_width,
      activation=self.activation,
      use_bias=self.mlp_bias,
      dtype=self.dtype,
      name="mlp",
    )
    norm = lambda name, y: NORMS[self.norm](name=name, epsilon=self.norm_eps, dtype=self.dtype)(y)
    attend = lambda y: attention(y, context, own, cache)
    return RESIDUALS[self.residual](x, norm, attend, mlp)


def _pre(x, norm, attend, mlp):
  """GPT-2, LLaMA: x + attend(norm(x)), then x + mlp(norm(x))."""
  y, cache = attend(norm("attn_norm", x))
  x = x + y
  return x + mlp(norm("mlp_norm", x)), cache


def _post(x, norm, attend, mlp):
  """The first Transformer, OPT-350m: norm(x + attend(x)), then norm(x + mlp(x))."""
  y, cache = attend(x)
  x = norm("attn_norm", x + y)
  return norm("mlp_norm", x + mlp(x)), cache


def _sandwich(x, norm, attend, mlp):
  """Gemma 2 and 3: as `_pre`, with a norm behind each part as well."""
  y, cache = attend(norm("attn_norm", x))
  x = x + norm("attn_post_norm", y)
  return x + norm("mlp_post_norm", mlp(norm("mlp_norm", x))), cache


def _parallel(x, norm, attend, mlp):
  """GPT-NeoX: both parts read the same x, each through its own norm."""
  y, cache = attend(norm("attn_norm", x))
  return x + y + mlp(norm("mlp_norm", x)), cache


def _parallel_shared(x, norm, attend, mlp):
  """GPT-J, Phi: both parts read the same norm of x."""
  x_norm = norm("norm", x)
  y, cache = attend(x_norm)
  return x + y + mlp(x_norm), cache


RESIDUALS: dict[str, Callable[..., tuple[Float[Array, "b t d"], KeysValues]]] = {
  "pre": _pre,
  "post": _post,
  "sandwich": _sandwich,
  "parallel": _parallel,
  "parallel_shared": _parallel_shared,
}
