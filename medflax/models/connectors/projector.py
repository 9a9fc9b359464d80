"""Projectors: each visual token on its own, or the means of neighbours, to the text's width."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from medflax.models import layers


class MLPProjector(nn.Module):
  """Linear → activation → linear on every visual token (LLaVA 1.5, LLaVA-Med).

  Attributes:
    hidden: width between the two.
    use_bias: of both.
    mean: project the mean of a media item's tokens alone (MedVInT-TD's MLP variant).
    remat: nothing here is worth it; for the same fields in all connectors.
  """

  hidden: int
  out_width: int
  activation: str = "gelu"
  use_bias: bool = True
  mean: bool = False
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b m frames v d"]) -> Float[Array, "b m n {self.out_width}"]:
    x = x.reshape(*x.shape[:2], -1, x.shape[-1])
    if self.mean:
      x = x.mean(axis=2, keepdims=True)
    options = dict(use_bias=self.use_bias, dtype=self.dtype)
    x = layers.dense(self.hidden, ("vision_embed", "mlp"), name="hidden", **options)(x)
    x = layers.ACTIVATIONS[self.activation](x)
    return layers.dense(self.out_width, ("mlp", "embed"), name="out", **options)(x)


class PooledProjection(nn.Module):
  """Means of a square grid's square cells → RMSNorm → one matrix (Gemma 3, MedGemma).

  Attributes:
    num_latents: cells of a grid, a square number.
    norm_eps: epsilon of the norm, whose weight is its scale less one.
    remat: nothing here is worth it; for the same fields in all connectors.
  """

  num_latents: int
  out_width: int
  norm_eps: float = 1e-6
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b m frames v d"]
  ) -> Float[Array, "b m {self.num_latents} {self.out_width}"]:
    """Raises ValueError where the tokens are no square grid that the cells divide."""
    b, m, frames, v, width = x.shape
    side, cells = math.isqrt(v), math.isqrt(self.num_latents)
    if frames > 1 or side**2 != v or cells**2 != self.num_latents or side % cells:
      raise ValueError(f"{frames}·{v} visual tokens do not pool to {self.num_latents}")
    cell = side // cells
    x = x.reshape(b, m, cells, cell, cells, cell, width).mean(axis=(3, 5))
    x = x.reshape(b, m, self.num_latents, width)
    x = layers.ZeroRMSNorm(self.norm_eps, self.dtype, name="norm")(x)
    axes = ("vision_embed", "embed")
    return layers.dense(self.out_width, axes, name="out", dtype=self.dtype)(x)
