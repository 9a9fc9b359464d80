"""One layer of a decoder; what tells the model families apart are its fields."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medflax.models import layers
from medflax.models.attention import dot_product_attention
from medflax.models.language.positions import rotary
from medflax.models.language.prefix import with_prefix

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
    mask: which tokens (or cache slots) each token sees, `[b, t, s]`.
    distance: slots from each key up to its query, `[t, s]`.
    bias: added to the attention logits, `[1, heads, t, s]`, or None.
    media, media_mask: `[b, m, latents, dv]` and `[b, t, m]`, or None.
    index: cache slot of the first token, or None without a cache.
    both_ways: which tokens see each other whatever `mask` says, within windows, or None.
  """

  positions: Int[Array, "b t"]
  mask: Bool[Array, "b t s"]
  distance: Int[Array, "t s"]
  bias: Float[Array, "1 heads t s"] | None
  media: Float[Array, "b m latents dv"] | None
  media_mask: Bool[Array, "b t m"] | None
  index: Int[Array, ""] | None
  both_ways: Bool[Array, "b t s"] | None = None


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
    self, x: Float[Array, "b t d"], context: Context, own: dict[str, Array], cache: Cache | None
  ) -> tuple[Float[Array, "b t d"], Cache]:
    """Attends to x itself, or with `cache` to the cache after writing x at its slots.

    Args:
      own: this layer's alone, each may be absent: `frequency` for rotary positions, `window`,
        how many keys up to itself a token sees, and `query_factor`.
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
    if cache is not None:
      key = jax.lax.dynamic_update_slice_in_dim(cache["key"], key, context.index, axis=1)
      value = jax.lax.dynamic_update_slice_in_dim(cache["value"], value, context.index, axis=1)
    mask = context.mask
    if context.both_ways is not None:
      mask = mask | context.both_ways
    if "window" in own:
      mask = mask & (context.distance < own["window"])
    *seen, bias = with_prefix(self, key, value, mask, context.bias)
    y = dot_product_attention(
      query, *seen, scale=self.query_scale or None, bias=bias, softcap=self.attn_softcap
    )
    out = layers.dense(
      x.shape[-1],
      ("heads", "head_dim", "embed"),
      name="out",
      num_inputs=2,
      use_bias=self.out_bias,
      dtype=self.dtype,
    )
    return out(y), {"key": key, "value": value}

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
    self, x: Float[Array, "b t d"], context: Context, own: dict[str, Array], cache: Cache | None
  ) -> tuple[Float[Array, "b t d"], Cache]:
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


RESIDUALS: dict[str, Callable[..., tuple[Float[Array, "b t d"], Cache]]] = {
  "pre": _pre,
  "post": _post,
  "sandwich": _sandwich,
  "parallel": _parallel,
  "parallel_shared": _parallel_shared,
}
