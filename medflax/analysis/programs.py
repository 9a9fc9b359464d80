"""The programs of a run, from its config to something that can be compiled: nothing is allocated.

`train` is one step of the trainer, `prefill` embeds media and reads prompts, `decode` appends one
token to each.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medflax.analysis import flops
from medflax.build import Parts, jit_train_step
from medflax.inference.decode import read_prompts
from medflax.models import model_inputs
from medflax.parallel import sharding

# "Used 21.5G of 15.75G hbm", or "temporaries (17.15G) exceeds available HBM (15.75G)".
_USED = re.compile(
  r"([\d.]+)([KMGT])\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT])", re.IGNORECASE
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
ROOM = 128  # new tokens that a prompt's cache has places for


class DoesNotFitError(Exception):
  """The compiler found no way to run a program in the device's memory.

  Attributes:
    needed, capacity: bytes.
  """

  def __init__(self, needed: int, capacity: int):
    super().__init__(f"needs {needed / 2**30:.2f} GiB of {capacity / 2**30:.2f} GiB")
    self.needed, self.capacity = needed, capacity


@dataclasses.dataclass(frozen=True)
class Program:
  """Something to compile, and what it costs by its maths.

  Attributes:
    rows: of the batch.
    tokens: of the batch, read or made.
    jitted: the function, to be lowered with `args`.
    args: abstract, with shardings.
    counts: the model's arithmetic on all devices; see `analysis.flops`.
    executed: operations on all devices, with what is recomputed.
  """

  rows: int
  tokens: int
  jitted: Any
  args: tuple
  counts: flops.Counts
  executed: int | float

  def compile(self, parts: Parts) -> jax.stages.Compiled:
    """For the devices of the mesh; raises DoesNotFitError."""
    with jax.set_mesh(parts.mesh), nn.logical_axis_rules(sharding.RULES):
      lowered = self.jitted.lower(*self.args)
      try:
        return lowered.compile()
      except jax.errors.JaxRuntimeError as error:
        if used := _USED.search(str(error)):
          needed, unit, capacity, unit_of_it = used.groups()
          sizes = float(needed) * _UNITS[unit.upper()], float(capacity) * _UNITS[unit_of_it.upper()]
          raise DoesNotFitError(*map(int, sizes)) from None
        raise


def train(parts: Parts) -> Program:
  """One step of the trainer."""
  step = jit_train_step(parts)
  rows, length = parts.batch["tokens"].shape
  counts = flops.training(parts.model, parts.state, parts.batch)
  executed = flops.executed(step, parts.state, parts.batch)
  return Program(rows, rows * length, step, (parts.state, parts.batch), counts, executed)


def prefill(parts: Parts) -> Program:
  """Embeds the media of prompts of `data.max_tokens` and reads them."""
  state, batch = parts.state, _micro_batch(parts)
  counts = flops.count(_prefill(parts), {}, state.eval_params, batch)
  jitted = jax.jit(lambda params, batch: _prefill(parts)({}, params, batch))
  rows, length = batch["tokens"].shape
  args = (state.eval_params, batch)
  return Program(rows, rows * length, jitted, args, counts, flops.total(counts).forward)


def decode(parts: Parts) -> Program:
  """Appends a token to each prompt that `prefill` read."""
  state, batch = parts.state, _micro_batch(parts)
  rows = batch["tokens"].shape[0]
  params = state.eval_params
  _, read = jax.eval_shape(_prefill(parts), {}, params, batch)
  split = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_of_rows(parts, x, rows))
  read = jax.tree.map(split, read)
  token = split(jax.ShapeDtypeStruct((rows, 1), jnp.int32))

  def extend(trainable, params, token, read):
    del trainable
    seen = (jnp.arange(ROOM) <= getattr(read, "count", 0))[None, None]
    return parts.model.apply({"params": params}, token, read, seen, method="extend")

  counts = flops.count(extend, {}, params, token, read)
  step = lambda params, token, read: extend({}, params, token, read)
  jitted = jax.jit(step, donate_argnums=2)
  return Program(rows, rows, jitted, (params, token, read), counts, flops.total(counts).forward)


PROGRAMS: dict[str, Callable[[Parts], Program]] = {
  "train": train,
  "prefill": prefill,
  "decode": decode,
}


def _micro_batch(parts: Parts) -> dict[str, jax.ShapeDtypeStruct]:
  """Prompts of what the training step takes at once: without accumulation, its batch."""
  rows = parts.config.train.batch_size // parts.config.optimizer.accumulate
  return {
    key: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=x.sharding)
    for key, x in parts.batch.items()
    if key != "loss_mask"
  }


def _prefill(parts: Parts) -> Callable[..., tuple[jax.Array, Any]]:
  """`(nothing trainable, params, batch) -> (logits, what was read)`."""

  def run(trainable, params, batch):
    del trainable
    (media, *_), inputs = model_inputs(batch)
    ordinals = inputs.pop("media_ordinal")
    prompts = {key: batch[key] for key in ("tokens", "media_index")} | inputs
    if media:
      prompts["features"] = parts.model.apply({"params": params}, media, method="embed_media")
      by_kind = [ordinals[kind] for kind in sorted(ordinals)]
      prompts["media_ordinal"] = jnp.concatenate(by_kind, axis=1)
    return read_prompts(parts.model, params, prompts, ROOM)

  return run


def _of_rows(parts: Parts, x: jax.ShapeDtypeStruct, rows: int) -> jax.sharding.NamedSharding:
  """The rows of what was read over the devices that read them; heads as weights are split.

  Keys and values are `[groups, rows, heads, places, channels]`.
  """
  spec: list[Any] = [None] * len(x.shape)
  if rows in x.shape[:2]:
    (spec[x.shape.index(rows)],) = sharding.batch_sharding(parts.mesh).spec
  if len(x.shape) == 5 and x.shape[2] % parts.mesh.shape["tensor"] == 0:
    spec[2] = "tensor"
  return jax.sharding.NamedSharding(parts.mesh, jax.sharding.PartitionSpec(*spec))


def memory_of(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Bytes on one device, as the compiler laid them out."""
  stats = compiled.memory_analysis()
  assert stats is not None, "this backend tells nothing of memory"
  sizes = {
    "arguments": stats.argument_size_in_bytes,
    "outputs": stats.output_size_in_bytes,
    "shared": stats.alias_size_in_bytes,
    "temporaries": stats.temp_size_in_bytes,
    "code": stats.generated_code_size_in_bytes,
  }
  held = math.fsum(sizes.values()) - 2 * sizes["shared"]
  return sizes | {"peak": max(stats.peak_memory_in_bytes, int(held))}


def largest(memory: Callable[[int], float], capacity: int | float, *, tries: int = 6) -> int:
  """The largest whole number for which `memory` stays within `capacity`; 0 if 1 does not.

  Memory is nearly linear in the rows of a batch, so that each guess lies on the line through the
  two sizes nearest to the limit; `memory` is called at most `tries` times.
  """
  known = {1: memory(1)}
  guess = 2
  for _ in range(tries - 1):
    fits = [n for n, m in known.items() if m <= capacity]
    if not fits:
      return 0
    too_many = min((n for n, m in known.items() if m > capacity), default=math.inf)
    guess = min(max(guess, max(fits) + 1), too_many - 1)
    if guess <= max(fits):
      break
    known[int(guess)] = memory(int(guess))
    (a, at_a), (b, at_b) = sorted(known.items(), key=lambda item: abs(item[1] - capacity))[:2]
    slope = (at_b - at_a) / (b - a)
    guess = a + math.floor((capacity - at_a) / slope) if slope > 0 else 2 * max(a, b)
  return max(n for n, m in known.items() if m <= capacity)
