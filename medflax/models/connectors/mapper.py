"""Prefix mappers: one vector a media item → `num_latents` tokens of the language model's width.

Mokady et al. 2021 (ClipCap), as van Sonsbeek et al. 2023 use them for medical questions.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from medflax.models import layers
from medflax.models.vision.vit import ViTBlock


def _vector(x: Float[Array, "b m frames v d"]) -> Float[Array, "b m d"]:
  if x.shape[2:4] != (1, 1):
    raise ValueError(
      f"a prefix mapper takes one vector a media item, not {x.shape[2]}·{x.shape[3]} tokens; "
      'set model.tower.output to "class"'
    )
  return x[:, :, 0, 0]


class MLPMapper(nn.Module):
  """Linear maps with tanh between, the last cut into tokens.

  Attributes:
    hidden: widths in between; for e = `out_width` and n = `num_latents`, (n · e / 2,) is the
      paper's mapper and (n · e / 2, n · e) its code's.
    remat: nothing here is worth it; for the same fields in all connectors.
  """

  num_latents: int
  out_width: int
  hidden: Sequence[int]
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b m frames v d"]
  ) -> Float[Array, "b m {self.num_latents} {self.out_width}"]:
    """Raises ValueError for more than one visual token a media item."""
    y = _vector(x)
    options = dict(use_bias=True, dtype=self.dtype)
    for i, width in enumerate(self.hidden):
      axes = ("vision_embed" if i == 0 else "mlp", "mlp" if i == 0 else "embed")
      y = jnp.tanh(layers.dense(width, axes, name=f"hidden_{i}", **options)(y))
    y = layers.dense(self.num_latents * self.out_width, ("mlp", "embed"), name="out", **options)(y)
    return y.reshape(*x.shape[:2], self.num_latents, self.out_width)


class TransformerMapper(nn.Module):
  """The vector, mapped to `num_inputs` tokens, and learned ones pass a Transformer encoder.

  What stands at the learned ones' places at its end is the prefix; there is no last norm.

  Attributes:
    num_inputs: tokens that the vector becomes.
    remat: a name in `layers.REMAT_POLICIES`.
  """

  num_latents: int
  out_width: int
  num_inputs: int
  depth: int = 8
  heads: int = 8
  mlp_ratio: int = 2
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b m frames v d"]
  ) -> Float[Array, "b m {self.num_latents} {self.out_width}"]:
    """Raises ValueError for more than one visual token a media item."""
    b, m, width = *x.shape[:2], self.out_width
    axes = ("vision_embed", "embed")
    y = layers.dense(self.num_inputs * width, axes, name="in", use_bias=True, dtype=self.dtype)(
      _vector(x)
    )
    init = layers.param_init(nn.initializers.normal(1.0), "latents", "vision_embed")
    latents = self.param("latents", init, (self.num_latents, width)).astype(self.dtype)
    latents = jnp.broadcast_to(latents, (b * m, *latents.shape))
    y = jnp.concatenate([y.reshape(b * m, self.num_inputs, width), latents], axis=1)
    blocks = layers.stack(ViTBlock, self.depth, self.remat)
    options = dict(qkv_bias=False, dtype=self.dtype, name="blocks")
    y, _ = blocks(self.heads, self.mlp_ratio * width, "relu", **options)(y, None)
    return y[:, self.num_inputs :].reshape(b, m, self.num_latents, width)
