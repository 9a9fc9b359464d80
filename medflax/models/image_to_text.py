"""An encoder reads media, and a decoder that looks at them writes (Pix2Struct, DePlot)."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from medflax.models.attention import causal_mask
from medflax.models.language.layer import Cache
from medflax.models.reading import append
from medflax.models.vlm import VLM, visible_media
from medflax.utils import UserError


class Written(NamedTuple):
  """A prompt of `p` tokens in each row, and room for `r` new ones.

  Attributes:
    memory, memory_mask: what the encoder made of the media, and what of it new tokens see.
    cache: of the decoder.
    positions: of the prompt and of what stands in the room.
    seen: which tokens are the prompt's.
    next_position: of the first new token.
    count: how many were appended.
  """

  memory: Float[Array, "b s d"]
  memory_mask: Bool[Array, "b 1 s"]
  cache: Cache
  positions: Int[Array, "b p+r"]
  seen: Bool[Array, "b p"]
  next_position: Int[Array, "b 1"]
  count: Int[Array, ""]


class ImageToText(VLM, kw_only=True):
  """A `VLM` whose language model is an `EncoderDecoder`, and whose tower gives patches.

  There is no connector: what the encoder makes of a media item is what a text sees of it.
  """

  shares_prefixes: ClassVar[bool] = False

  def embed_media(self, media: Mapping[str, Array]) -> Float[Array, "b m patches d"] | None:
    """The encoder's output for every media slot, kinds one after the other by name."""
    features = []
    for kind in sorted(media):
      if self.tower is None:
        raise ValueError(f"{kind} media for a model without a tower")
      x = media[kind]
      patches = self.tower(x.reshape(-1, *x.shape[2:]), kind)
      y = self.lm.encode(patches, jnp.ones(patches.shape[:2], bool))
      features.append(y.reshape(*x.shape[:2], *y.shape[1:]))
    return jnp.concatenate(features, axis=1) if features else None

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
  ):
    segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
    slots = jnp.arange(tokens.shape[1])
    mask = causal_mask(slots, segment_ids, slots, segment_ids)
    memory = self._memory(features, tokens, media_index, media_first, media_ordinal)
    logits, _ = self.lm.attend(tokens, *memory, mask, (slots[:, None] - slots)[None])
    return logits if sums is None else sums.of(logits, sums.rows)

  def _memory(
    self, features, tokens, media_index, media_first, media_ordinal
  ) -> tuple[Float[Array, "b s d"], Bool[Array, "b t s"]]:
    """All media of a row one after the other, and what each token sees of them."""
    b, t = tokens.shape
    if features is None:
      return jnp.zeros((b, 1, self.lm.width), self.lm.dtype), jnp.zeros((b, t, 1), bool)
    seen = visible_media(media_index, media_first, media_ordinal)
    assert seen is not None  # there are features
    return features.reshape(b, -1, features.shape[-1]), jnp.repeat(seen, features.shape[2], axis=2)

  def prefill(
    self,
    features: Float[Array, "b m patches d"] | None,
    tokens: Int[Array, "b t"],
    media_index: Int[Array, "b t"],
    *,
    media_ordinal: Mapping[str, Int[Array, "b _"]],
    media_first: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    segment_ids: Int[Array, "b t"],
    soft_index: Int[Array, "b t"] | None = None,
    prefix: Written | None = None,
    length: int = 0,
    branches: int = 1,
  ) -> tuple[Float[Array, "b 1 vocab"], Written]:
    """Reads left-padded prompts, as `VLM.prefill` does."""
    if prefix is not None:
      raise UserError("config.model.objective.type=image_to_text reads every prompt by itself")
    slots, room = jnp.arange(tokens.shape[1]), length * branches
    mask = causal_mask(slots, segment_ids, slots, segment_ids)
    memory, memory_mask = self._memory(features, tokens, media_index, media_first, media_ordinal)
    distance = (slots[:, None] - slots)[None]
    logits, cache = self.lm.attend(tokens, memory, memory_mask, mask, distance, room=room)
    last = segment_ids[:, -1:]
    return logits[:, -1:], Written(
      memory=memory,
      memory_mask=memory_mask[:, -1:],
      cache=cache,
      positions=jnp.pad(positions, ((0, 0), (0, room))),
      seen=(segment_ids == last) & (last > 0),
      next_position=positions[:, -1:] + 1,
      count=jnp.zeros((), jnp.int32),
    )

  def extend(
    self, tokens: Int[Array, "b t"], read: Written, seen: Bool[Array | np.ndarray, "#b t n"]
  ) -> tuple[Float[Array, "b t vocab"], Written]:
    """Appends tokens to what was read, as `VLM.extend` does."""
    b, t = tokens.shape
    before = (read.positions, read.seen, read.next_position, read.count)
    positions, places, mask = append(*before, seen)
    memory_mask = jnp.broadcast_to(read.memory_mask, (b, t, read.memory.shape[1]))
    logits, cache = self.lm.attend(
      tokens,
      read.memory,
      memory_mask,
      mask,
      positions[:, :, None] - places[:, None],
      cache=read.cache,
      index=read.seen.shape[1] + read.count,
    )
    return logits, read._replace(cache=cache, positions=places, count=read.count + t)
