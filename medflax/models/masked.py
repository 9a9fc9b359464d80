"""Masked language modelling: targets are hidden, and all predicted at once (MedVInT-TE)."""

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from medflax.models.reading import Read
from medflax.models.vlm import VLM
from medflax.utils import UserError


class MaskedVLM(VLM, kw_only=True):
  """A `VLM` that reads a mask in place of every target, and predicts it there.

  Attributes:
    mask_id: the token that hides a target.
  """

  mask_id: int

  shift: ClassVar[int] = 0
  shares_prefixes: ClassVar[bool] = False

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
    prefix: Read | None = None,
    length: int = 0,
    branches: int = 1,
  ) -> tuple[Float[Array, "b 1 vocab"], Float[Array, "b length vocab"]]:
    """Predicts all tokens that may follow the prompts at once; `extend` hands them out.

    As many masks follow a prompt as a continuation may have tokens, whatever the answer's
    length, which the model is thus not told.
    """
    del branches
    if prefix is not None or not length:
      raise UserError(
        "config.model.objective.type=masked reads a prompt together with its answer, so that "
        "prompts cannot share their beginning"
      )
    t = tokens.shape[1]
    more = lambda x, value: jnp.concatenate([x, jnp.broadcast_to(value, (len(x), length))], axis=1)
    soft = None if soft_index is None else more(soft_index, jnp.zeros((1, length), jnp.int32))
    logits = self._predict(
      features,
      more(tokens, jnp.full((1, length), self.mask_id, tokens.dtype)),
      more(media_index, media_index[:, -1:]),
      media_ordinal=media_ordinal,
      media_first=more(media_first, media_first[:, -1:]),
      positions=more(positions, positions[:, -1:] + 1 + jnp.arange(length)),
      segment_ids=more(segment_ids, segment_ids[:, -1:]),
      soft_index=soft,
    )[:, t:]
    return logits[:, :1], logits

  def extend(
    self,
    tokens: Int[Array, "b t"],
    read: Float[Array, "b length vocab"],
    seen: Bool[Array | np.ndarray, "#b t n"],
  ) -> tuple[Float[Array, "b t vocab"], Float[Array, "b length vocab"]]:
    """The logits of the places behind the tokens; what the tokens are changes nothing."""
    place = jnp.broadcast_to(seen.sum(-1), tokens.shape)
    place = jnp.minimum(place, read.shape[1] - 1)  # nobody asks what follows the last
    return jnp.take_along_axis(read, place[..., None], axis=1), read
