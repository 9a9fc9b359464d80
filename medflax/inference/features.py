"""Media embedded once each, however many prompts show them."""

import functools
import hashlib
import tempfile
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped

from medflax.inference.decode import fetch
from medflax.utils import UserError

MEMORY = 2**31  # bytes of features that are held; what comes later lies on disk

# Maps a host chunk `{kind: [chunk_size, 1, …]}` to features [chunk_size, latents, d].
Embed = Callable[[dict[str, np.ndarray]], Array]


def embed_with(
  model: nn.Module, params: PyTree, put: Callable[[dict[str, np.ndarray]], Mapping[str, Array]]
) -> Embed:
  """An `Embed` by a model; `put` places a chunk on the devices."""
  return lambda media: embed(model, params, put(media))


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

  `add` media, then `finish`, then `take`; and again. While the device embeds one chunk the host
  fills the next.
  """

  def __init__(self, embed: Embed, chunk_size: int, *, memory: int = MEMORY):
    """Of more than `memory` bytes the rest lies in a temporary file."""
    self._embed, self._chunk_size, self._memory = embed, chunk_size, memory
    self._rows: dict[tuple, int] = {}  # by kind, shape, dtype and digest
    self._waiting: dict[tuple, list[tuple[int, np.ndarray]]] = {}  # by kind, shape and dtype
    self._running: tuple[list[int], Array] | None = None
    self._blocks: list[np.ndarray] = []
    self._places: dict[int, tuple[int, int]] = {}  # by row: block, and row of it

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
    """Embeds what is still waiting."""
    for shape in self._waiting:
      self._flush(shape)
    self._fetch()

  def take(self, rows: Int[np.ndarray, "b m"]) -> Float[np.ndarray, "b m latents d"]:
    """Features by row; -1, an empty slot, gives zeros.

    Raises:
      KeyError: for media that were added since the last `finish`.
    """
    places = np.array([self._places[row] if row >= 0 else (-1, 0) for row in rows.ravel().tolist()])
    first = self._blocks[0]
    features = np.zeros((len(places), *first.shape[1:]), first.dtype)
    for block in np.unique(places[:, 0]).tolist():
      if block >= 0:
        here = places[:, 0] == block
        features[here] = self._blocks[block][places[here, 1]]
    return features.reshape(*rows.shape, *first.shape[1:])

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
      block = self._kept(fetch(features)[: len(rows)])  # the chunk may be padded
      self._places |= {row: (len(self._blocks), place) for place, row in enumerate(rows)}
      self._blocks.append(block)
      self._running = None

  def _kept(self, block: np.ndarray) -> np.ndarray:
    """The block itself, or a copy on disk once there is too much."""
    if sum(x.nbytes for x in self._blocks) + block.nbytes <= self._memory:
      return block
    with tempfile.TemporaryFile(prefix="medflax-features-") as file:  # gone with its last map
      kept = np.memmap(file, block.dtype, "w+", shape=block.shape)
    kept[:] = block
    return kept
