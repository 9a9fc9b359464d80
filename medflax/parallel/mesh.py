"""The device mesh: axes `data`, `fsdp` and `tensor` with sizes from the config."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from jax.sharding import AxisType, Mesh

from medflax.utils import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(
  sizes: ml_collections.ConfigDict | Mapping[str, int], devices: Sequence[Any] | None = None
) -> Mesh:
  """A mesh over all devices.

  Args:
    sizes: a size for each of `AXES`; at most one is -1: what the others leave.
    devices: defaults to all devices of all processes.

  Raises:
    UserError: if the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = [sizes[axis] for axis in AXES]
  asked = " × ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True))
  if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
    raise UserError(f"config.mesh ({asked}): sizes are at least 1, and at most one is -1")
  if -1 in shape:
    shape[shape.index(-1)] = len(devices) // math.prod(s for s in shape if s != -1)
  if math.prod(shape) != len(devices):
    raise UserError(
      f"config.mesh ({asked}) does not fit {len(devices)} device{'s' * (len(devices) > 1)}; "
      "the sizes must multiply to that number (-1: what the others leave)"
    )
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
