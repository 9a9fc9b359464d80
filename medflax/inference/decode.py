"""Media embedded once each, and prompts read once: what generation and scoring begin with.

The programs compiled here keep their shapes: `embed` sees chunks of media of one size, however
many shots they serve; `read_prompts` sees prompts padded to a bucket's length. They are compiled
once per shape in a process, shared by whoever calls them.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int, PyTree, Shaped

from medflax.inference.decoding import Generation, Greedy
from medflax.inference.stops import STOP_REASONS, stop_at  # noqa: F401  evaluators read it here
from medflax.utils import UserError


@functools.partial(jax.jit, static_argnames="model")
def read_prefix(
  model: nn.Module, params: PyTree, batch: Mapping[str, Array | np.ndarray]
) -> PyTree:
  """Reads what many prompts begin with, for `read_prompts`.

  Args:
    batch: one row, as of `read_prompts`.
  """
  with nn.logical_axis_rules(()):  # one row cannot be divided among devices
    return _prefill(model, params, batch)[1]


@functools.partial(jax.jit, static_argnames=("model", "length", "branches"))
def read_prompts(
  model: nn.Module,
  params: PyTree,
  batch: Mapping[str, Array | np.ndarray],
  length: int,
  prefix: PyTree = None,
  *,
  branches: int = 1,
) -> tuple[Float[Array, "b 1 vocab"], PyTree]:
  """Reads left-padded prompts: the last token's logits, and what generation and scoring go on from.

  Args:
    model: a `medflax.models.VLM` or whatever has its `prefill` and `extend`; hashable.
    params: its parameters, with any sharding.
    batch: `tokens`, `media_index`, `media_first`, `positions`, `segment_ids` (0 on padding),
      all [b, t], with inline media `soft_index` too; for prompts with media `features`
      [b, m, latents, d] and `media_ordinal` [b, m].
    length, branches: leaves room for so many continuations of a row, of so many tokens each.
    prefix: from `read_prefix`; the batch is then the rest of each prompt, its positions, media
      indices and ordinals counted from the prompt's beginning, its media only those of the rest.
  """
  return _prefill(model, params, batch, length=length, branches=branches, prefix=prefix)


def _prefill(
  model: nn.Module, params: PyTree, batch: Mapping[str, Array | np.ndarray], **options: Any
) -> tuple[Float[Array, "b 1 vocab"], PyTree]:
  names = ("media_first", "positions", "segment_ids", "soft_index")
  text = {key: batch[key] for key in names if key in batch}
  # Features come embedded, so their kinds no longer matter: one name for all of them.
  ordinal = {"media": batch["media_ordinal"]} if "media_ordinal" in batch else {}
  return model.apply(
    {"params": params},
    batch.get("features"),
    batch["tokens"],
    batch["media_index"],
    media_ordinal=ordinal,
    method="prefill",
    **text,
    **options,
  )


def generate(
  model: nn.Module,
  params: PyTree,
  batch: Mapping[str, Array | np.ndarray],
  *,
  max_new_tokens: int,
  stop_ids: Int[Array | np.ndarray, " stops"],
  pad_id: int,
) -> Generation:
  """Continues left-padded prompts greedily; see `read_prompts` and `decoding.Greedy`."""
  read = read_prompts(model, params, batch, max_new_tokens)
  return Greedy(max_new_tokens).generate(
    model,
    params,
    *read,
    stops=stop_at(np.asarray(stop_ids)),
    pad_id=pad_id,
    live=(batch["segment_ids"] > 0).any(axis=1),
  )


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
