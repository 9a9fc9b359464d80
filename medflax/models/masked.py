"""Masked language modelling: targets are hidden, and all predicted at once (MedVInT-TE)."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from medflax.models.language.decoder import Cache
from medflax.models.vlm import VLM


class MaskedVLM(VLM, kw_only=True):
  """A `VLM` that reads a mask in place of every target, and predicts it there.

  Attributes:
    mask_id: the token that hides a target.
  """

  mask_id: int

  shift: ClassVar[int] = 0

  def hide(self, batch: Mapping[str, Array]) -> Mapping[str, Array]:
    tokens = jnp.where(batch["loss_mask"] > 0, self.mask_id, batch["tokens"])
    return {**batch, "tokens": tokens}

  def prefill(
    self,
    features: Float[Array, "b m latents d"] | None,
    tokens: Int[Array, "b t"],
    media_index: Int[Array, "b t"],
    *,
    media_ordinal: Mapping[str, Int[Array, "b _"]],
    media_first: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    segment_ids: Int[Array, "b t"],
    soft_index: Int[Array, "b t"] | None = None,
    cache_size: int,
  ) -> tuple[Float[Array, "b 1 vocab"], Cache]:
    """Predicts all tokens that may follow the prompts at once; `decode_step` hands them out.

    As many masks follow a prompt as `cache_size` has room for, whatever the answer's length,
    which the model is thus not told.
    """
    t = tokens.shape[1]
    size = cache_size - t
    more = lambda x, value: jnp.concatenate([x, jnp.broadcast_to(value, (len(x), size))], axis=1)
    logits = self._predict(
      features,
      more(tokens, jnp.full((1, size), self.mask_id, tokens.dtype)),
      more(media_index, media_index[:, -1:]),
      media_ordinal=media_ordinal,
      media_first=more(media_first, media_first[:, -1:]),
      positions=more(positions, positions[:, -1:] + 1 + jnp.arange(size)),
      segment_ids=more(segment_ids, segment_ids[:, -1:]),
      soft_index=None if soft_index is None else more(soft_index, jnp.zeros((1, size), jnp.int32)),
    )[:, t:]
    return logits[:, :1], {"logits": logits, "index": jnp.ones((), jnp.int32)}

  def decode_step(
    self, tokens: Int[Array, "b 1"], cache: Cache
  ) -> tuple[Float[Array, "b 1 vocab"], Cache]:
    """The next place's logits; what was chosen before changes nothing."""
    del tokens
    logits = jax.lax.dynamic_slice_in_dim(cache["logits"], cache["index"], 1, axis=1)
    return logits, cache | {"index": cache["index"] + 1}
