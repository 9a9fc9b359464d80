"""The text of a compiled program: computations, their instructions, and how often each runs."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BITS = {
  **{"pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16},
  **{"s32": 32, "u32": 32, "s64": 64, "u64": 64, "f4e2m1fn": 4, "f8e4m3fn": 8, "f8e5m2": 8},
  **{"bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128},
}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_TAIL = re.compile(r"^\}(, \w+=.*)?$")  # kernels' attributes have lines that begin with }} too
_NAME = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%([\w.\-]+)")
_BODY = re.compile(r"\bbody=%([\w.\-]+)")
_INDEX = re.compile(r"\bindex=(\d+)")
_DIRECTION = re.compile(r"\bdirection=(\w+)")
_COUNTS = ("s32", "u32", "s64", "u64")
# Attributes that name computations which run where the instruction does.
_CALLS = re.compile(
  r"\b(?:calls|body|condition|branch_computations|true_computation|false_computation)="
  r"(\{[^{}]*\}|%[\w.\-]+)"
)
_CALLED_BY_CALL = re.compile(r"\bto_apply=(%[\w.\-]+)")  # of other instructions: a reduction


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of an instruction's output.

  Attributes:
    dtype: as HLO has it.
    shape: its dimensions on one device.
    space: of memory; 0 is the device's main memory.
  """

  dtype: str
  shape: tuple[int, ...]
  space: int

  @property
  def bytes(self) -> int:
    """Without padding; 0 for tokens and the like."""
    return math.prod(self.shape) * BITS.get(self.dtype, 0) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: without the leading %.
    opcode: such as `fusion` or `all-gather-start`.
    outputs: the arrays of the result, tuples flattened.
    operands: names of instructions of the same computation; of a parameter, its number.
    text: what follows the operands.
    root: whether its result is the computation's.
  """

  name: str
  opcode: str
  outputs: tuple[Array, ...]
  operands: tuple[str, ...]
  text: str
  root: bool

  @property
  def calls(self) -> tuple[str, ...]:
    """Computations that run when this does."""
    pattern = _CALLED_BY_CALL if self.opcode == "call" else _CALLS
    return tuple(n for found in pattern.findall(self.text) for n in _OPERAND.findall(found))


@dataclasses.dataclass(frozen=True)
class Module:
  """A program of one device.

  Attributes:
    computations: instructions by name, in order, by computation.
    entry: the one that the program begins with.
  """

  computations: Mapping[str, Mapping[str, Instruction]]
  entry: str

  def runs(self) -> Iterator[tuple[str, float, bool]]:
    """Each computation's name, how often it runs, and whether it is inside a fusion.

    A computation that is called from several places comes several times. Of a conditional all
    branches count, and the body of a loop of `uncounted` once.
    """
    todo = [(self.entry, 1.0, False)]
    while todo:
      name, times, fused = todo.pop()
      yield name, times, fused
      for instruction in self.computations[name].values():
        inner = fused or instruction.opcode == "fusion"
        turns = self.trips(name, instruction) if instruction.opcode == "while" else 1
        repeated = times * (1 if turns is None else turns)
        todo += [(called, repeated, inner) for called in instruction.calls]

  def uncounted(self) -> list[str]:
    """The loops that do not say how often they run, by name."""
    names = {name for name, _, fused in self.runs() if not fused}
    each = ((name, i) for name in names for i in self.computations[name].values())
    return sorted(i.name for name, i in each if i.opcode == "while" and self.trips(name, i) is None)

  def trips(self, computation: str, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None where the program does not say.

    On CPUs and GPUs it says so in as many words. On TPUs a counter, whose first value and step are
    constants, is compared with another: the loops that XLA makes of a product and the gathering of
    its operand count by twos.
    """
    if known := _TRIPS.search(loop.text):
      return int(known[1])
    (condition,), (body,) = _CONDITION.findall(loop.text), _BODY.findall(loop.text)
    before, after = self.computations[computation].get(loop.operands[0]), self.root(body)
    if before is None or {before.opcode, after.opcode} != {"tuple"}:
      return None
    match self._scalar(condition, self.root(condition).name):
      case ("LT", ("item", place), int(limit)):
        start = self._scalar(computation, before.operands[place])
        match start, self._scalar(body, after.operands[place]):
          case int(), ("add", ("item", same), int(step)) if same == place and step > 0:
            return len(range(start, limit, step))
    return None

  def root(self, computation: str) -> Instruction:
    """What a computation gives back."""
    return next(i for i in self.computations[computation].values() if i.root)

  def _scalar(self, computation: str, name: str, arguments: Sequence[Any] = ()) -> Any:
    """A number, `("item", place)` of the parameter, `(operation, *scalars)`; None: another thing.

    Args:
      arguments: what the parameters of a fusion are.
    """
    made = self.computations[computation].get(name)
    if made is None or [array.shape for array in made.outputs] != [()]:
      return None
    of = lambda: [self._scalar(computation, operand, arguments) for operand in made.operands]
    match made.opcode:
      case "constant":
        return int(made.operands[0]) if made.outputs[0].dtype in _COUNTS else None
      case "parameter":
        return arguments[int(made.operands[0])] if arguments else None
      case "get-tuple-element":
        return "item", *map(int, _INDEX.findall(made.text))
      case "copy" | "bitcast":
        return of()[0]
      case "fusion":
        return self._scalar(made.calls[0], self.root(made.calls[0]).name, of())
      case "add":
        return "add", *of()
      case "compare":
        return *_DIRECTION.findall(made.text), *of()
    return None


def parse(text: str) -> Module:
  """Reads what `compiled.as_text()` gives."""
  computations: dict[str, dict[str, Instruction]] = {}
  entry, lines = "", None
  for line in text.splitlines():
    if head := _HEAD.match(line):
      lines = computations.setdefault(head[2], {})
      entry = head[2] if head[1] else entry
    elif _TAIL.match(line):
      lines = None
    elif lines is not None and (named := _NAME.match(line)):
      lines[named[2]] = _instruction(named, line[named.end() :])
  if not entry:
    raise ValueError("this is not the text of an HLO module: it has no ENTRY computation")
  for name, body in computations.items():
    if not any(instruction.root for instruction in body.values()):
      raise ValueError(f"the computation {name} has no ROOT: its text was not read to the end")
  return Module(computations, entry)


def arrays(text: str) -> tuple[Array, ...]:
  """All arrays of a shape such as `(bf16[2,3]{1,0:T(8,128)S(1)}, u32[])`."""
  found = []
  for dtype, dims, layout in _ARRAY.findall(text):
    space = _SPACE.search(layout)
    shape = tuple(int(d.removeprefix("<=")) for d in dims.split(",") if d)
    found.append(Array(dtype, shape, int(space[1]) if space else 0))
  return tuple(found)


def _instruction(named: re.Match, rest: str) -> Instruction:
  shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  opcode, _, _ = rest[shape_end:].strip().partition("(")
  start = rest.index("(", shape_end)
  end = _closing(rest, start)
  inside = rest[start + 1 : end]
  return Instruction(
    name=named[2],
    opcode=opcode,
    outputs=arrays(rest[:shape_end]),
    operands=tuple(_OPERAND.findall(inside)) if "%" in inside else (inside,),
    text=rest[end + 1 :],
    root=bool(named[1]),
  )


def _closing(text: str, start: int) -> int:
  """The place of the parenthesis that closes the one at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[place], 0)
    if not depth:
      return place
  raise ValueError(f"a parenthesis is not closed: {text[start : start + 80]}")
