"""Media embedded once each, however many prompts show them."""

import functools
import hashlib
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped

from medflax.inference.decode import fetch
from medflax.utils import UserError

MEMORY = 2**31  # bytes of features that a store holds; what comes later lies on disk

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


class FeatureStore:
  """Features on the host, by what they are of; all by one model with the same weights.

  Whoever runs several evaluators on the same weights hands one to all of them, so that media which
  several show are embedded once. With other weights there is another.
  """

  def __init__(self, *, memory: int = MEMORY):
    """Of more than `memory` bytes the rest lies in temporary files."""
    self._left = memory
    self._features: dict[Hashable, Float[np.ndarray, "latents d"]] = {}

  def __contains__(self, key: Hashable) -> bool:
    return key in self._features

  def __getitem__(self, key: Hashable) -> Float[np.ndarray, "latents d"]:
    return self._features[key]

  def add(self, keys: Sequence[Hashable], block: Float[np.ndarray, "n latents d"]) -> None:
    """Keeps a copy of the features of these media."""
    if block.nbytes <= self._left:
      self._left -= block.nbytes
      kept = block.copy()
    else:
      with tempfile.TemporaryFile(prefix="medflax-features-") as file:  # gone with its last map
        kept = np.memmap(file, block.dtype, "w+", shape=block.shape)
      kept[:] = block
    self._features.update(zip(keys, kept, strict=True))


class MediaFeatures:
  """The features of distinct media: equal arrays are embedded once, in chunks of one shape.

  `add` media, then `finish`, then `take`; and again. While the device embeds one chunk the host
  fills the next. What others have put into the `store` by chunks of the same shape is taken from
  there: which media share a chunk, and where they stand in it, changes no bit of their features.
  """

  def __init__(self, embed: Embed, chunk_size: int, store: FeatureStore | None = None):
    """`store` None: an own one."""
    self._embed, self._chunk_size = embed, chunk_size
    self._store = FeatureStore() if store is None else store
    self._rows: dict[tuple, int] = {}  # by chunk size, kind, shape, dtype and digest
    self._keys: list[tuple] = []  # by row
    self._waiting: dict[tuple, list[tuple[tuple, np.ndarray]]] = {}  # by kind, shape and dtype
    self._running: tuple[list[tuple], Array] | None = None

  @property
  def programs(self) -> int:
    """How many shapes of media there are, each embedded by a program of its own."""
    return len(self._waiting)

  def __len__(self) -> int:
    return len(self._rows)

  def add(self, array: Shaped[np.ndarray, "..."], kind: str) -> int:
    """The row of this media's features, embedding it unless an equal one was added before."""
    shape = (kind, array.shape, array.dtype.str)
    digest = hashlib.blake2b(np.ascontiguousarray(array), digest_size=16).digest()
    key = (self._chunk_size, *shape, digest)
    if key not in self._rows:
      self._rows[key] = len(self._rows)
      self._keys.append(key)
      waiting = self._waiting.setdefault(shape, [])
      if key not in self._store:
        waiting.append((key, array))
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
    first = self._store[self._keys[0]]
    features = np.zeros((*rows.shape, *first.shape), first.dtype)
    for place, row in np.ndenumerate(rows):
      if row >= 0:
        features[place] = self._store[self._keys[row]]
    return features

  def _flush(self, shape: tuple) -> None:
    waiting = self._waiting[shape]
    if waiting:
      kind, item_shape, dtype = shape
      chunk = np.zeros((self._chunk_size, 1, *item_shape), dtype)
      chunk[: len(waiting), 0] = [array for _, array in waiting]
      features = self._embed({kind: chunk})
      self._fetch()
      self._running = ([key for key, _ in waiting], features)
      waiting.clear()

  def _fetch(self) -> None:
    if self._running is not None:
      keys, features = self._running
      self._store.add(keys, fetch(features)[: len(keys)])  # the chunk may be padded
      self._running = None
