"""Gated cross-attention from text to media (Alayrac et al. 2022, Flamingo, section 3.1.2)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from medflax.models import layers
from medflax.models.attention import dot_product_attention

MediaCache = dict[str, Array]


class GatedCrossAttention(nn.Module):
  """Text attends to the media it may see; tanh gates at zero leave the language model as it was.

  Biases nowhere; LayerNorm on the text side only (the resampler has normalised the media).
  """

  heads: int
  head_dim: int
  mlp_ratio: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t d"],
    media: Float[Array, "b m latents dv"] | None,
    mask: Bool[Array, "b t m"] | None,
    cache: MediaCache | None = None,
  ) -> tuple[Float[Array, "b t d"], MediaCache | None]:
    """Returns the new hidden states and the media's keys and values.

    With `cache` (decoding) those keys and values are used and `media` is not read. With
    neither (a batch of text alone) there is nothing to attend to and only the MLP acts.
    """
    if cache is None and media is not None:
      cache = self._keys_and_values(media)
    if cache is not None:
      x = x + self._gate("attn_gate") * self._attend(x, cache, mask)
    y = layers.layer_norm(name="mlp_norm", dtype=self.dtype)(x)
    mlp = layers.MLP(
      self.mlp_ratio * x.shape[-1], "gelu", use_bias=False, dtype=self.dtype, name="mlp"
    )
    return x + self._gate("mlp_gate") * mlp(y), cache

  def _keys_and_values(self, media: Float[Array, "b m latents dv"]) -> MediaCache:
    b, m, latents, width = media.shape
    media = media.reshape(b, m * latents, width)
    shape, axes = (self.heads, self.head_dim), ("vision_embed", "heads", "head_dim")
    return {
      name: layers.dense(shape, axes, name=name, dtype=self.dtype)(media)
      for name in ("key", "value")
    }

  def _attend(
    self, x: Float[Array, "b t d"], cache: MediaCache, mask: Bool[Array, "b t m"]
  ) -> Float[Array, "b t d"]:
    shape, axes = (self.heads, self.head_dim), ("embed", "heads", "head_dim")
    y = layers.layer_norm(name="attn_norm", dtype=self.dtype)(x)
    query = layers.dense(shape, axes, name="query", dtype=self.dtype)(y)
    mask = jnp.repeat(mask, cache["key"].shape[1] // mask.shape[2], axis=2)
    y = dot_product_attention(query, cache["key"], cache["value"], mask)
    out = (*axes[1:], axes[0])
    return layers.dense(x.shape[-1], out, name="out", num_inputs=2, dtype=self.dtype)(y)

  def _gate(self, name: str) -> Float[Array, "1"]:
    gate = self.param(name, layers.param_init(nn.initializers.zeros, None), (1,))
    return jnp.tanh(gate).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class GatedXattn:
  """Fusion part: a gated block before decoder layer i (from 0) iff (i + 1) % xattn_every == 0."""

  xattn_every: int
  heads: int = 8
  head_dim: int = 64
  mlp_ratio: int = 4

  def block(self, dtype: Any) -> GatedCrossAttention:
    """One gated block, to be made inside the decoder's scanned group."""
    return GatedCrossAttention(self.heads, self.head_dim, self.mlp_ratio, dtype, name="xattn")
