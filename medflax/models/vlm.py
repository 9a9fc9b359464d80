"""The one model: vision tower → connector → fusion → language model."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from medflax.models.attention import causal_mask, media_mask
from medflax.models.chunks import LogitSums
from medflax.models.fusion.fused_head import FusedHead
from medflax.models.fusion.inline import SoftTokens, soft_tokens
from medflax.models.reading import Read, append, nothing_read, with_room
from medflax.parallel.sharding import constrain
from medflax.utils import UserError


class VLM(nn.Module):
  """Text conditioned on interleaved media. See docs/design.md for the batch's arrays.

  Attributes:
    tower: media of one kind `[b, …]` → visual tokens `[b, v, d]`; None for text alone.
    connector: visual tokens `[b, m, frames, v, d]` → `[b, m, latents, d]`; None for text alone.
    lm: tokens and media features → logits; holds the fusion.
    shift: logits at a token predict the one so many places further.
    shares_prefixes: whether prompts can go on from what was read once of their beginning.
  """

  tower: nn.Module | None
  connector: nn.Module | None
  lm: nn.Module

  shift: ClassVar[int] = 1
  shares_prefixes: ClassVar[bool] = True

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
    sums: LogitSums | None = None,
  ) -> Float[Array, "b t vocab"] | Any:
    """Next-token logits in float32 for whole rows (training, scoring), or sums over them.

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
      sums=sums,
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
    sums=None,
  ) -> Float[Array, "b t vocab"] | Any:
    """`__call__` on media that are features already."""
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    if segment_ids is None:
      segment_ids = jnp.ones_like(tokens)
    seen = visible_media(media_index, media_first, media_ordinal)
    soft = _soft(features, media_index, soft_index, media_ordinal)
    slots = jnp.arange(tokens.shape[1])
    mask = causal_mask(slots, segment_ids, slots, segment_ids)
    options = dict(segments=segment_ids, soft=soft, sums=sums)
    return self.lm(tokens, positions, mask, features, seen, **options)[0]

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
      y = self.tower(_spread(x.reshape(-1, *x.shape[2:])), kind)
      features.append(self.connector(_spread(y).reshape(*x.shape[:2], 1, *y.shape[1:])))
    if not features:
      return None
    return constrain(jnp.concatenate(features, axis=1), "batch", None, None, None)

  def prefill(
    self,
    features: Float[Array, "b n latents d"] | None,
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
  ) -> tuple[Float[Array, "b 1 vocab"], Read]:
    """Reads left-padded prompts: the last token's logits, and what `extend` goes on from.

    Args:
      features: from `embed_media`, of the media that are not in `prefix`.
      prefix: what all prompts begin with, one row that was read with `length` 0; positions, media
        indices and ordinals count from its beginning.
      length, branches: there will be room for so many continuations of so many tokens each.
    """
    if isinstance(self.lm.fusion, FusedHead):
      raise UserError(
        "config.model.fusion.type=fused_head sees text on both sides and cannot continue it; "
        "set config.model.objective.type=masked"
      )
    b, t = tokens.shape
    before = nothing_read(b) if prefix is None else prefix.for_rows(b)
    ordinal = jnp.concatenate([before.media_ordinal, *_by_kind(media_ordinal)], axis=1)
    media_seen = media_mask(media_index, media_first, ordinal)
    slots = jnp.arange(t)
    own = causal_mask(slots, segment_ids, slots, segment_ids)
    earlier = (segment_ids > 0)[:, :, None] & before.seen[:, None]
    places = jnp.concatenate([before.positions, positions], axis=1)
    logits, kept = self.lm(
      tokens,
      positions,
      jnp.concatenate([earlier, own], axis=2),
      features,
      media_seen,
      soft=_soft(features, media_index, soft_index, media_ordinal),
      cache=before.parts,
      key_positions=places if before.parts else None,
      keep=True,
      last_only=True,
    )
    room = length * branches
    last = segment_ids[:, -1:]
    read = Read(
      parts=(*before.parts, *with_room(kept, room)),
      positions=jnp.pad(places, ((0, 0), (0, room))),
      seen=jnp.concatenate([before.seen, (segment_ids == last) & (last > 0)], axis=1),
      media_ordinal=ordinal,
      media_seen=media_seen[:, -1:],
      next_position=positions[:, -1:] + 1,
      count=jnp.zeros((), jnp.int32),
    )
    return logits, read

  def extend(
    self, tokens: Int[Array, "b t"], read: Read, seen: Bool[Array | np.ndarray, "#b t n"]
  ) -> tuple[Float[Array, "b t vocab"], Read]:
    """Appends tokens to what was read; returns their logits too.

    Args:
      seen: which of the new tokens so far, in the order in which they were appended, each of
        these sees; itself among them. A token sees the prompt as well, and stands behind as many
        as it sees, so that continuations of one prompt can stand side by side.
    """
    b, t = tokens.shape
    before = (read.positions, read.seen, read.next_position, read.count)
    positions, places, mask = append(*before, seen)
    logits, room = self.lm(
      tokens,
      positions,
      mask,
      None,
      jnp.broadcast_to(read.media_seen, (b, t, read.media_seen.shape[2])),
      cache=read.parts,
      key_positions=places,
      index=read.count,
      keep=True,
    )
    parts = (*read.parts[:-1], room)
    return logits, read._replace(parts=parts, positions=places, count=read.count + t)


def _spread(x: Shaped[Array, "media ..."]) -> Shaped[Array, "media ..."]:
  """Media over all devices: those that share a row would else all do all of its media."""
  return constrain(x, "media", *[None] * (x.ndim - 1))


def visible_media(
  media_index: Int[Array, "b t"],
  media_first: Int[Array, "b t"] | None,
  media_ordinal: Mapping[str, Int[Array, "b _"]],
) -> Bool[Array, "b t m"] | None:
  """Which media each token sees, kinds in the order of `embed_media`; None without media."""
  if not media_ordinal:
    return None
  first = media_index if media_first is None else media_first
  return media_mask(media_index, first, jnp.concatenate(_by_kind(media_ordinal), axis=1))


def _by_kind(media_ordinal: Mapping[str, Int[Array, "b _"]]) -> list[Int[Array, "b _"]]:
  return [media_ordinal[kind] for kind in sorted(media_ordinal)]


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
