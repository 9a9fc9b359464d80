"""Encoder–decoder: T5 (Raffel et al. 2020) and Pix2Struct, DePlot's model (Lee et al. 2023).

Both are stacks of the decoder's layers: attention is unscaled, positions are relative biases
whose one table all layers share, and the decoder's layers look at the encoder's output as well.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medflax.models import layers
from medflax.models.attention import dot_product_attention
from medflax.models.language.encoder import EncoderLayer
from medflax.models.language.layer import (
  MLPS,
  Cache,
  Context,
  LayerFields,
  SelfAttention,
  shared_fields,
)
from medflax.parallel.sharding import looked_up


def relative_buckets(
  distance: Int[Array, "*b t s"], buckets: int, max_distance: int, *, bidirectional: bool
) -> Int[Array, "*b t s"]:
  """T5's classes of distances: one each for the near, logarithmically wider ones for the far.

  Args:
    distance: slots from each key up to its query, negative for keys behind it.
    bidirectional: whether keys behind the query have the upper half of the classes.
  """
  half = buckets // 2 if bidirectional else buckets
  behind = jnp.where(distance < 0, half, 0) if bidirectional else 0
  distance = jnp.abs(distance) if bidirectional else jnp.maximum(distance, 0)
  near = half // 2
  ratio = jnp.log(jnp.maximum(distance, 1) / near) / math.log(max_distance / near)
  far = jnp.minimum(near + (ratio * (half - near)).astype(jnp.int32), half - 1)
  return behind + jnp.where(distance < near, distance, far)


class Stack(LayerFields, kw_only=True):
  """What the two stacks share.

  Attributes:
    buckets, max_distance: of the relative biases, see `relative_buckets`; no buckets, no bias.
    remat: a name in `layers.REMAT_POLICIES`, applied to each layer.
  """

  depth: int
  buckets: int = 0
  max_distance: int = 128
  remat: str = "none"

  def bias(
    self, distance: Int[Array, "r t s"], *, bidirectional: bool
  ) -> Float[Array, "r {self.heads} t s"] | None:
    """Added to the attention logits of every layer."""
    if not self.buckets:
      return None
    init = layers.param_init(nn.initializers.normal(0.02), "pos", "heads")
    table = self.param("relative_bias", init, (self.buckets, self.heads))
    classes = relative_buckets(
      distance, self.buckets, self.max_distance, bidirectional=bidirectional
    )
    return jnp.take(table, classes, axis=0).transpose(0, 3, 1, 2)

  def scan(self, layer: type[nn.Module], in_axes: Any) -> Any:
    return layers.stack(layer, self.depth, self.remat, in_axes)(
      **shared_fields(self), name="layers"
    )

  def final_norm(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    return layers.rms_norm(name="norm", epsilon=self.norm_eps, dtype=self.dtype)(x)


class EncoderStack(Stack):
  """Layers in which every token sees every other that is there."""

  @nn.compact
  def __call__(self, x: Float[Array, "b s d"], seen: Bool[Array, "b s"]) -> Float[Array, "b s d"]:
    mask = jnp.broadcast_to(seen[:, None], (*seen.shape, seen.shape[1]))
    places = jnp.arange(x.shape[1])
    distance = (places[:, None] - places)[None]
    bias = self.bias(distance, bidirectional=True)
    positions = jnp.zeros(x.shape[:2], jnp.int32)
    context = Context(positions, mask, distance, bias, None, None, None)
    x, _ = self.scan(EncoderLayer, nn.broadcast)(x, context)
    return self.final_norm(x)


class CrossAttention(SelfAttention):
  """Attention to the encoder's output, whose keys and values are made once."""

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t d"],
    memory: Float[Array, "b s e"],
    mask: Bool[Array, "b t s"],
    cache: Cache | None,
  ) -> tuple[Float[Array, "b t d"], Cache]:
    query = self._project(x, "query", self.heads, "heads")
    if cache is None:
      cache = {
        name: self._project(memory, name, self.kv_heads, "kv_heads") for name in ("key", "value")
      }
    scale = self.query_scale or None
    y = dot_product_attention(query, cache["key"], cache["value"], mask, scale=scale)
    axes = ("heads", "head_dim", "embed")
    return layers.dense(x.shape[-1], axes, name="out", num_inputs=2, dtype=self.dtype)(y), cache


