"""Bidirectional language model: BERT (Devlin et al. 2019), PubMedBERT, RoBERTa (Liu et al. 2019).

Post-norm blocks over learned positions and token types. The families differ by settings alone.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medflax.models import layers
from medflax.models.language.layer import Context, DecoderLayer, bert_fields
from medflax.parallel.sharding import constrain, looked_up


class EncoderLayer(DecoderLayer):
  """A layer that keeps no keys and values; its output is carried on, and kept."""

  def __call__(
    self, x: Float[Array, "b t d"], context: Context
  ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
    x, _ = super().__call__(x, context, {})
    x = constrain(x, "batch", "length", "act_embed")
    return x, x


class Encoder(nn.Module):
  """BERT-style encoder with a masked-token head, a pooler, both or none.

  Attributes:
    max_positions: rows of the position table, `position_offset` included.
    position_offset: row of position 0. RoBERTa's first rows belong to padding: 2.
    token_types: rows of the token-type table (BERT's sentences A and B).
    lm_head: whether there is a head that predicts masked tokens, tied to the embedding.
    pooler: whether there is BERT's sentence embedding.
    remat: a name in `layers.REMAT_POLICIES`, applied to each block.
  """

  vocab_size: int
  width: int
  depth: int
  heads: int
  mlp_width: int
  max_positions: int
  position_offset: int = 0
  token_types: int = 2
  activation: str = "gelu"
  norm_eps: float = 1e-12
  lm_head: bool = True
  pooler: bool = False
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    mask: Bool[Array, "b #t t"],
    token_types: Int[Array, "b t"] | None = None,
  ) -> dict[str, Array]:
    """Hidden states and what the heads make of the last of them.

    Args:
      positions: from 0 within a document; RoBERTa has -1 on padding.
      mask: which tokens each token sees; one row for all queries broadcasts.
      token_types: defaults to 0 everywhere.

    Returns:
      `hidden` [depth + 1, b, t, d]: the embeddings, then every block's output; with `lm_head`,
      float32 `logits` [b, t, vocab]; with `pooler`, `pooled` [b, d] of the first token.
    """
    mask = jnp.broadcast_to(mask, (*tokens.shape, tokens.shape[1]))
    small = layers.param_init(nn.initializers.normal(0.02), "vocab", "embed")
    table = self.param("embedding", small, (self.vocab_size, self.width))
    x = self._embed(table, tokens, positions, token_types)
    fields = bert_fields(self.heads, self.mlp_width, self.activation, self.norm_eps, self.dtype)
    blocks = layers.stack(EncoderLayer, self.depth, self.remat)
    distance = jnp.zeros((1, *mask.shape[1:]), jnp.int32)  # tokens see each other however far apart
    context = Context(positions, mask, distance, None, None, None, None)
    y, states = blocks(**fields, name="layers")(x, context)
    out = {"hidden": jnp.concatenate([x[None], states])}
    if self.lm_head:
      out["logits"] = self._logits(table, y)
    if self.pooler:
      out["pooled"] = jnp.tanh(self._square("pool")(y[:, 0]))
    return out

  def _embed(
    self,
    table: Float[Array, "{self.vocab_size} {self.width}"],
    tokens: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    token_types: Int[Array, "b t"] | None,
  ) -> Float[Array, "b t {self.width}"]:
    small = layers.param_init(nn.initializers.normal(0.02), "pos", "embed")
    places = self.param("position", small, (self.max_positions, self.width))
    types = self.param("token_type", small, (self.token_types, self.width))
    token_types = jnp.zeros_like(tokens) if token_types is None else token_types
    x = looked_up(table, tokens, "vocab", "embed", dtype=table.dtype)
    x = x + looked_up(types, token_types, "pos", "embed", dtype=types.dtype)
    x = x + looked_up(places, positions + self.position_offset, "pos", "embed", dtype=places.dtype)
    x = self._norm("embedding_norm")(x.astype(self.dtype))
    return constrain(x, "batch", "length", "act_embed")

  def _logits(
    self, table: Float[Array, "{self.vocab_size} {self.width}"], x: Float[Array, "b t {self.width}"]
  ) -> Float[Array, "b t {self.vocab_size}"]:
    x = layers.ACTIVATIONS[self.activation](self._square("head")(x))
    logits = jnp.einsum("btd,vd->btv", self._norm("head_norm")(x), table.astype(self.dtype))
    zeros = layers.param_init(nn.initializers.zeros, "vocab")
    return logits.astype(jnp.float32) + self.param("head_bias", zeros, (self.vocab_size,))

  def _norm(self, name: str) -> nn.LayerNorm:
    return layers.layer_norm(name=name, epsilon=self.norm_eps, dtype=self.dtype)

  def _square(self, name: str) -> nn.Module:
    return layers.dense(self.width, ("embed", "mlp"), name=name, use_bias=True, dtype=self.dtype)
