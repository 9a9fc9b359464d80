"""Imported captioners and chart readers, and how they write."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Int, PyTree

from medflax.data.tokenizer import Tokenizer, load_tokenizer
from medflax.pretrained import load_weights
from medflax.pretrained.checkpoint import read_json
from medflax.utils import UserError

BATCH = 4  # images that are read together; DePlot's encoder takes 200 MB for a layer of each


class Imported(NamedTuple):
  """What a folder of `medflax.tools.import_weights` holds.

  Attributes:
    section: the part's fields.
    params: its parameters.
    tokenizer: its own.
    hf: the checkpoint's own config.json.
  """

  section: dict[str, Any]
  params: PyTree
  tokenizer: Tokenizer
  hf: dict[str, Any]

  def token(self, name: str, default: int) -> int:
    """`bos`, `eos` or `decoder_start` of the checkpoint's config."""
    places = (self.hf, self.hf.get("text_config") or {})
    found = [place.get(f"{name}_token_id") for place in places]
    return next((token for token in found if token is not None), default)


def open_import(folder: str | pathlib.Path, part: str) -> Imported:
  """The part of this name, `captioner` or `lm`.

  Raises:
    UserError: if the folder has no such part, no weights or no tokenizer.
  """
  folder = pathlib.Path(folder)
  sections = read_json(folder / "config.json")
  if part not in sections:
    raise UserError(f"{folder / 'config.json'} describes {', '.join(sections)}, but no {part}")
  weights = load_weights(folder / "weights.safetensors")
  flat = {
    path.removeprefix(f"{part}/"): jnp.asarray(np.asarray(x), jnp.float32)
    for path, x in weights.items()
  }
  hf = read_json(folder / "origin.json").get("config", {})
  tokenizer = load_tokenizer(str(folder / "tokenizer"), add=())
  section = flax.core.freeze(sections[part])
  return Imported(section, traverse_util.unflatten_dict(flat, sep="/"), tokenizer, hf)


Step = Callable[[Int[Array, "b 1"], PyTree], tuple[Float[Array, "b 1 vocab"], PyTree]]


def greedy(
  step: Step, logits: Float[Array, "b 1 vocab"], cache: PyTree, *, end: int, length: int
) -> Int[Array, "b {length}"]:
  """The likeliest tokens one after the other, `end` from there on; for use inside jit.

  Args:
    step: appends tokens.
    logits: of the first token.
    cache: what `step` goes on from, with room for `length` tokens.
  """

  def body(carry):
    i, tokens, done, logits, cache = carry
    token = jnp.where(done, end, logits[:, -1].argmax(-1)).astype(jnp.int32)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], i, axis=1)
    return i + 1, tokens, done | (token == end), *step(token[:, None], cache)

  b = logits.shape[0]
  done = jnp.zeros(b, bool)
  start = (jnp.int32(0), jnp.full((b, length), end, jnp.int32), done, logits, cache)
  return jax.lax.while_loop(lambda carry: (carry[0] < length) & ~carry[2].all(), body, start)[1]


def in_batches(
  read: Callable[[np.ndarray], Array], inputs: list[np.ndarray], tokenizer: Tokenizer
) -> list[str]:
  """The text that `read` makes the tokens of, for each input; few shapes are compiled."""
  texts, rows = [], min(BATCH, 1 << (len(inputs) - 1).bit_length())
  for i in range(0, len(inputs), rows):
    chunk = np.zeros((rows, *inputs[0].shape), inputs[0].dtype)
    chunk[: len(inputs[i : i + rows])] = inputs[i : i + rows]
    tokens = np.asarray(read(chunk))[: len(inputs) - i]
    texts += [tokenizer.decode(row).strip() for row in tokens]
  return texts
