"""Bytes that a compiled program reads from and writes to a device's main memory.

Each instruction outside of fusions reads its operands and writes its results; what is fused stays
on the chip. Of an array that is only sliced, or only written in part, the part counts. Arrays that
the compiler placed in on-chip memory cost nothing; bringing them there does.
"""

from collections.abc import Mapping, Sequence

from medflax.analysis.hlo import Array, Instruction, Module

# Instructions that name, group or wait for what others make.
_FREE = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
  *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"),
  *("iota", "rng-get-and-update-state", "send", "recv", "infeed", "outfeed"),
}
_SLICES = ("slice", "dynamic-slice", "gather")
_UPDATES = ("dynamic-update-slice",)


def bytes_moved(module: Module) -> int | float:
  """Of one run of the program on one device."""
  traffic = _Traffic(module)
  return sum(
    runs * sum(map(traffic.of(name), module.computations[name].values()))
    for name, runs, fused in module.runs()
    if not fused
  )


class _Traffic:
  """Reads and writes of instructions, given what the computations they call do with arrays."""

  def __init__(self, module: Module):
    self.module = module

  def of(self, computation: str):
    """The bytes of one run of an instruction of a computation."""
    by_name = self.module.computations[computation]
    return lambda instruction: self._bytes(instruction, by_name)

  def _bytes(self, instruction: Instruction, by_name: Mapping[str, Instruction]) -> int:
    opcode = instruction.opcode.removesuffix("-start")
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
      return 0
    operands = [by_name[name].outputs for name in instruction.operands if name in by_name]
    if opcode == "fusion":
      body = instruction.calls[0]
      reads = sum(self._read(body, i, _main(arrays)) for i, arrays in enumerate(operands))
      return reads + self._written(body, instruction)
    outputs = list(instruction.outputs)
    if opcode != instruction.opcode:  # the operands are handed on beside the results
      for array in (array for arrays in operands for array in arrays):
        outputs.remove(array) if array in outputs else None
    writes = _main(outputs)
    if opcode in _SLICES:
      moved = sum(array.bytes for array in outputs)
      return writes + min(moved, _main(operands[0]))
    if opcode in _UPDATES:
      return 2 * _main(operands[1])
    return writes + sum(map(_main, operands))

  def _read(self, computation: str, index: int, whole: int) -> int:
    """Bytes that a fusion reads of the operand that is its parameter `index`."""
    body = self.module.computations[computation].values()
    parameter = next(i for i in body if i.opcode == "parameter" and i.operands == (str(index),))
    return min(whole, self._read_of(computation, parameter.name, whole))

  def _read_of(self, computation: str, name: str, whole: int) -> int:
    read = 0
    for user in self.module.computations[computation].values():
      if user.opcode == "parameter" or name not in user.operands:
        continue
      place = user.operands.index(name)
      if user.opcode == "bitcast":
        read += self._read_of(computation, user.name, whole)
      elif user.opcode in _SLICES and place == 0:
        read += sum(array.bytes for array in user.outputs)
      elif user.opcode == "fusion":
        read += self._read(user.calls[0], place, whole)
      elif not (user.opcode in _UPDATES and place == 0):
        return whole
    return read

  def _written(self, computation: str, instruction: Instruction) -> int:
    """Bytes that a fusion writes: of an array that is updated in place, the part."""
    by_name = self.module.computations[computation]
    root = self.module.root(computation)
    parts = [by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(parts) != len(instruction.outputs):
      return _main(instruction.outputs)
    return sum(
      min(array.bytes, self._part(computation, part)) * (array.space == 0)
      for array, part in zip(instruction.outputs, parts, strict=True)
    )

  def _part(self, computation: str, made: Instruction) -> int:
    by_name = self.module.computations[computation]
    while made.opcode == "bitcast" and made.operands[0] in by_name:
      made = by_name[made.operands[0]]
    if made.opcode in _UPDATES:
      return sum(array.bytes for array in by_name[made.operands[1]].outputs)
    if made.opcode == "fusion" and len(made.outputs) == 1:
      return self._part(made.calls[0], self.module.root(made.calls[0]))
    return sum(array.bytes for array in made.outputs)


def _main(arrays: Sequence[Array]) -> int:
  """Bytes of those in main memory."""
  return sum(array.bytes for array in arrays if array.space == 0)
