"""Attention pooling: one token for a whole image."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from medflax.models import layers
from medflax.models.attention import dot_product_attention


def attend(
  query: Float[Array, "b 1 d"],
  x: Float[Array, "b t d"],
  *,
  heads: int,
  features: int,
  dtype: Any,
) -> Float[Array, "b 1 {features}"]:
  """Multi-head attention of one query to `x`, with biases; for use in a compact module."""
  shape, axes = (heads, x.shape[-1] // heads), ("vision_embed", "heads", "head_dim")
  options = dict(use_bias=True, dtype=dtype)
  query = layers.dense(shape, axes, name="query", **options)(query)
  key = layers.dense(shape, axes, name="key", **options)(x)
  value = layers.dense(shape, axes, name="value", **options)(x)
  y = dot_product_attention(query, key, value)
  return layers.dense(features, (*axes[1:], axes[0]), name="out", num_inputs=2, **options)(y)


class ProbePool(nn.Module):
  """SigLIP's head (Zhai et al. 2023): a learned probe attends to all tokens, then an MLP."""

  heads: int
  mlp_width: int
  activation: str
  norm_eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b 1 d"]:
    b, _, width = x.shape
    init = layers.param_init(nn.initializers.normal(0.02), "vision_embed")
    probe = self.param("probe", init, (width,)).astype(self.dtype)
    probe = jnp.broadcast_to(probe, (b, 1, width))
    y = attend(probe, x, heads=self.heads, features=width, dtype=self.dtype)
    normed = layers.layer_norm(name="mlp_norm", epsilon=self.norm_eps, dtype=self.dtype)(y)
    mlp = layers.MLP(
      self.mlp_width, self.activation, True, self.dtype, axis="vision_embed", name="mlp"
    )
    return y + mlp(normed)


class MeanPool(nn.Module):
  """The pooling of CLIP's ResNets (Radford et al. 2021): the mean of all tokens attends to them."""

  heads: int
  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b 1 {self.features}"]:
    x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
    init = layers.param_init(nn.initializers.normal(x.shape[-1] ** -0.5), "pos", "vision_embed")
    x = x + self.param("position", init, x.shape[1:]).astype(self.dtype)
    return attend(x[:, :1], x, heads=self.heads, features=self.features, dtype=self.dtype)