class CrossLayer(LayerFields):
  """Attention to the text so far, to the encoder's output, then an MLP; each behind a norm."""

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t d"],
    cache: Cache | None,
    context: Context,
    memory: Float[Array, "b s e"],
    memory_mask: Bool[Array, "b t s"],
  ) -> tuple[Float[Array, "b t d"], Cache]:
    norm = lambda name: layers.rms_norm(name=name, epsilon=self.norm_eps, dtype=self.dtype)
    attention = SelfAttention(**shared_fields(self), name="attn")
    cross = CrossAttention(**shared_fields(self), name="cross")
    mlp = MLPS[self.mlp](self.mlp_width, self.activation, False, self.dtype, name="mlp")
    y, kept = attention(norm("attn_norm")(x), context, {}, (cache["attn"],) if cache else ())
    x = x + y
    y, seen = cross(norm("cross_norm")(x), memory, memory_mask, cache and cache["cross"])
    x = x + y
    return x + mlp(norm("mlp_norm")(x)), {"attn": kept, "cross": seen}


class DecoderStack(Stack):
  """Causal layers over the encoder's output."""

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t d"],
    memory: Float[Array, "b s e"],
    memory_mask: Bool[Array, "b t s"],
    mask: Bool[Array, "b t n"],
    distance: Int[Array, "_ t n"],
    cache: Cache | None,
    index: Int[Array, ""] | None,
  ) -> tuple[Float[Array, "b t d"], Cache]:
    """Args are as of `EncoderDecoder.attend`."""
    bias = self.bias(distance, bidirectional=False)
    positions = jnp.zeros(x.shape[:2], jnp.int32)
    context = Context(positions, mask, distance, bias, None, None, index)
    stack = self.scan(CrossLayer, (0, *(nn.broadcast,) * 3))
    x, new = stack(x, cache, context, memory, memory_mask)
    return self.final_norm(x), new


class PatchEmbedding(nn.Module):
  """Pix2Struct's patches: row and column, from 1, then the pixel values; padding is all zero."""

  width: int
  places: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, patches: Float[Array, "b s p"]) -> Float[Array, "b s {self.width}"]:
    axes, small = ("patch", "embed"), nn.initializers.normal(0.02)
    x = layers.dense(self.width, axes, name="project", use_bias=True, dtype=self.dtype)(
      patches[..., 2:].astype(self.dtype)
    )
    for i, name in enumerate(("row", "column")):
      table = self.param(name, layers.param_init(small, "pos", "embed"), (self.places, self.width))
      numbers = patches[..., i].astype(jnp.int32)
      x = x + looked_up(table, numbers, "pos", "embed", dtype=self.dtype)
    return x


