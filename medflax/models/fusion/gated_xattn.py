"""Gated cross-attention from text to media (Alayrac et al. 2022, Flamingo, section 3.1.2)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from medflax.models import layers
from medflax.models.attention import (
  ATTENTIONS,
  KeysValues,
  Seen,
  attention_over,
  keys_values,
)


class GatedCrossAttention(nn.Module):
  """Text attends to the media it may see; tanh gates at zero leave the language model as it was.

  Biases nowhere; LayerNorm on the text side only (the resampler has normalised the media).

  Attributes:
    attention: to media that are not cached, a name in `ATTENTIONS`.
    one_medium: no token sees more than one media item.
  """

  heads: int
  head_dim: int
  mlp_ratio: int
  dtype: Any = jnp.float32
  attention: str = "xla"
  one_medium: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t d"],
    media: Float[Array, "b n latents dv"] | None,
    mask: Bool[Array, "b t m"] | None,
    cache: Sequence[KeysValues] = (),
  ) -> tuple[Float[Array, "b t d"], KeysValues | None]:
    """Returns the new hidden states and the media's keys and values.

    `cache` has those of earlier media, which stand before these in `mask`. Without any media
    (a batch of text alone) there is nothing to attend to and only the MLP acts.
    """
    new = None
    if mask is not None and (cache or media is not None):
      y, new = self._attend(x, media, mask, cache)
      x = x + self._gate("attn_gate") * y
    y = layers.layer_norm(name="mlp_norm", dtype=self.dtype)(x)
    mlp = layers.MLP(
      self.mlp_ratio * x.shape[-1], "gelu", use_bias=False, dtype=self.dtype, name="mlp"
    )
    return x + self._gate("mlp_gate") * mlp(y), new

  def _attend(
    self,
    x: Float[Array, "b t d"],
    media: Float[Array, "b n latents dv"] | None,
    mask: Bool[Array, "b t m"],
    cache: Sequence[KeysValues],
  ) -> tuple[Float[Array, "b t d"], KeysValues | None]:
    shape, axes = (self.heads, self.head_dim), ("embed", "heads", "head_dim")
    linear = functools.partial(layers.dense, shape, dtype=self.dtype)
    y = layers.layer_norm(name="attn_norm", dtype=self.dtype)(x)
    query, parts, new = linear(axes, name="query")(y), list(cache), None
    if media is not None:
      rows = media.reshape(len(media), -1, media.shape[-1])
      own = ("vision_embed", *axes[1:])
      key, value = (linear(own, name=name)(rows) for name in ("key", "value"))
      new = keys_values(key, value)
    if media is not None and not cache:
      seen = self._seen(mask, media.shape[2])
      y = ATTENTIONS[self.attention](query, key, value, seen, scale=None)
    else:
      parts += [] if new is None else [new]
      latents = sum(part.key.shape[2] for part in parts) // mask.shape[2]
      y = attention_over(parts, query, jnp.repeat(mask, latents, axis=2))
    out = (*axes[1:], axes[0])
    return layers.dense(x.shape[-1], out, name="out", num_inputs=2, dtype=self.dtype)(y), new

  def _seen(self, mask: Bool[Array, "b t m"], latents: int) -> Seen:
    """What is seen of the latents, from what is seen of the media."""
    every = jnp.repeat(mask, latents, axis=2)
    if not self.one_medium:
      return Seen(every)
    medium = jnp.where(mask.any(-1), mask.argmax(-1) + 1, 0)
    latent = jnp.repeat(jnp.arange(1, mask.shape[2] + 1), latents)
    return Seen(every, (medium, jnp.broadcast_to(latent, (len(mask), len(latent)))))

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

  def block(
    self, dtype: Any, attention: str = "xla", one_medium: bool = False
  ) -> GatedCrossAttention:
    """One gated block, to be made inside the decoder's scanned group."""
    sizes = (self.heads, self.head_dim, self.mlp_ratio)
    return GatedCrossAttention(*sizes, dtype, attention, one_medium, name="xattn")
