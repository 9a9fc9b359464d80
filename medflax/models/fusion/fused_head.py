"""The multimodal encoder of MedVInT-TE (Zhang et al. 2023): blocks over text and media, a head.

The language model encodes the text by itself; its states and the media then attend to each other
in both directions, and what stands at the text's places is mapped to the vocabulary.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from medflax.models import layers
from medflax.models.vision.vit import ViTBlock


class FusedEncoder(nn.Module):
  """See `FusedHead` for the fields."""

  vocab_size: int
  width: int
  depth: int
  heads: int
  mlp_width: int
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t d"],
    mask: Bool[Array, "b t t"],
    media: Float[Array, "b m latents {self.width}"] | None,
    media_mask: Bool[Array, "b t m"] | None,
  ) -> Float[Array, "b t {self.vocab_size}"]:
    """Logits at the text's places.

    Args:
      x: the language model's states.
      mask: which tokens each token saw there; here a token sees those, and those that saw it.
      media_mask: which media a token sees, and is seen by.
    """
    b, t, _ = x.shape
    y = layers.dense(
      self.width, ("embed", "vision_embed"), name="in", use_bias=True, dtype=self.dtype
    )(x)
    separator = self.param(
      "separator", layers.param_init(nn.initializers.zeros, "vision_embed"), (self.width,)
    )
    visible = mask | mask.swapaxes(1, 2)
    if media is not None and media_mask is not None:
      m, latents = media.shape[1:3]
      first = jnp.broadcast_to(separator.astype(self.dtype), (b, m, 1, self.width))
      items = jnp.concatenate([first, media.astype(self.dtype)], axis=2)
      y = jnp.concatenate([y, items.reshape(b, m * (latents + 1), self.width)], axis=1)
      seen = jnp.repeat(media_mask, latents + 1, axis=2)
      own = jnp.repeat(jnp.repeat(jnp.eye(m, dtype=bool), latents + 1, 0), latents + 1, 1)
      own = jnp.broadcast_to(own, (b, *own.shape))
      visible = jnp.concatenate(
        [
          jnp.concatenate([visible, seen], axis=2),
          jnp.concatenate([seen.swapaxes(1, 2), own], axis=2),
        ],
        axis=1,
      )
    stack = layers.stack(ViTBlock, self.depth, self.remat)
    y, _ = stack(self.heads, self.mlp_width, "gelu", dtype=self.dtype, name="blocks")(y, visible)
    head = layers.dense(self.vocab_size, ("vision_embed", "vocab"), name="head", dtype=self.dtype)
    return head(y[:, :t]).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class FusedHead:
  """Fusion part: `depth` bidirectional blocks over text and media, before a head of their own."""

  width: int
  depth: int = 1
  heads: int = 8
  mlp_width: int = 3072

  def encoder(self, vocab_size: int, remat: str, dtype: Any) -> FusedEncoder:
    """The blocks and the head, to be made inside the decoder."""
    fields = dataclasses.asdict(self)
    return FusedEncoder(vocab_size, **fields, remat=remat, dtype=dtype, name="fused")
