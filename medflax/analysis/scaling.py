"""What a training step costs on slices of any size, from its arithmetic and its weights alone.

For what has not been compiled: weights fully sharded within a slice, each slice a replica.
`medflax.tools.aot` compiles, and knows better.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from medflax.analysis import flops
from medflax.analysis.hardware import Chip
from medflax.analysis.roofline import Roofline, torus_bandwidth, utilisation
from medflax.parallel.mesh import sensible_sizes


@dataclasses.dataclass(frozen=True)
class Work:
  """A training step, whatever it runs on.

  Attributes:
    model: operations of a row; see `analysis.flops`.
    executed: the same with what is recomputed.
    weights, trainable: how many numbers.
    state: bytes of weights, gradients and the optimiser's memory.
    itemsize: bytes of a number that is computed with.
  """

  model: int | float
  executed: int | float
  weights: int
  trainable: int
  state: int
  itemsize: int


def work_of(
  state: Any, counts: flops.Counts, executed: int | float, rows: int, itemsize: int
) -> Work:
  """Of an abstract `TrainState`, and a batch of so many rows."""
  numbers = lambda tree: sum(math.prod(x.shape) for x in tree.values())
  held = (state.trainable, state.frozen, state.opt_state, state.ema, state.trainable)
  return Work(
    model=flops.total(counts).total / rows,
    executed=executed / rows,
    weights=numbers(state.trainable) + numbers(state.frozen),
    trainable=numbers(state.trainable),
    state=sum(map(_bytes, held)),
    itemsize=itemsize,
  )


def _bytes(tree: Any) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Of one step.

  Attributes:
    chips: in all slices.
    held: bytes of weights, gradients and optimiser on a chip; activations come on top.
    roofline: seconds.
    mfu: model FLOPs utilisation where all overlaps, and where nothing does.
  """

  chips: int
  held: int | float
  roofline: Roofline
  mfu: tuple[float, float]


def estimate(
  work: Work, chip: Chip, shape: Sequence[int], slices: int, rows: int | float
) -> Estimate:
  """A step with `rows` rows on each chip of `slices` slices of so many chips along each dimension.

  Weights are gathered for the forward pass, for what is recomputed and for the backward pass, as
  XLA does it; gradients of trainable ones are scattered once and then summed over slices in
  float32. Memory traffic is that of the gathered weights in the three passes and of the state once
  read and written, without activations.
  """
  n = math.prod(shape)
  passed = work.itemsize * (3 * work.weights + work.trainable) * (n - 1) / n
  communication: dict[tuple[str, ...], float] = {}
  if n > 1:
    communication["fsdp",] = passed / torus_bandwidth(chip, shape)
  if slices > 1:
    summed = 2 * (slices - 1) / slices * 4 * work.trainable / n
    communication["replica",] = summed / chip.network_bandwidth
  moved = 3 * work.itemsize * work.weights + 2 * work.state / n
  roofs = Roofline(rows * work.executed / chip.flops, moved / chip.hbm_bandwidth, communication)
  useful = rows * work.model
  return Estimate(
    chips=n * slices,
    held=work.state / n,
    roofline=roofs,
    mfu=(
      utilisation(chip, useful, roofs.seconds),
      utilisation(chip, useful, roofs.without_overlap),
    ),
  )


def suggest_mesh(work: Work, chip: Chip, chips: int, slices: int = 1) -> Mapping[str, int]:
  """Sizes of mesh axes by which the state takes a third of each chip's memory at most.

  Weights are split no further than that: what is not split is not gathered, and gradients of a few
  trainable weights are cheaper to sum than all weights to gather.

  Args:
    chips: of each slice.
  """
  every = chips * slices
  state = dict(state_bytes=float(work.state), memory=float(chip.hbm))
  return sensible_sizes(every, rows=every, **state, heads=1, slices=slices)
