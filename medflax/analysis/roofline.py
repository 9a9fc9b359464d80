"""The least time that a program can take on a chip, by what it computes, moves and sends.

Williams et al. 2009, "Roofline: an insightful visual performance model", with communication as a
third roof.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from medflax.analysis.collectives import Collective
from medflax.analysis.hardware import Chip


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds on one chip at the rates its maker publishes.

  Attributes:
    compute: of the operations that are executed.
    memory: of the bytes moved to and from main memory.
    communication: of what is sent, by the axes of the mesh; these share no links.
  """

  compute: int | float
  memory: int | float
  communication: Mapping[tuple[str, ...], float]

  @property
  def seconds(self) -> int | float:
    """If all three overlap perfectly: what no program of these costs can beat."""
    return max(self.compute, self.memory, *self.communication.values())

  @property
  def without_overlap(self) -> int | float:
    """If nothing that is sent hides behind computing."""
    return max(self.compute, self.memory) + sum(self.communication.values())

  @property
  def bound(self) -> str:
    """What takes longest."""
    times = {"compute": self.compute, "memory": self.memory}
    times |= {f"{'+'.join(axes)} axis": s for axes, s in self.communication.items()}
    return max(times, key=times.__getitem__)


def roofline(
  chip: Chip, flops: int | float, moved: int | float, sent: Sequence[Collective], mesh: Mesh
) -> Roofline:
  """The roofs of a program.

  Args:
    chip: that each device is.
    flops: executed by one device.
    moved: bytes to and from its main memory.
    sent: what it exchanges with others.
    mesh: of devices that know where they are.
  """
  times: dict[tuple[str, ...], float] = {}
  for one in sent:
    rate = bandwidth(chip, mesh, one.axes)
    times[one.axes] = times.get(one.axes, 0.0) + one.bytes / rate
  return Roofline(flops / chip.flops, moved / chip.hbm_bandwidth, times)


def bandwidth(chip: Chip, mesh: Mesh, axes: Sequence[str]) -> int | float:
  """Bytes per second that a device can send to those that differ from it along `axes` alone.

  Among neighbours in a torus that is the link of each dimension that the devices lie along, both
  ways round where it is a ring. Between slices or hosts the network's share counts.
  """
  index = tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)
  group = mesh.devices[index].reshape(-1).tolist()
  if len({_island(chip, device) for device in group}) > 1:
    return chip.network_bandwidth
  if not chip.torus:
    return chip.link_bandwidth
  places = np.array([device.coords for device in group])[:, : chip.torus]
  return torus_bandwidth(chip, [len(set(column)) for column in places.T])


def torus_bandwidth(chip: Chip, sizes: Sequence[int]) -> int | float:
  """Bytes per second that a chip can send to a block of so many chips along each dimension."""
  links = sum((2 if size >= chip.ring else 1) for size in sizes if size > 1)
  return chip.link_bandwidth * max(links, 1)


def _island(chip: Chip, device: Any) -> int:
  """Devices of one number reach each other without the network: a slice of TPUs, a host's GPUs."""
  return getattr(device, "slice_index", 0) if chip.torus else device.process_index


def utilisation(chip: Chip, flops: int | float, seconds: int | float) -> int | float:
  """Share of the chip's peak that `flops` of one device in `seconds` are."""
  return flops / (chip.flops * seconds)
