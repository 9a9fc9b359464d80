"""Captioner: text behind an image's tokens in one stack of layers, GIT (Wang et al. 2022)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medflax.models import layers
from medflax.models.attention import KeysValues
from medflax.models.language.layer import Cache, Context, DecoderLayer, bert_fields
from medflax.models.vision.vit import ViT
from medflax.parallel.sharding import looked_up


class CaptionLayer(DecoderLayer):
  """A decoder's layer, its arguments as nn.scan wants them."""

  def __call__(
    self, x: Float[Array, "b t d"], cache: Sequence[KeysValues], context: Context
  ) -> tuple[Float[Array, "b t d"], KeysValues]:
    return super().__call__(x, context, {}, cache)


class TextStack(nn.Module):
  """Post-norm layers over visual tokens and text, and the head.

  Visual tokens see each other, text sees them and the text so far. Only text has positions.
  """

  vocab_size: int
  width: int
  depth: int
  heads: int
  mlp_width: int
  max_positions: int
  activation: str
  norm_eps: float
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    visual: Float[Array, "b m d"] | None,
    tokens: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    mask: Bool[Array, "b q s"],
    cache: Sequence[KeysValues],
    index: Int[Array, ""] | None,
  ) -> tuple[Float[Array, "b q {self.vocab_size}"], KeysValues]:
    small = nn.initializers.normal(0.02)
    names = (("embedding", "vocab", self.vocab_size), ("positions", "pos", self.max_positions))
    words, places = (
      self.param(name, layers.param_init(small, axis, "embed"), (rows, self.width))
      for name, axis, rows in names
    )
    x = looked_up(words, tokens, "vocab", "embed", dtype=words.dtype)
    x = x + looked_up(places, positions, "pos", "embed", dtype=places.dtype)
    norm = layers.layer_norm(name="embedding_norm", epsilon=self.norm_eps, dtype=self.dtype)
    x = norm(x.astype(self.dtype))
    x = x if visual is None else jnp.concatenate([visual, x], axis=1)
    fields = bert_fields(self.heads, self.mlp_width, self.activation, self.norm_eps, self.dtype)
    stack = layers.stack(CaptionLayer, self.depth, self.remat, (0, nn.broadcast))(
      **fields, name="layers"
    )
    distance = jnp.zeros((1, *mask.shape[1:]), jnp.int32)  # no window reads it
    context = Context(positions, mask, distance, None, None, None, index)
    x, new = stack(x, cache, context)
    options = dict(name="head", use_bias=True, dtype=self.dtype)
    logits = layers.dense(self.vocab_size, ("embed", "vocab"), **options)(x)
    return logits.astype(jnp.float32), new


class Captioner(nn.Module):
  """Describes an image, or the frames of a video.

  Attributes:
    tower: frames `[b, …]` → visual tokens `[b, v, dv]`.
    text: over the visual tokens of all frames and the text.
    frames: how many frames have an embedding of their place; 0 for images.
    norm_eps: epsilon of the norm that visual tokens pass on their way to the text.
  """

  tower: nn.Module
  text: TextStack
  frames: int = 0
  norm_eps: float = 1e-5
  dtype: Any = jnp.float32

  def __call__(
    self,
    media: Float[Array, "b f h w c"],
    tokens: Int[Array, "b t"],
    seen: Bool[Array, "b t"] | None = None,
    *,
    cache_size: int = 0,
  ) -> tuple[Float[Array, "b slots vocab"], Cache | None]:
    """Float32 logits of the visual tokens and the text, and a cache for `decode_step`.

    Args:
      seen: False on padding behind the text; a cache needs text without.
      cache_size: how many tokens of text the cache to return has room for; 0 for none.
    """
    visual = self.look(media)
    b, t = tokens.shape
    m = visual.shape[1]
    place = jnp.arange(m + t)
    text = jnp.ones((b, t), bool) if seen is None else seen
    there = jnp.concatenate([jnp.ones((b, m), bool), text], axis=1)
    mask = (place[None] <= jnp.maximum(place, m - 1)[:, None]) & there[:, None]
    positions = jnp.broadcast_to(jnp.arange(t), tokens.shape)
    logits, cache = self.text(visual, tokens, positions, mask, (), None)
    if not cache_size:
      return logits, None
    grow = lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, 0), (0, cache_size - t), (0, 0)))
    cache = {"layers": jax.tree.map(grow, cache)}
    return logits, cache | {"index": jnp.asarray(m + t), "position": jnp.asarray(t)}

  @nn.compact
  def look(self, media: Float[Array, "b f h w c"]) -> Float[Array, "b m {self.text.width}"]:
    """The visual tokens of all frames, as the text sees them."""
    b, frames = media.shape[:2]
    x = self.tower(media.reshape(-1, *media.shape[2:]), "image")
    x = x.reshape(b, frames, *x.shape[1:])
    if self.frames:
      init = layers.param_init(nn.initializers.zeros, "pos", "vision_embed")
      table = self.param("frame_embedding", init, (self.frames, x.shape[-1]))
      x = x + table[:frames, None].astype(self.dtype)
    axes, options = ("vision_embed", "embed"), dict(use_bias=True, dtype=self.dtype)
    x = layers.dense(self.text.width, axes, name="project", **options)(
      x.reshape(b, -1, x.shape[-1])
    )
    return layers.layer_norm(name="project_norm", epsilon=self.norm_eps, dtype=self.dtype)(x)

  def decode_step(
    self, tokens: Int[Array, "b 1"], cache: Cache
  ) -> tuple[Float[Array, "b 1 vocab"], Cache]:
    """Appends one token a row: its logits and the advanced cache."""
    index, slots = cache["index"], jnp.arange(cache["layers"].key.shape[3])
    mask = jnp.broadcast_to(slots <= index, (tokens.shape[0], 1, slots.shape[0]))
    positions = jnp.broadcast_to(cache["position"], tokens.shape)
    logits, kept = self.text(None, tokens, positions, mask, (cache["layers"],), index)
    return logits, {"layers": kept, "index": index + 1, "position": cache["position"] + 1}


def build_captioner(section: Mapping[str, Any]) -> Captioner:
  """The captioner of a section from `medflax.pretrained.hf_captioners.config_from_hf`."""
  tower = {name: value for name, value in section["tower"].items() if name != "type"}
  return Captioner(**{**section, "tower": ViT(**tower), "text": TextStack(**section["text"])})
