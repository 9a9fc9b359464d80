"""Causal language model of many families, with places where media meet the text.

Layers are scanned in groups of `xattn_every`: the last layer of a group has the gated block
before it. What differs from layer to layer (windows, rotary frequencies) is scanned with them,
so that compiling takes no longer for a deeper model. Keys and values for decoding are explicit
arrays, passed in and returned.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from medflax.models import layers
from medflax.models.attention import UNBOUNDED
from medflax.models.chunks import LogitSums
from medflax.models.fusion.fused_head import FusedHead
from medflax.models.fusion.gated_xattn import GatedXattn
from medflax.models.fusion.inline import Inline, SoftTokens
from medflax.models.language.layer import (
  NORMS,
  Cache,
  Context,
  DecoderLayer,
  LayerFields,
  shared_fields,
)
from medflax.models.language.positions import alibi, rope_frequencies
from medflax.models.language.prefix import prefix_length
from medflax.models.language.prompt import learned_prompt, with_prompt
from medflax.parallel.sharding import constrain, gathered, looked_up


class DecoderGroup(nn.Module):
  """`size` layers, the last with a gated block before it; the unit that is scanned."""

  size: int
  layer: Mapping[str, Any]  # linen freezes a dict
  fusion: GatedXattn | None
  one_medium: bool
  keep: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t d"],
    own: dict[str, Array],
    cache: Sequence[Cache],
    context: Context,
  ) -> tuple[Float[Array, "b t d"], Cache | None]:
    """Arrays in `own` have the group's layers first; of the cache's parts some have no media."""
    new = {}
    for i in range(self.size):
      name = f"layer_{i}"
      if self.fusion is not None and i == self.size - 1:
        block = self.fusion.block(self.dtype, self.layer["attention"], self.one_medium)
        seen = [part["xattn"] for part in cache if "xattn" in part]
        x, media = block(x, context.media, context.media_mask, seen)
        if media is not None:
          new["xattn"] = media
      layer = DecoderLayer(**self.layer, name=name)
      layers_own = {key: value[i] for key, value in own.items()}
      x, new[name] = layer(x, context, layers_own, [part[name] for part in cache])
    x = constrain(x, "batch", "length", "act_embed")
    return x, new if self.keep else None


class Decoder(LayerFields, kw_only=True):
  """Decoder-only Transformer. Families are settings; the defaults are LLaMA's.

  Attributes:
    tie_embeddings: the output head is the embedding table.
    extra_tokens: ids from `vocab_size` on that have an embedding and are never predicted (RadFM).
    embed_width: of the embedding table, mapped to `width` and back (OPT-350m); 0 for `width`.
    embed_scale: factor on the embeddings (Gemma, BioGPT: √width).
    rope_theta: base of rotary positions; 0 for none.
    rope_local_theta: base in layers with a window (Gemma 3), unscaled; 0 for `rope_theta`.
    rope_dim: channels of a head that are rotated; 0 for all.
    rope_scaling: {} or `type` and arguments of a function in `positions.ROPE_SCALINGS`.
    learned_positions: rows of a position table added to the embeddings; 0 for no table.
    position_offset: the row of position 0 (OPT, BioGPT: 2).
    alibi_bias_max: the steepest slope is 2^-(this / heads); 0 for no ALiBi.
    inverse_depth_scale: layer i's attention logits are divided by i + 1 (BioMedLM).
    final_norm: a norm before the head.
    head_bias: of the head, if it is not tied.
    logit_softcap: c · tanh(logits / c) bounds the logits (Gemma 2); 0 for never.
    fusion: how media meet the text, None for text only.
    one_medium: no token sees more than one media item, as with Flamingo's rules.
    remat: a name in `layers.REMAT_POLICIES`, applied to each group.
  """

  vocab_size: int
  width: int
  depth: int
  tie_embeddings: bool = False
  extra_tokens: int = 0
  embed_width: int = 0
  embed_scale: float = 1.0
  rope_theta: float = 10_000.0
  rope_local_theta: float = 0.0
  rope_dim: int = 0
  rope_scaling: Mapping[str, Any] = nn.FrozenDict()
  learned_positions: int = 0
  position_offset: int = 0
  alibi_bias_max: float = 0.0
  inverse_depth_scale: bool = False
  final_norm: bool = True
  head_bias: bool = False
  logit_softcap: float = 0.0
  fusion: GatedXattn | Inline | FusedHead | None = None
  one_medium: bool = False
  remat: str = "none"

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    mask: Bool[Array, "b t s"],
    media: Float[Array, "b n latents dv"] | None,
    media_mask: Bool[Array, "b t m"] | None,
    *,
    segments: Int[Array, "b t"] | None = None,
    soft: SoftTokens | None = None,
    cache: Sequence[Cache] = (),
    key_positions: Int[Array, "b s"] | None = None,
    index: Int[Array, ""] | None = None,
    keep: bool = False,
    last_only: bool = False,
    sums: LogitSums | None = None,
  ) -> tuple[Float[Array, "b out {self.vocab_size}"] | Any, Cache | None]:
    """Logits in float32 and, if they are to be kept, the tokens' and media's keys and values.

    Args:
      mask: which keys each token sees: those of the cache, part by part, then the tokens'.
      media: those that are not in the cache; `media_mask` is of all.
      segments: where the mask is `causal_mask` of these documents, and there is no cache.
      soft: what stands in the row instead of embeddings.
      cache: what was kept of earlier tokens, in parts; one row serves all.
      key_positions: of the keys; needed with a cache.
      index: where in the cache's last part the tokens are written, which is then what is
        returned; None: they follow the cache.
      last_only: compute logits for the last position alone.
      sums: return these instead of the logits.
    """
    init = layers.param_init(nn.initializers.normal(0.02), "vocab", "embed")
    table = self.param("embedding", init, (self.vocab_size, self.embed_width or self.width))
    prompt = learned_prompt(self.variables.get("params", {}))  # of medflax.peft
    both_ways = None
    if soft is not None and isinstance(self.fusion, Inline) and self.fusion.bidirectional:
      both_ways = soft.same_media()
    if prompt is not None:
      places = positions if key_positions is None else key_positions
      more = with_prompt(prompt.shape[0], positions, places, mask, media_mask, cached=bool(cache))
      positions, key_positions, mask, media_mask = more
      segments = None  # all see the prompt
      prompt = None if cache else prompt
    distance = _distance(positions, key_positions)
    positions = positions + prefix_length(self.variables.get("params", {}))
    x = self._embed(table, tokens, positions, prompt, soft)
    x = constrain(x, "batch", "length", "act_embed")
    if both_ways is not None:  # the tokens stand behind everything else
      ahead = [(0, 0), *((n - tokens.shape[1], 0) for n in mask.shape[1:])]
      both_ways = jnp.pad(both_ways, ahead)
    bias = alibi(distance, self.heads, self.alibi_bias_max) if self.alibi_bias_max else None
    segments = None if both_ways is not None else segments
    seen = (media, media_mask, index, both_ways, segments)
    context = Context(positions, mask, distance, bias, *seen)
    gated = self.fusion if isinstance(self.fusion, GatedXattn) else None
    size = gated.xattn_every if gated else 1
    groups, tail = divmod(self.depth, size)
    own, new = self._own(), {}
    stacks = [("groups", 0, groups, size, gated), ("tail", groups * size, tail, 1, None)]
    for name, first, length, group_size, fusion in stacks:
      if length:
        layer = shared_fields(self)
        stack = layers.stack(DecoderGroup, length, self.remat, (0, 0, nn.broadcast))
        stack = stack(group_size, layer, fusion, self.one_medium, keep, self.dtype, name=name)
        grouped = {k: _grouped(a, first, length, group_size) for k, a in own.items()}
        x, new[name] = stack(x, grouped, [part[name] for part in cache], context)
    if isinstance(self.fusion, FusedHead):
      x = self._final_norm(x[:, -tokens.shape[1] :])
      encoder = self.fusion.encoder(self.vocab_size, self.remat, self.dtype)
      logits = encoder(x, context.mask, media, media_mask)
      return (logits if sums is None else sums.of(logits, sums.rows)), None
    if sums is not None:
      head = lambda decoder, x: decoder._logits(table, x)
      return sums.over(self, head, x[:, -tokens.shape[1] :]), None
    logits = self._logits(table, x[:, -1:] if last_only else x[:, -tokens.shape[1] :])
    return logits, new if keep else None

  def _embed(
    self,
    table: Float[Array, "vocab e"],
    tokens: Int[Array, "b t"],
    positions: Int[Array, "b n"],
    prompt: Float[Array, "p e"] | None,
    soft: SoftTokens | None,
  ) -> Float[Array, "b n {self.width}"]:
    known = jnp.minimum(tokens, self.vocab_size - 1)
    x = looked_up(table, known, "vocab", "embed", dtype=self.dtype)
    if self.extra_tokens:
      init = layers.param_init(nn.initializers.normal(0.02), None, "embed")
      extra = self.param("extra_embedding", init, (self.extra_tokens, table.shape[1]))
      others = jnp.maximum(tokens - self.vocab_size, 0)
      rows = looked_up(extra, others, None, "embed", dtype=self.dtype)
      x = jnp.where((tokens < self.vocab_size)[..., None], x, rows)
    if self.embed_scale != 1:
      x = x * jnp.asarray(self.embed_scale, self.dtype)
    if soft is not None:
      x = jnp.where((soft.ordinal > 0)[..., None], soft.features.astype(self.dtype), x)
    if prompt is not None:
      rows = jnp.broadcast_to(prompt.astype(self.dtype), (x.shape[0], *prompt.shape))
      x = jnp.concatenate([rows, x], axis=1)
    if self.embed_width:
      x = layers.dense(self.width, ("narrow_embed", "embed"), name="embed_in", dtype=self.dtype)(x)
    if self.learned_positions:
      init = layers.param_init(nn.initializers.normal(0.02), "pos", "embed")
      rows = self.param("positions", init, (self.learned_positions, self.width))
      numbers = positions + self.position_offset
      x = x + looked_up(rows, numbers, "pos", "embed", dtype=self.dtype)
    return x

  def _logits(
    self, table: Float[Array, "vocab e"], x: Float[Array, "b t {self.width}"]
  ) -> Float[Array, "b t vocab"]:
    x = self._final_norm(x)
    if self.embed_width:
      axes = ("embed", "narrow_embed")
      x = layers.dense(self.embed_width, axes, name="embed_out", dtype=self.dtype)(x)
    if self.tie_embeddings:
      rows = gathered(table.astype(self.dtype), "vocab", "embed")
      logits = jnp.einsum("btd,vd->btv", x, rows)
    else:
      options = dict(name="head", use_bias=self.head_bias, dtype=self.dtype)
      logits = layers.dense(self.vocab_size, ("embed", "vocab"), **options)(x)
    logits = logits.astype(jnp.float32)
    cap = self.logit_softcap
    return cap * jnp.tanh(logits / cap) if cap else logits

  def _final_norm(self, x: Float[Array, "b t {self.width}"]) -> Float[Array, "b t {self.width}"]:
    if not self.final_norm:
      return x
    return NORMS[self.norm](name="norm", epsilon=self.norm_eps, dtype=self.dtype)(x)

  def _own(self) -> dict[str, Array]:
    """What differs from layer to layer, layers first; see `SelfAttention`."""
    windows = (tuple(self.windows or (0,)) * self.depth)[: self.depth]
    own = {}
    if self.rope_theta:
      dim = self.rope_dim or self.head_dim or self.width // self.heads
      everywhere = rope_frequencies(dim, self.rope_theta, self.rope_scaling)
      local = everywhere
      if self.rope_local_theta:
        local = rope_frequencies(dim, self.rope_local_theta)
      own["frequency"] = jnp.stack([local if window else everywhere for window in windows])
    if any(windows):
      own["window"] = jnp.asarray([window or UNBOUNDED for window in windows])
    if self.inverse_depth_scale:
      own["query_factor"] = 1 / (1 + jnp.arange(self.depth, dtype=jnp.float32))
    return own


def _distance(
  positions: Int[Array, "b t"], key_positions: Int[Array, "b s"] | None
) -> Int[Array, "_ t s"]:
  """Tokens from each key up to its query.

  Where the keys are the tokens' own, slots are counted, once for all rows: within a document
  they differ from positions by a constant.
  """
  if key_positions is None:
    slots = jnp.arange(positions.shape[1])
    return (slots[:, None] - slots)[None]
  return positions[:, :, None] - key_positions[:, None]


def _grouped(
  a: Shaped[Array, "depth *d"], first: int, groups: int, size: int
) -> Shaped[Array, "{groups} {size} *d"]:
  """One layer's entries after the other as groups of `size`, from layer `first` on."""
  return a[first : first + groups * size].reshape(groups, size, *a.shape[1:])
