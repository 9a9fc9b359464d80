"""The one model: vision tower → connector → fusion → language model."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medflax.models.attention import causal_mask, media_mask
from medflax.models.fusion.inline import SoftTokens, soft_tokens
from medflax.models.language.decoder import Cache


class VLM(nn.Module):
  """Text conditioned on interleaved media. See docs/design.md for the batch's arrays.

  Attributes:
    tower: media of one kind `[b, …]` → visual tokens `[b, v, d]`; None for text alone.
    connector: visual tokens `[b, m, frames, v, d]` → `[b, m, latents, d]`; None for text alone.
    lm: tokens and media features → logits; holds the fusion.
    shift: logits at a token predict the one so many places further.
  """

  tower: nn.Module | None
  connector: nn.Module | None
  lm: nn.Module

  shift: ClassVar[int] = 1

  def __call__(
    self,
    media: Mapping[str, Array],
    tokens: Int[Array, "b t"],
    media_index: Int[Array, "b t"],
    *,
    media_ordinal: Mapping[str, Int[Array, "b _"]],
    media_first: Int[Array, "b t"] | None = None,
    soft_index: Int[Array, "b t"] | None = None,
    positions: Int[Array, "b t"] | None = None,
    segment_ids: Int[Array, "b t"] | None = None,
  ) -> Float[Array, "b t vocab"]:
    """Next-token logits in float32 for whole rows (training, scoring).

    Args:
      media, media_ordinal: by kind, `[b, n, …]` and `[b, n]`.
      media_index, media_first: the highest and lowest media each token sees; `media_first`
        defaults to `media_index`, the one-image rules of Flamingo.
      soft_index: for inline media, the places of their tokens; see `fusion.inline`.
      positions: defaults to 0, 1, 2, …; segment_ids: defaults to one document a row.
    """
    return self._predict(
      self.embed_media(media),
      tokens,
      media_index,
      media_ordinal=media_ordinal,
      media_first=media_first,
      soft_index=soft_index,
      positions=positions,
      segment_ids=segment_ids,
    )

  def _predict(
    self,
    features,
    tokens,
    media_index,
    *,
    media_ordinal,
    media_first,
    soft_index,
    positions,
    segment_ids,
  ) -> Float[Array, "b t vocab"]:
    """`__call__` on media that are features already."""
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    if segment_ids is None:
      segment_ids = jnp.ones_like(tokens)
    seen = _visible(media_index, media_first, media_ordinal)
    soft = _soft(features, media_index, soft_index, media_ordinal)
    return self._rows(features, tokens, positions, segment_ids, seen, soft)[0]

  def _rows(self, features, tokens, positions, segment_ids, seen, soft, **options):
    """The language model on whole rows, each token of which sees its document up to itself."""
    slots = jnp.arange(tokens.shape[1])
    mask = causal_mask(slots, segment_ids, slots, segment_ids)
    return self.lm(tokens, positions, mask, features, seen, soft=soft, **options)

  def hide(self, batch: Mapping[str, Array]) -> Mapping[str, Array]:
    """The batch as the model may see it while it predicts the batch's targets."""
    return batch

  def embed_media(self, media: Mapping[str, Array]) -> Float[Array, "b m latents d"] | None:
    """Features of every media slot, kinds one after the other in alphabetical order."""
    features = []
    for kind in sorted(media):
      if self.tower is None or self.connector is None:
        raise ValueError(f"{kind} media for a model without a tower and a connector")
      x = media[kind]
      y = self.tower(x.reshape(-1, *x.shape[2:]), kind)
      features.append(self.connector(y.reshape(*x.shape[:2], 1, *y.shape[1:])))
    return jnp.concatenate(features, axis=1) if features else None

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
    """Runs left-padded prompts; returns the last token's logits and a cache for `decode_step`.

    Args:
      features: from `embed_media`.
      cache_size: prompt length plus the most tokens that will be decoded.
    """
    seen = _visible(media_index, media_first, media_ordinal)
    b, t = tokens.shape
    soft = _soft(features, media_index, soft_index, media_ordinal)
    options = dict(cache_size=cache_size, last_only=True)
    logits, cache = self._rows(features, tokens, positions, segment_ids, seen, soft, **options)
    # A decoded token belongs to the prompt's document and sees what its last token saw.
    grown = jnp.zeros((b, cache_size - t), segment_ids.dtype)
    state = {
      "lm": cache,
      "index": jnp.asarray(t, jnp.int32),
      "position": positions[:, -1:] + 1,
      "segment_ids": jnp.concatenate([segment_ids, grown], axis=1),
      "segment": segment_ids[:, -1:],
      "media_mask": None if seen is None else seen[:, -1:],
    }
    return logits, state

  def decode_step(
    self, tokens: Int[Array, "b 1"], cache: Cache
  ) -> tuple[Float[Array, "b 1 vocab"], Cache]:
    """Appends one token a row: its logits and the advanced cache."""
    index = cache["index"]
    slots = jnp.arange(cache["segment_ids"].shape[1])
    segment_ids = jnp.where(slots == index, cache["segment"], cache["segment_ids"])
    mask = causal_mask(index[None], cache["segment"], slots, segment_ids)
    logits, lm = self.lm(
      tokens, cache["position"], mask, None, cache["media_mask"], cache=cache["lm"], index=index
    )
    step = {
      "lm": lm,
      "index": index + 1,
      "position": cache["position"] + 1,
      "segment_ids": segment_ids,
    }
    return logits, cache | step


def _visible(
  media_index: Int[Array, "b t"],
  media_first: Int[Array, "b t"] | None,
  media_ordinal: Mapping[str, Int[Array, "b _"]],
) -> Bool[Array, "b t m"] | None:
  """Which media each token sees, kinds in the order of `embed_media`; None without media."""
  if not media_ordinal:
    return None
  ordinal = jnp.concatenate([media_ordinal[kind] for kind in sorted(media_ordinal)], axis=1)
  first = media_index if media_first is None else media_first
  return media_mask(media_index, first, ordinal)


def _soft(
  features: Float[Array, "b m latents d"] | None,
  media_index: Int[Array, "b t"],
  soft_index: Int[Array, "b t"] | None,
  media_ordinal: Mapping[str, Int[Array, "b _"]],
) -> SoftTokens | None:
  if features is None or soft_index is None:
    return None
  return soft_tokens(features, media_index, soft_index, media_ordinal)


def model_inputs(batch: Mapping[str, Array]) -> tuple[tuple, dict[str, Any]]:
  """The arguments of `VLM.__call__` from a flat batch (see docs/design.md)."""
  by_kind = lambda prefix: {
    key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)
  }
  args = (by_kind("media/"), batch["tokens"], batch["media_index"])
  names = ("media_first", "positions", "segment_ids", "soft_index")
  kwargs = {name: batch[name] for name in names if name in batch}
  return args, kwargs | {"media_ordinal": by_kind("media_ordinal/")}
