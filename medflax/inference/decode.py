"""Greedy generation with a key-value cache, and media embedded once each.

The three programs compiled here keep their shapes: `embed` sees chunks of media of one size,
however many shots they serve; `generate` sees prompts padded to a bucket's length. Both are
compiled once per shape in a process, shared by whoever calls them.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from medflax.utils import UserError

STOP_REASONS = {True: "stop_token", False: "length"}


class Generation(NamedTuple):
  """Generated tokens, `pad_id` after the stop token, and which rows met a stop token."""

  tokens: Int[Array, "b n"]
  stopped: Bool[Array, " b"]


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens"))
def generate(
  model: nn.Module,
  params: PyTree,
  batch: Mapping[str, Array | np.ndarray],
  *,
  max_new_tokens: int,
  stop_ids: Int[Array | np.ndarray, " stops"],
  pad_id: Int[Array | np.ndarray, ""] | int,
) -> Generation:
  """Continues left-padded prompts greedily until every row has stopped.

  Args:
    model: a `medflax.models.VLM` or whatever has its `prefill` and `decode_step`; hashable.
    params: its parameters, with any sharding.
    batch: `tokens`, `media_index`, `media_first`, `positions`, `segment_ids` (0 on padding),
      all [b, t], with inline media `soft_index` too; for prompts with media `features` [b, m, latents, d] and `media_ordinal` [b, m].
      A row of padding alone is not waited for.
    max_new_tokens: the most tokens to generate, at least 1.
    stop_ids: tokens that end an answer; they are part of the result.
    pad_id: what follows them.
  """
  names = ("media_first", "positions", "segment_ids", "soft_index")
  text = {key: batch[key] for key in names if key in batch}
  # Features come embedded, so their kinds no longer matter: one name for all of them.
  ordinal = {"media": batch["media_ordinal"]} if "media_ordinal" in batch else {}
  logits, cache = model.apply(
    {"params": params},
    batch.get("features"),
    batch["tokens"],
    batch["media_index"],
    media_ordinal=ordinal,
    cache_size=batch["tokens"].shape[1] + max_new_tokens,
    method="prefill",
    **text,
  )

  def choose(logits, out, done, stopped, step):
    token = jnp.where(done, pad_id, jnp.argmax(logits[:, -1], axis=-1).astype(jnp.int32))
    hit = ~done & jnp.isin(token, stop_ids)
    return token, out.at[:, step].set(token), done | hit, stopped | hit

  def proceed(state):
    _, _, _, done, _, step = state
    return (step < max_new_tokens) & ~done.all()

  def advance(state):
    cache, token, out, done, stopped, step = state
    logits, cache = model.apply({"params": params}, token[:, None], cache, method="decode_step")
    token, out, done, stopped = choose(logits, out, done, stopped, step)
    return cache, token, out, done, stopped, step + 1

  rows = batch["tokens"].shape[0]
  out = jnp.full((rows, max_new_tokens), pad_id)
  done = ~(batch["segment_ids"] > 0).any(axis=1)
  first = choose(logits, out, done, jnp.zeros_like(done), 0)
  _, _, out, _, stopped, _ = jax.lax.while_loop(proceed, advance, (cache, *first, 1))
  return Generation(out, stopped)


@functools.partial(jax.jit, static_argnames="model")
def embed(
  model: nn.Module, params: PyTree, media: Mapping[str, Shaped[Array | np.ndarray, "n 1 ..."]]
) -> Float[Array, "n latents d"]:
  """Features of a chunk of media of one kind, `{kind: [n, 1, …]}`.

  Raises:
    UserError: if features depend on a media's place in its row, so cannot be computed once.
  """
  if getattr(getattr(model, "connector", None), "max_media", 0):
    raise UserError(
      "config.model.connector.max_media ties features to places; set it to 0 to generate"
    )
  return jnp.asarray(model.apply({"params": params}, media, method="embed_media"))[:, 0]


class MediaFeatures:
  """The features of distinct media: equal arrays are embedded once, in chunks of one shape.

  `add` every media, then `finish`, then `take`. While the device embeds one chunk the host
  fills the next.
  """

  def __init__(self, embed: Callable[[dict[str, np.ndarray]], Array], chunk_size: int):
    """`embed` maps a host chunk `{kind: [chunk_size, 1, …]}` to features [chunk_size, …]."""
    self._embed = embed
    self._chunk_size = chunk_size
    self._rows: dict[tuple, int] = {}  # by kind, shape, dtype and digest
    self._waiting: dict[tuple, list[tuple[int, np.ndarray]]] = {}  # by kind, shape and dtype
    self._running: tuple[list[int], Array] | None = None
    self._features: dict[int, np.ndarray] = {}
    self._table = np.zeros((0, 0, 0))

  @property
  def programs(self) -> int:
    """How many shapes of media chunks were embedded, each a program of its own."""
    return len(self._waiting)

  def __len__(self) -> int:
    return len(self._rows)

  def add(self, array: Shaped[np.ndarray, "..."], kind: str) -> int:
    """The row of this media's features, embedding it unless an equal one was added before."""
    shape = (kind, array.shape, array.dtype.str)
    key = (*shape, hashlib.blake2b(np.ascontiguousarray(array), digest_size=16).digest())
    if key not in self._rows:
      self._rows[key] = len(self._rows)
      waiting = self._waiting.setdefault(shape, [])
      waiting.append((self._rows[key], array))
      if len(waiting) == self._chunk_size:
        self._flush(shape)
    return self._rows[key]

  def finish(self) -> None:
    """Embeds what is still waiting and builds the table that `take` reads."""
    for shape in self._waiting:
      self._flush(shape)
    self._fetch()
    if self._features:
      self._table = np.stack([self._features.pop(row) for row in range(len(self))])

  def take(self, rows: Int[np.ndarray, "b m"]) -> Float[np.ndarray, "b m latents d"]:
    """Features by row; -1, an empty slot, gives zeros."""
    features = self._table[rows]
    features[rows < 0] = 0
    return features

  def _flush(self, shape: tuple) -> None:
    waiting = self._waiting[shape]
    if waiting:
      kind, item_shape, dtype = shape
      chunk = np.zeros((self._chunk_size, 1, *item_shape), dtype)
      chunk[: len(waiting), 0] = [array for _, array in waiting]
      features = self._embed({kind: chunk})
      self._fetch()
      self._running = ([row for row, _ in waiting], features)
      waiting.clear()

  def _fetch(self) -> None:
    if self._running is not None:
      rows, features = self._running
      self._features.update(zip(rows, fetch(features), strict=False))  # the chunk may be padded
      self._running = None


def fetch(x: Array) -> np.ndarray:
  """The whole of a device array, also where other processes hold parts of it."""
  if x.is_fully_addressable:
    return np.asarray(x)
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def postprocess(text: str, cuts: Sequence[str]) -> str:
  """The answer in generated text: cut at the first of `cuts`, without a final full stop."""
  text = text.strip()
  for cut in cuts:
    text = text.split(cut, 1)[0]
  return text.rstrip().removesuffix(".").rstrip()
