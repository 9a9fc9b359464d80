"""Query decoder: learned queries attend to each other and to the visual tokens (MedVInT).

Zhang et al. 2023 (PMC-VQA): a pre-norm Transformer decoder (Vaswani et al. 2017; the queries as
in DETR) without positions, on visual tokens as they are.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from medflax.models import layers
from medflax.models.attention import dot_product_attention


class Attention(nn.Module):
  """Multi-head attention with biases everywhere."""

  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b t d"], memory: Float[Array, "b s d"]
  ) -> Float[Array, "b t d"]:
    width = x.shape[-1]
    shape, axes = (self.heads, width // self.heads), ("vision_embed", "heads", "head_dim")
    options = dict(use_bias=True, dtype=self.dtype)
    query = layers.dense(shape, axes, name="query", **options)(x)
    key = layers.dense(shape, axes, name="key", **options)(memory)
    value = layers.dense(shape, axes, name="value", **options)(memory)
    y = dot_product_attention(query, key, value)
    return layers.dense(width, (*axes[1:], axes[0]), name="out", num_inputs=2, **options)(y)


class QueryDecoderLayer(nn.Module):
  """Self-attention of the queries, attention to the visual tokens, MLP; each after a LayerNorm."""

  heads: int
  mlp_width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], memory: Float[Array, "b v d"]
  ) -> tuple[Float[Array, "b n d"], None]:
    norm = lambda name: layers.layer_norm(name=name, dtype=self.dtype)
    y = norm("self_norm")(x)
    x = x + Attention(self.heads, self.dtype, name="self_attn")(y, y)
    x = x + Attention(self.heads, self.dtype, name="cross_attn")(norm("cross_norm")(x), memory)
    mlp = layers.MLP(self.mlp_width, "relu", True, self.dtype, axis="vision_embed", name="mlp")
    return x + mlp(norm("mlp_norm")(x)), None


class QueryDecoder(nn.Module):
  """Decodes each media item on its own to `num_latents` tokens.

  Attributes:
    num_latents: number of queries.
    in_width: width of a linear map of the visual tokens before (MedVInT-TE); 0: none.
    out_width: width of a two-layer ReLU MLP after (MedVInT-TD); 0: none.
    remat: a name in `layers.REMAT_POLICIES`.
  """

  num_latents: int
  depth: int
  heads: int
  mlp_width: int
  in_width: int = 0
  out_width: int = 0
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b m frames v d"]
  ) -> Float[Array, "b m {self.num_latents} out"]:
    b, m, _, _, width = x.shape
    x = x.reshape(b * m, -1, width).astype(self.dtype)
    options = dict(use_bias=True, dtype=self.dtype)
    inner = ("vision_embed", "mlp")
    if self.in_width:
      width = self.in_width
      x = layers.dense(width, ("patch", "vision_embed"), name="in", **options)(x)
    init = layers.param_init(nn.initializers.normal(1.0), "latents", "vision_embed")
    queries = self.param("queries", init, (self.num_latents, width)).astype(self.dtype)
    queries = jnp.broadcast_to(queries, (b * m, *queries.shape))
    stack = layers.stack(QueryDecoderLayer, self.depth, self.remat)
    y, _ = stack(self.heads, self.mlp_width, self.dtype, name="layers")(queries, x)
    y = layers.layer_norm(name="norm", dtype=self.dtype)(y)
    if self.out_width:
      y = nn.relu(layers.dense(width, inner, name="hidden", **options)(y))
      y = layers.dense(self.out_width, ("mlp", "embed"), name="out", **options)(y)
    return y.reshape(b, m, self.num_latents, -1)
