"""Media embedded once each, and prompts read once: what generation and scoring begin with.

The programs compiled here keep their shapes: `embed` sees chunks of media of one size, however
many shots they serve; `read_prompts` sees prompts padded to a bucket's length. They are compiled
once per shape in a process, shared by whoever calls them.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int, PyTree

from medflax.inference.decoding import Generation, Greedy
from medflax.inference.stops import stop_at


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
    prompt_lengths=(batch["segment_ids"] > 0).sum(axis=1),
  )


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
