"""Inline fusion: the features of media stand between the tokens, in place of embeddings.

RadFM (Wu et al. 2023), MedVInT-TD (Zhang et al. 2023), prefix tuning (van Sonsbeek et al. 2023),
LLaVA-Med (Li et al. 2023), MedGemma (Sellergren et al. 2025).
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Inline:
  """Fusion part.

  Attributes:
    bidirectional: the tokens of a media item see each other in both directions (Gemma 3); a
      window bounds how far they see back, as for any token.
  """

  bidirectional: bool = False


class SoftTokens(NamedTuple):
  """What stands in a row instead of embeddings.

  Attributes:
    features: of each token, of the embedding table's width; read where `ordinal` is not 0.
    ordinal: the media item that a token is part of, 0 for text.
  """

  features: Float[Array, "b t d"]
  ordinal: Int[Array, "b t"]

  def same_media(self) -> Bool[Array, "b t t"]:
    """Which tokens are part of the same media item."""
    ordinal = self.ordinal
    return (ordinal[:, :, None] == ordinal[:, None, :]) & (ordinal[:, :, None] > 0)


def soft_tokens(
  features: Float[Array, "b m latents d"],
  media_index: Int[Array, "b t"],
  soft_index: Int[Array, "b t"],
  media_ordinal: Mapping[str, Int[Array, "b _"]],
) -> SoftTokens:
  """Puts the features of media at their tokens.

  Args:
    features: of all kinds of media, in the order of `VLM.embed_media`.
    soft_index: of a media item's tokens, from 1; 0 for text. A token of media that the row does
      not have keeps its embedding.
  """
  b, _, latents, width = features.shape
  ordinals = jnp.concatenate([media_ordinal[kind] for kind in sorted(media_ordinal)], axis=1)
  hit = (ordinals[:, None, :] == media_index[:, :, None]) & (ordinals[:, None, :] > 0)
  place = hit.argmax(-1) * latents + jnp.maximum(soft_index, 1) - 1
  rows = features.reshape(b, -1, width)
  soft = (soft_index > 0) & hit.any(-1)
  return SoftTokens(
    jnp.take_along_axis(rows, place[..., None], axis=1), jnp.where(soft, media_index, 0)
  )
