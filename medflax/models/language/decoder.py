"""Causal language model in the LLaMA family's form, with places for gated cross-attention.

Layers are scanned in groups of `xattn_every`: the last layer of a group has the gated block
before it. Keys and values for decoding are explicit arrays, passed in and returned.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medflax.models import layers
from medflax.models.attention import dot_product_attention
from medflax.models.fusion.gated_xattn import GatedXattn

Cache = dict[str, Any]


class SelfAttention(nn.Module):
  """Causal grouped-query attention with rotary positions (LLaMA; Ainslie et al. 2023)."""

  heads: int
  kv_heads: int
  head_dim: int
  rope_theta: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t d"],
    positions: Int[Array, "b t"],
    mask: Bool[Array, "b t s"],
    cache: Cache | None,
    index: Int[Array, ""] | None,
  ) -> tuple[Float[Array, "b t d"], Cache]:
    """Attends to x itself, or with `cache` to the cache after writing x at slot `index`."""
    kv_shape, kv_axes = (self.kv_heads, self.head_dim), ("embed", "kv_heads", "head_dim")
    query = layers.dense(
      (self.heads, self.head_dim), ("embed", "heads", "head_dim"), name="query", dtype=self.dtype
    )(x)
    key = layers.dense(kv_shape, kv_axes, name="key", dtype=self.dtype)(x)
    value = layers.dense(kv_shape, kv_axes, name="value", dtype=self.dtype)(x)
    query = layers.rotary(query, positions, self.rope_theta)
    key = layers.rotary(key, positions, self.rope_theta)
    if cache is not None:
      key = jax.lax.dynamic_update_slice_in_dim(cache["key"], key, index, axis=1)
      value = jax.lax.dynamic_update_slice_in_dim(cache["value"], value, index, axis=1)
    y = dot_product_attention(query, key, value, mask)
    y = layers.dense(
      x.shape[-1], ("heads", "head_dim", "embed"), name="out", num_inputs=2, dtype=self.dtype
    )(y)
    return y, {"key": key, "value": value}


class DecoderLayer(nn.Module):
  """Pre-norm block: RMSNorm → attention → RMSNorm → SwiGLU."""

  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  rope_theta: float
  norm_eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t d"],
    positions: Int[Array, "b t"],
    mask: Bool[Array, "b t s"],
    cache: Cache | None,
    index: Int[Array, ""] | None,
  ) -> tuple[Float[Array, "b t d"], Cache]:
    attention = SelfAttention(
      self.heads, self.kv_heads, self.head_dim, self.rope_theta, self.dtype, name="attn"
    )
    y = layers.rms_norm(name="attn_norm", epsilon=self.norm_eps, dtype=self.dtype)(x)
    y, cache = attention(y, positions, mask, cache, index)
    x = x + y
    y = layers.rms_norm(name="mlp_norm", epsilon=self.norm_eps, dtype=self.dtype)(x)
    return x + layers.GatedMLP(self.mlp_width, dtype=self.dtype, name="mlp")(y), cache


class DecoderGroup(nn.Module):
  """`size` layers, the last with a gated block before it; the unit that is scanned."""

  size: int
  layer: Mapping[str, Any]  # linen freezes a dict
  fusion: GatedXattn | None
  cache_size: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, cache, positions, mask, media, media_mask, index):
    new_cache = {}
    for i in range(self.size):
      name = f"layer_{i}"
      if self.fusion is not None and i == self.size - 1:
        x, kept = self.fusion.block(self.dtype)(x, media, media_mask, cache and cache["xattn"])
        new_cache["xattn"] = kept
      layer = DecoderLayer(**self.layer, dtype=self.dtype, name=name)
      x, new_cache[name] = layer(x, positions, mask, cache and cache[name], index)
    x = nn.with_logical_constraint(x, ("batch", "length", "act_embed"))
    if cache is None:
      new_cache = self._grow(new_cache) if self.cache_size else None
    return x, new_cache

  def _grow(self, cache: Cache) -> Cache:
    """Pads the token axis of the self-attention caches to the length decoding will need."""
    pad = lambda a: jnp.pad(a, ((0, 0), (0, self.cache_size - a.shape[1]), (0, 0), (0, 0)))
    return {k: v if k == "xattn" else jax.tree.map(pad, v) for k, v in cache.items()}


class Decoder(nn.Module):
  """LLaMA-style decoder: RMSNorm, rotary positions, SwiGLU, grouped queries.

  Attributes:
    kv_heads: key-value heads, a divisor of `heads`.
    tie_embeddings: the output head is the embedding table.
    fusion: where media enter by cross-attention, None for text only.
    remat: a name in `layers.REMAT_POLICIES`, applied to each group.
  """

  vocab_size: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  mlp_width: int
  head_dim: int = 0
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-6
  tie_embeddings: bool = False
  fusion: GatedXattn | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    mask: Bool[Array, "b t s"],
    media: Float[Array, "b m latents dv"] | None,
    media_mask: Bool[Array, "b t m"] | None,
    *,
    cache: Cache | None = None,
    index: Int[Array, ""] | None = None,
    cache_size: int = 0,
    last_only: bool = False,
  ) -> tuple[Float[Array, "b out {self.vocab_size}"], Cache | None]:
    """Logits in float32 and, when prefilling or decoding, the cache.

    Args:
      mask: which tokens (or cache slots) each token sees, from `attention.causal_mask`.
      cache: keys and values of earlier tokens; x is written at slot `index`.
      cache_size: without `cache`, the token capacity of the cache to return; 0 for none.
      last_only: compute logits for the last position alone.
    """
    init = layers.param_init(nn.initializers.normal(0.02), "vocab", "embed")
    table = self.param("embedding", init, (self.vocab_size, self.width))
    x = jnp.take(table, tokens, axis=0).astype(self.dtype)
    x = nn.with_logical_constraint(x, ("batch", "length", "act_embed"))
    size = self.fusion.xattn_every if self.fusion is not None else 1
    groups, tail = divmod(self.depth, size)
    args = (positions, mask, media, media_mask, index)
    new_cache = {}
    stacks = [("groups", groups, size, self.fusion), ("tail", tail, 1, None)]
    for name, length, group_size, fusion in stacks:
      if length:
        stack = self._stack(length)(
          group_size, self._layer(), fusion, cache_size, self.dtype, name=name
        )
        x, new_cache[name] = stack(x, cache and cache[name], *args)
    x = x[:, -1:] if last_only else x
    x = layers.rms_norm(name="norm", epsilon=self.norm_eps, dtype=self.dtype)(x)
    if self.tie_embeddings:
      logits = jnp.einsum("btd,vd->btv", x, table.astype(self.dtype))
    else:
      logits = layers.dense(self.vocab_size, ("embed", "vocab"), name="head", dtype=self.dtype)(x)
    return logits.astype(jnp.float32), new_cache if cache or cache_size else None

  def _stack(self, length: int) -> Any:
    return nn.scan(
      layers.remat(DecoderGroup, self.remat),
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, *(nn.broadcast,) * 5),
      out_axes=0,
      length=length,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )

  def _layer(self) -> dict[str, Any]:
    return dict(
      heads=self.heads,
      kv_heads=self.kv_heads,
      head_dim=self.head_dim or self.width // self.heads,
      mlp_width=self.mlp_width,
      rope_theta=self.rope_theta,
      norm_eps=self.norm_eps,
    )
