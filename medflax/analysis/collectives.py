"""Communication of a compiled program: what is exchanged along which axes of the mesh."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from medflax.analysis.hlo import Instruction, Module

# Bytes that one device sends (and receives) for a result or an operand of one byte, of `n` devices:
# ring algorithms, which no other beats in bytes.
_SENT = {
  "all-gather": lambda n: (n - 1) / n,  # of the result
  "reduce-scatter": lambda n: (n - 1) / n,  # of the operand
  "all-reduce": lambda n: 2 * (n - 1) / n,
  "all-to-all": lambda n: (n - 1) / n,
  "ragged-all-to-all": lambda n: (n - 1) / n,
  "collective-broadcast": lambda n: 1.0,
  "collective-permute": lambda n: 1.0,
}
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
  r"replica_groups=mesh\[([^\]]*)\]"
  r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}"
)
_AXIS = re.compile(r"'(\w+)'(?:=(\d+)|:\((\d+)\)(\d+))?")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")
# Slices of TPUs reach each other through their hosts: what was a collective is sent there.
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}x')


@dataclasses.dataclass(frozen=True)
class Collective:
  """All exchanges of one kind along the same axes, in one run of the program.

  Attributes:
    kind: `all-gather`, `reduce-scatter`, …
    axes: of the mesh.
    times: how often it is done.
    bytes: that each device sends, in all.
  """

  kind: str
  axes: tuple[str, ...]
  times: int | float
  bytes: int | float


def collectives(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
  """What one device exchanges with others, most bytes first.

  Args:
    module: of one device.
    mesh: sizes of the mesh's axes; its devices are numbered row by row, and of several slices
      each is a part of the first axis.
  """
  found: dict[Any, tuple[str, tuple[str, ...], float, float]] = {}
  for name, runs, _ in module.runs():
    by_name = module.computations[name]
    for instruction in by_name.values():
      kind = instruction.opcode.removesuffix("-start")
      if kind == "send" and (sends := _between_slices(instruction, by_name)):
        written, sent = sends
        found[name, instruction.name] = (written, (next(iter(mesh)),), runs, runs * sent)
      if kind not in _SENT:
        continue
      groups = _group(instruction, math.prod(mesh.values()))
      if len(groups) < 2:
        continue
      # TPUs write a reduce-scatter as a fusion of that name around an all-reduce.
      written = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
      sent = _bytes(instruction, kind, by_name) * _SENT[written](len(groups))
      # And what runs beside other instructions stands in each of those, under one channel.
      channel = _CHANNEL.search(instruction.text)
      key = channel[1] if channel else (name, instruction.name)
      if key not in found or found[key][2] < runs:
        found[key] = (written, _axes(groups, mesh), runs, runs * sent)
  totals: dict[tuple[str, tuple[str, ...]], tuple[float, float]] = {}
  for kind, axes, runs, sent in found.values():
    times, total = totals.get((kind, axes), (0.0, 0.0))
    totals[kind, axes] = (times + runs, total + sent)
  rows = [Collective(*key, *total) for key, total in totals.items()]
  return sorted(rows, key=lambda row: -row.bytes)


def _between_slices(
  instruction: Instruction, by_name: Mapping[str, Instruction]
) -> tuple[str, float] | None:
  """The kind and bytes of what a device sends to other slices; None for another transfer."""
  transfer, slices = _TRANSFER.search(instruction.text), _SLICES.search(instruction.text)
  if not (transfer and slices):
    return None
  kind, n = transfer[1].lower().replace("_", "-"), len(_ints(slices[1]))
  parts = n if kind == "all-gather" else 1  # counted by the result, of which this is a part
  share = _SENT.get(kind, _SENT["collective-permute"])  # what goes to one other slice, whole
  return kind, parts * _bytes(instruction, instruction.opcode, by_name) * share(n)


def _bytes(instruction: Instruction, kind: str, by_name: Mapping[str, Instruction]) -> int:
  """Of the operands; of the results where those are larger, as of an all-gather."""
  operands = [by_name[name].outputs for name in instruction.operands if name in by_name]
  whole = sum(array.bytes for outputs in operands for array in outputs)
  if kind != "all-gather":
    return whole
  outputs = sum(array.bytes for array in instruction.outputs)
  return outputs - whole if instruction.opcode.endswith("-start") else outputs


def _group(instruction: Instruction, devices: int) -> Sequence[int]:
  """Devices of the first group that exchange with each other."""
  text = instruction.text
  if pairs := _PAIRS.search(text):
    numbers = [tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)", pairs[0])]
    return max(numbers, key=lambda pair: abs(pair[0] - pair[1]), default=())
  if of_mesh := _MESH.search(text):
    sizes, dims, order, axes = of_mesh.groups()
    return _mesh_group(sizes, _numbers(dims or str(devices), order), axes)
  if listed := _LISTED.search(text):
    return _ints(listed[1])
  if iota := _IOTA.search(text):
    groups, dims, order = iota.groups()
    return _numbers(dims, order).reshape(_ints(groups))[0].tolist()
  if "replica_groups=" in text and "replica_groups={}" not in text:
    raise ValueError(f"groups in a form that is not known: {text[:200]}")
  return range(devices)


def _ints(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]


def _numbers(dims: str, order: str | None) -> Int[np.ndarray, "..."]:
  """Devices counted row by row in an array of these dimensions, which are then reordered."""
  numbers = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
  return numbers.transpose(_ints(order)) if order else numbers


def _mesh_group(sizes: str, numbers: Int[np.ndarray, "..."], axes: str) -> Sequence[int]:
  """The first group of `mesh['a'=2,'b'=4] {'a'}`; 'b':(2)2 is the last half of b's four."""
  mesh = {name: int(size) for name, size, _, _ in _AXIS.findall(sizes)}
  numbers = numbers.reshape(tuple(mesh.values()))
  places: list[Any] = [0] * len(mesh)
  for name, _, before, size in _AXIS.findall(axes):
    whole, place = mesh[name], list(mesh).index(name)
    step = whole // (int(before) * int(size)) if size else 1
    places[place] = slice(0, step * int(size) if size else whole, step)
  return np.atleast_1d(numbers[tuple(places)]).reshape(-1).tolist()


def _axes(group: Sequence[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
  """The axes along which the places of a group's devices differ."""
  places = np.array(np.unravel_index(list(group), tuple(mesh.values())))
  differs = (places != places[:, :1]).any(axis=1)
  return tuple(axis for axis, yes in zip(mesh, differs, strict=True) if yes)
