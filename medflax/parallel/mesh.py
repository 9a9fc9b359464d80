"""The device mesh: what its axes mean, and their sizes from the config."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from medflax.utils import UserError

# From those that talk least to those that talk most, so that the last are the nearest neighbours.
AXES = ("replica", "data", "fsdp", "sequence", "tensor")
ROWS = ("replica", "data", "fsdp")  # over which the rows of a batch are split


def make_mesh(
  sizes: ml_collections.ConfigDict | Mapping[str, int], devices: Sequence[Any] | None = None
) -> Mesh:
  """A mesh over all devices.

  Args:
    sizes: a size for each of `AXES`; at most one is -1: what the others leave.
    devices: defaults to all devices of all processes.

  Raises:
    UserError: if the sizes do not multiply to the number of devices, or slices of TPUs do not
      divide `replica`.
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
  types = (AxisType.Auto,) * len(AXES)
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
  if shape[0] % slices:
    raise UserError(
      f"config.mesh ({asked}): the devices are {slices} slices, so replica must be a multiple of "
      f"that; set config.mesh.replica={slices}"
    )
  within, between = [shape[0] // slices, *shape[1:]], [slices] + [1] * (len(AXES) - 1)
  grid = mesh_utils.create_hybrid_device_mesh(within, between, devices)
  return Mesh(grid, AXES, axis_types=types)


def sensible_sizes(
  num_devices: int, *, rows: int, state_bytes: float, memory: float, heads: int, slices: int = 1
) -> dict[str, int]:
  """Sizes of a mesh to begin with: what talks least, as long as it fits and has rows to work on.

  Rows are split first. Devices that are left without rows split heads, up to eight of them, then
  tokens. Weights are split over as few as hold them with room for activations; more would only
  gather from farther away.

  Args:
    rows: of a micro-batch.
    state_bytes: of the train state, all devices together.
    memory: bytes of a device, of which the state may take a third.
    heads: of the language model, which `tensor` divides.
    slices: of TPUs, or islands of fast links.
  """
  if num_devices % slices or rows % slices:
    raise UserError(f"{num_devices} devices and {rows} rows must be multiples of {slices} slices")
  each = num_devices // slices
  ways = math.gcd(rows // slices, each)
  tensor = math.gcd(each // ways, heads, 8)
  fits = lambda fsdp: state_bytes / (fsdp * tensor) <= memory / 3
  divisors = [n for n in range(1, ways + 1) if ways % n == 0]
  fsdp = next(filter(fits, divisors), ways)
  sequence = each // ways // tensor
  return dict(replica=slices, data=ways // fsdp, fsdp=fsdp, sequence=sequence, tensor=tensor)
