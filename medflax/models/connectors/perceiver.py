"""Perceiver resampler: any number of visual tokens in, `num_latents` out.

Alayrac et al. 2022 (Flamingo), section 3.1.1, in OpenFlamingo's form: latents attend to the
visual tokens and to themselves, biases nowhere, exact GELU.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from medflax.models import layers
from medflax.models.attention import dot_product_attention


class PerceiverLayer(nn.Module):
  """Latents attend to media tokens and latents, then pass an MLP."""

  heads: int
  head_dim: int
  mlp_ratio: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, latents: Float[Array, "b n d"], x: Float[Array, "b v d"]
  ) -> tuple[Float[Array, "b n d"], None]:
    width = latents.shape[-1]
    shape, axes = (self.heads, self.head_dim), ("vision_embed", "heads", "head_dim")
    normed = layers.layer_norm(name="norm_latents", dtype=self.dtype)(latents)
    keys = layers.layer_norm(name="norm_media", dtype=self.dtype)(x)
    keys = jnp.concatenate([keys, normed], axis=1)
    query = layers.dense(shape, axes, name="query", dtype=self.dtype)(normed)
    key = layers.dense(shape, axes, name="key", dtype=self.dtype)(keys)
    value = layers.dense(shape, axes, name="value", dtype=self.dtype)(keys)
    y = dot_product_attention(query, key, value)
    latents = latents + layers.dense(
      width, (*axes[1:], axes[0]), name="out", num_inputs=2, dtype=self.dtype
    )(y)
    y = layers.layer_norm(name="mlp_norm", dtype=self.dtype)(latents)
    mlp = layers.MLP(
      self.mlp_ratio * width,
      "gelu",
      use_bias=False,
      dtype=self.dtype,
      axis="vision_embed",
      name="mlp",
    )
    return latents + mlp(y), None


class PerceiverResampler(nn.Module):
  """Resamples each media item on its own to `num_latents` tokens of the input's width.

  Attributes:
    out_width: width of a last linear map with bias (RadFM's, to the language model's); 0: none.
    max_frames: size of the frame embedding table, added per frame; 0 for none.
    max_media: size of the media-time embedding table, added by the item's place in the row;
      0 for none. OpenFlamingo's released models use neither.
  """

  num_latents: int
  depth: int
  heads: int = 8
  head_dim: int = 64
  mlp_ratio: int = 4
  max_frames: int = 0
  max_media: int = 0
  out_width: int = 0
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b m frames v d"]
  ) -> Float[Array, "b m {self.num_latents} out"]:
    """Raises ValueError when there are more frames or media than their tables hold."""
    b, m, frames, _, width = x.shape
    normal = nn.initializers.normal(1.0)
    if self.max_frames:
      if frames > self.max_frames:
        raise ValueError(f"{frames} frames, but model.connector.max_frames is {self.max_frames}")
      init = layers.param_init(normal, None, "vision_embed")
      table = self.param("frame_embedding", init, (self.max_frames, width))
      x = x + table[:frames, None].astype(x.dtype)
    x = x.reshape(b, m, -1, width)
    if self.max_media:
      if m > self.max_media:
        raise ValueError(f"{m} media a row, but model.connector.max_media is {self.max_media}")
      init = layers.param_init(normal, None, "vision_embed")
      table = self.param("media_time_embedding", init, (self.max_media, width))
      x = x + table[:m, None].astype(x.dtype)
    init = layers.param_init(normal, "latents", "vision_embed")
    latents = self.param("latents", init, (self.num_latents, width)).astype(self.dtype)
    latents = jnp.broadcast_to(latents, (b * m, *latents.shape))
    stack = layers.stack(PerceiverLayer, self.depth, self.remat)
    latents, _ = stack(self.heads, self.head_dim, self.mlp_ratio, self.dtype, name="layers")(
      latents, x.reshape(b * m, -1, width)
    )
    latents = layers.layer_norm(name="norm", dtype=self.dtype)(latents)
    if self.out_width:
      axes = ("vision_embed", "embed")
      latents = layers.dense(self.out_width, axes, name="out", use_bias=True, dtype=self.dtype)(
        latents
      )
    return latents.reshape(b, m, self.num_latents, -1)