class EncoderDecoder(nn.Module):
  """Text from text, or from an image's patches.

  Attributes:
    encoder_layers, decoder_layers: fields of `EncoderStack` and `DecoderStack`.
    places: rows of the tables of patch rows and columns; 0: the encoder reads tokens.
    tie_embeddings: the head is the embedding table, on outputs scaled by width^-0.5.
  """

  vocab_size: int
  width: int
  encoder_layers: Mapping[str, Any]
  decoder_layers: Mapping[str, Any]
  places: int = 0
  tie_embeddings: bool = False
  remat: str = "none"
  dtype: Any = jnp.float32

  def setup(self):
    init = layers.param_init(nn.initializers.normal(1.0), "vocab", "embed")
    self.embedding = self.param("embedding", init, (self.vocab_size, self.width))
    common = dict(remat=self.remat, dtype=self.dtype)
    self.encoder = EncoderStack(**self.encoder_layers, **common)
    self.decoder = DecoderStack(**self.decoder_layers, **common)
    if self.places:
      self.patches = PatchEmbedding(self.width, self.places, self.dtype)
    if not self.tie_embeddings:
      small = layers.param_init(nn.initializers.normal(0.02), "embed", "vocab")
      self.head = self.param("head", small, (self.width, self.vocab_size))

  def __call__(
    self, inputs: Array, seen: Bool[Array, "b s"], tokens: Int[Array, "b t"]
  ) -> Float[Array, "b t {self.vocab_size}"]:
    """Float32 logits of whole rows; see `encode` and `decode`."""
    return self.decode(tokens, self.encode(inputs, seen), seen)[0]

  def encode(
    self, inputs: Int[Array, "b s"] | Float[Array, "b s p"], seen: Bool[Array, "b s"]
  ) -> Float[Array, "b s {self.width}"]:
    """What the decoder looks at.

    Args:
      inputs: tokens, or with `places` patches of 2 + pixels numbers.
      seen: False on padding, which no other token sees.
    """
    return self.encoder(self.patches(inputs) if self.places else self._embed(inputs), seen)

  def decode(
    self,
    tokens: Int[Array, "b t"],
    memory: Float[Array, "b s {self.width}"],
    seen: Bool[Array, "b s"],
    *,
    cache: Cache | None = None,
    index: Int[Array, ""] | None = None,
    cache_size: int = 0,
  ) -> tuple[Float[Array, "b t {self.vocab_size}"], Cache | None]:
    """Float32 logits and, when prefilling or decoding, the cache.

    Args:
      memory, seen: from and as for `encode`.
      cache: keys and values of earlier tokens; `tokens` are written at slot `index`.
      cache_size: without `cache`, the token capacity of the cache to return; 0 for none.
    """
    b, t = tokens.shape
    first = 0 if index is None else index
    slots = jnp.arange(t if cache is None else cache["attn"].key.shape[3])
    distance = first + jnp.arange(t)[:, None] - slots
    mask = jnp.broadcast_to(distance >= 0, (b, *distance.shape))
    memory_mask = jnp.broadcast_to(seen[:, None], (b, t, seen.shape[1]))
    room = cache_size - t if cache is None and cache_size else 0
    seen_by = (memory, memory_mask, mask, distance[None])
    logits, new = self.attend(tokens, *seen_by, cache=cache, index=index, room=room)
    return logits, new if cache or cache_size else None

  def attend(
    self,
    tokens: Int[Array, "b t"],
    memory: Float[Array, "b s {self.width}"],
    memory_mask: Bool[Array, "b t s"],
    mask: Bool[Array, "b t n"],
    distance: Int[Array, "_ t n"],
    *,
    cache: Cache | None = None,
    index: Int[Array, ""] | None = None,
    room: int = 0,
  ) -> tuple[Float[Array, "b t {self.vocab_size}"], Cache]:
    """`decode` of tokens that see whatever their masks say.

    Args:
      memory_mask: what each token sees of the memory.
      mask: which slots of the cache, or which tokens, each token sees.
      distance: tokens from each of these up to it, one row for all or one for each.
      cache, index: as of `decode`.
      room: without `cache`, for so many more tokens in the one that is returned.
    """
    x, new = self.decoder(self._embed(tokens), memory, memory_mask, mask, distance, cache, index)
    if room:
      grow = lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, 0), (0, room), (0, 0)))
      new["attn"] = jax.tree.map(grow, new["attn"])
    if self.tie_embeddings:
      logits = self.width**-0.5 * (x @ self.embedding.T.astype(self.dtype))
    else:
      logits = x @ self.head.astype(self.dtype)
    return logits.astype(jnp.float32), new

  def _embed(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t {self.width}"]:
    return looked_up(self.embedding, tokens, "vocab", "embed", dtype=self.dtype)
