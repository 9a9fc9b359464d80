"""Accelerators by generation: what each can compute, hold and move, as their makers publish it."""

import dataclasses
import re

from medflax.utils import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One JAX device.

  Attributes:
    name: short, as in the name of a topology.
    kind: full match of `device.device_kind`.
    flops: peak of dense bfloat16 products, multiply and add counted apart, per second.
    hbm: bytes that a program may fill.
    hbm_bandwidth: bytes per second.
    link_bandwidth: bytes per second and direction of one link to a neighbour; of a GPU, of all of
      its links through the switch.
    network_bandwidth: bytes per second and direction out of the slice or the host, its share.
    torus: dimensions of the network of neighbours; 0: a switch.
    ring: a dimension of at least this many chips is closed to a ring (TPUs); below, the links of
      its two ends are missing.
  """

  name: str
  kind: str
  flops: int | float
  hbm: int
  hbm_bandwidth: int | float
  link_bandwidth: int | float
  network_bandwidth: int | float
  torus: int = 0
  ring: int = 0


# TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} and jax-ml.github.io/scaling-book/tpus
# (links and network: a pod's over its chips). Memory is what XLA's compiler lets a program have, a
# little below the nominal 32, 16, 95 and 32 GB. Rings: v4 and v5p close dimensions of multiples of
# four chips. GPUs: NVIDIA's data sheets (SXM where there is one), dense rates without sparsity,
# NVLink of one direction; the network is one 400 Gbit/s card a GPU as in DGX H100, 200 for A100.
CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v4", "TPU v4", 275e12, int(31.75 * GIB), 1228e9, 50e9, 6.25e9, torus=3, ring=4),
    Chip("v5e", "TPU v5 lite", 197e12, int(15.75 * GIB), 819e9, 50e9, 3.125e9, torus=2, ring=16),
    Chip("v5p", "TPU v5p?", 459e12, int(95.74 * GIB), 2765e9, 100e9, 6.25e9, torus=3, ring=4),
    Chip("v6e", "TPU v6 lite", 918e12, int(31.25 * GIB), 1638e9, 100e9, 12.5e9, torus=2, ring=16),
    Chip("a100", "NVIDIA A100.*80GB.*", 312e12, 80 * GIB, 2039e9, 300e9, 25e9),
    Chip("a100_40gb", "NVIDIA A100.*40GB.*", 312e12, 40 * GIB, 1555e9, 300e9, 25e9),
    Chip("h100", "NVIDIA H100 80GB HBM3", 989e12, 80 * GIB, 3350e9, 450e9, 50e9),
    Chip("h100_pcie", "NVIDIA H100 PCIe", 756e12, 80 * GIB, 2000e9, 64e9, 50e9),
    Chip("h200", "NVIDIA H200.*", 989e12, 141 * 10**9, 4800e9, 450e9, 50e9),
    Chip("b200", "NVIDIA B200.*", 2250e12, 180 * 10**9, 8000e9, 900e9, 50e9),
    Chip("l40s", "NVIDIA L40S", 362e12, 48 * GIB, 864e9, 32e9, 25e9),
    Chip("l4", "NVIDIA L4", 121e12, 24 * GIB, 300e9, 32e9, 12.5e9),
  )
}


def find_chip(device_kind: str) -> Chip | None:
  """The chip of a device by what it calls itself; None for CPUs and what is not in the table."""
  return next((c for c in CHIPS.values() if re.fullmatch(c.kind, device_kind)), None)


def chip_of(device_kind: str) -> Chip:
  """As `find_chip`; raises UserError for what is not in the table."""
  chip = find_chip(device_kind)
  if chip is None:
    raise UserError(f"no figures for {device_kind!r}; known: {', '.join(CHIPS)}")
  return chip


_SQUARES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
  *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
  "16x16x16",
)
# Slices of TPUs that can be had, by the chips along each dimension.
TOPOLOGIES = {"v4": _CUBES, "v5p": _CUBES, "v5e": _SQUARES, "v6e": _SQUARES}


def check_topology(name: str) -> Chip:
  """The chip of a slice such as `v5e:4x4`; raises UserError for one that cannot be had."""
  generation, _, shape = name.partition(":")
  if generation not in TOPOLOGIES:
    raise UserError(
      f"unknown topology {name!r}: known are {', '.join(TOPOLOGIES)}, as in v5e:4x4 or v5p:4x4x4"
    )
  if shape not in TOPOLOGIES[generation]:
    raise UserError(
      f"unknown topology {name!r}; of {generation} there are {', '.join(TOPOLOGIES[generation])}"
    )
  return CHIPS[generation]
