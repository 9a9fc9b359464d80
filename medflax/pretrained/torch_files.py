"""PyTorch's `.pt`, `.bin` and `.pth` files, read without running anything that they contain.

A pickle is a program: it may call any function it names. Here its opcodes are interpreted one
by one, the only names it may call are those in `GLOBALS`, all ours, and tensors stay in the
file until they are asked for. The container is PyTorch's zip archive, or the stream of pickles
and storages that was written before PyTorch 1.6.
"""

import dataclasses
import io
import math
import mmap
import pathlib
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from medflax.pretrained.lazy import LazyTensor
from medflax.utils import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
WRAPPERS = ("model_state_dict", "state_dict", "model")
STORAGES = {
  "BoolStorage": np.bool_,
  "ByteStorage": np.uint8,
  "CharStorage": np.int8,
  "ShortStorage": np.int16,
  "IntStorage": np.int32,
  "LongStorage": np.int64,
  "HalfStorage": np.float16,
  "BFloat16Storage": jnp.bfloat16,
  "FloatStorage": np.float32,
  "DoubleStorage": np.float64,
}


@dataclasses.dataclass
class Storage:
  """Numbers of one dtype, `size` of them from byte `offset` (None: not known yet) of a file."""

  path: pathlib.Path
  dtype: np.dtype
  size: int
  offset: int | None = None


def read_torch(path: pathlib.Path) -> dict[str, LazyTensor]:
  """The tensors of a saved state dict by name.

  A training checkpoint's state dict is found under its usual names, its optimiser is left
  alone; the prefix `module.` of data-parallel training is taken off.

  Raises:
    UserError: if the file is damaged, would run code, or holds anything but tensors.
  """
  try:
    content = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
  except UserError:
    raise
  except (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, TypeError, ValueError),
    *(OSError, struct.error, zipfile.BadZipFile),
  ) as error:
    raise UserError(f"{path}: not a PyTorch checkpoint: {error or type(error).__name__}") from None
  return _state_dict(content, path)


def _state_dict(content: Any, path: pathlib.Path) -> dict[str, LazyTensor]:
  while isinstance(content, dict) and (inner := [k for k in WRAPPERS if k in content]):
    content = content[inner[0]]
  if not isinstance(content, dict) or not content:
    raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict")
  for name, value in content.items():
    if not isinstance(name, str) or not isinstance(value, LazyTensor):
      raise UserError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor")
  if all(name.startswith("module.") for name in content):
    content = {name.removeprefix("module."): value for name, value in content.items()}
  return content


def _read_zip(path: pathlib.Path) -> Any:
  with zipfile.ZipFile(path) as archive, path.open("rb") as file:
    listed = archive.infolist()
    entries = {entry.filename.partition("/")[2]: entry for entry in listed}
    if len(entries) < len(listed):
      raise UserError(f"{path}: holds a file twice")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in listed):
      raise UserError(f"{path}: compressed archives are not PyTorch checkpoints")
    if any(entry.file_size > path.stat().st_size for entry in listed):
      raise UserError(f"{path}: claims files larger than itself")
    if "data.pkl" not in entries:
      raise UserError(f"{path}: a zip archive without data.pkl is not a PyTorch checkpoint")
    if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
      raise UserError(f"{path}: was written on a big-endian machine, which is not supported")

    def persistent(kind: str, dtype: np.dtype, key: str, _device: str, size: int) -> Storage:
      entry = entries[f"data/{key}"]
      file.seek(entry.header_offset)
      # The local header's name and extra field may be longer than the central directory's.
      name, extra = struct.unpack("<26xHH", file.read(30))
      if kind != "storage" or not 0 <= size * dtype.itemsize <= entry.file_size:
        raise ValueError(f"storage {key} says {size} numbers but has {entry.file_size} bytes")
      return Storage(path, dtype, size, entry.header_offset + 30 + name + extra)

    return unpickle(io.BytesIO(archive.read(entries["data.pkl"])), persistent, path)


def _read_legacy(path: pathlib.Path) -> Any:
  storages: dict[str, Storage] = {}

  def persistent(
    kind: str, dtype: np.dtype, key: str, _device: str, size: int, view: None
  ) -> Storage:
    if kind != "storage" or view is not None or size < 0:
      raise ValueError("views of storages are not supported")
    return storages.setdefault(key, Storage(path, dtype, size))

  length = path.stat().st_size
  # Mapped, so that a string that claims to be longer than the file takes no memory.
  with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
    if unpickle(file, persistent, path) != LEGACY_MAGIC:
      raise UserError(f"{path}: is a pickle but not a PyTorch checkpoint")
    unpickle(file, persistent, path)  # the protocol's version
    unpickle(file, persistent, path)  # the writer's system: little-endian wherever in use
    content = unpickle(file, persistent, path)
    for key in unpickle(file, persistent, path):
      (size,) = struct.unpack("<q", file.read(8))
      storage, storage_end = storages[key], file.tell() + size * storages[key].dtype.itemsize
      if size != storage.size or storage_end > length:
        raise ValueError(f"storage {key} is cut short")
      storage.offset = file.tell()
      file.seek(storage_end)
  return content


def _rebuild_tensor(
  storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> LazyTensor:
  """A tensor as a view of a storage; requires_grad, hooks and metadata are of no interest."""
  if not (isinstance(storage, Storage) and len(shape) == len(strides)):
    raise ValueError("a tensor without storage or strides")
  size = math.prod(shape)
  span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if size else 0
  if min((offset, *shape, *strides)) < 0 or max(offset + span, size) > storage.size:
    raise ValueError(f"a tensor of shape {shape} outside its storage of {storage.size} numbers")

  def read() -> np.ndarray:
    if storage.offset is None:
      raise UserError(f"{storage.path}: a tensor's storage is missing")
    bytes_each = storage.dtype.itemsize
    start = storage.offset + offset * bytes_each
    x = np.fromfile(storage.path, np.uint8, span * bytes_each, offset=start).view(storage.dtype)
    return np.lib.stride_tricks.as_strided(x, shape, [s * bytes_each for s in strides])

  return LazyTensor(tuple(shape), storage.dtype, read)


GLOBALS: dict[str, Any] = {
  "collections OrderedDict": lambda *items: dict(*items),
  "torch Size": tuple,
  "torch._utils _rebuild_tensor": _rebuild_tensor,
  "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils _rebuild_parameter": lambda data, _requires_grad, _hooks: data,
} | {f"torch {name}": np.dtype(dtype) for name, dtype in STORAGES.items()}


class _Machine:
  """The stack, the marks on it and the memo of a pickle that is being interpreted."""

  def __init__(self, persistent: Callable[..., Storage]):
    self.stack: list[Any] = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}
    self.persistent = persistent

  def pop_to_mark(self) -> list[Any]:
    start = self.marks.pop()
    items, self.stack[start:] = self.stack[start:], []
    return items

  def pop(self, count: int) -> list[Any]:
    if count > len(self.stack):
      raise ValueError("the pickle takes from an empty stack")
    items, self.stack[len(self.stack) - count :] = self.stack[len(self.stack) - count :], []
    return items

  def resolve(self, name: str) -> None:
    if name not in GLOBALS:
      raise UserError(f"would run {name.replace(' ', '.')!r}, which no weights need; not read")
    self.stack.append(GLOBALS[name])

  def call(self) -> None:
    function, arguments = self.pop(2)
    if not callable(function):
      raise TypeError("the pickle calls something that is no function")
    self.stack.append(function(*arguments))

  def extend(self, items: list[Any]) -> None:
    if not isinstance(self.stack[-1], list):
      raise TypeError("the pickle appends to something that is no list")
    self.stack[-1].extend(items)

  def update(self, items: list[Any]) -> None:
    if not isinstance(self.stack[-1], dict):
      raise TypeError("the pickle sets items of something that is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
      if not isinstance(key, str | int):
        raise TypeError(f"the pickle names something by a {type(key).__name__}")
      if key in self.stack[-1]:
        raise ValueError(f"{key!r} stands there twice")
      self.stack[-1][key] = value


LITERALS = {
  *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "INT", "LONG", "FLOAT"),
  *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING"),
}
OPCODES: dict[str, Callable[[_Machine, Any], Any]] = {
  "PROTO": lambda m, _: None,
  "FRAME": lambda m, _: None,
  "NONE": lambda m, _: m.stack.append(None),
  "NEWTRUE": lambda m, _: m.stack.append(True),
  "NEWFALSE": lambda m, _: m.stack.append(False),
  "EMPTY_DICT": lambda m, _: m.stack.append({}),
  "EMPTY_LIST": lambda m, _: m.stack.append([]),
  "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
  "MARK": lambda m, _: m.marks.append(len(m.stack)),
  "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_to_mark())),
  "TUPLE1": lambda m, _: m.stack.append(tuple(m.pop(1))),
  "TUPLE2": lambda m, _: m.stack.append(tuple(m.pop(2))),
  "TUPLE3": lambda m, _: m.stack.append(tuple(m.pop(3))),
  "APPEND": lambda m, _: m.extend(m.pop(1)),
  "APPENDS": lambda m, _: m.extend(m.pop_to_mark()),
  "SETITEM": lambda m, _: m.update(m.pop(2)),
  "SETITEMS": lambda m, _: m.update(m.pop_to_mark()),
  "BINPUT": lambda m, index: m.memo.update({index: m.stack[-1]}),
  "LONG_BINPUT": lambda m, index: m.memo.update({index: m.stack[-1]}),
  "MEMOIZE": lambda m, _: m.memo.update({len(m.memo): m.stack[-1]}),
  "BINGET": lambda m, index: m.stack.append(m.memo[index]),
  "LONG_BINGET": lambda m, index: m.stack.append(m.memo[index]),
  "GLOBAL": lambda m, name: m.resolve(name),
  "STACK_GLOBAL": lambda m, _: m.resolve(" ".join(m.pop(2))),
  "REDUCE": lambda m, _: m.call(),
  "BINPERSID": lambda m, _: m.stack.append(m.persistent(*m.pop(1)[0])),
  "BUILD": lambda m, _: m.pop(1),  # attributes of a state dict, such as its modules' versions
}


def unpickle(
  file: io.BytesIO | mmap.mmap, persistent: Callable[..., Storage], path: pathlib.Path
) -> Any:
  """What one pickle says, made of dicts, lists, tuples, numbers, strings and lazy tensors.

  Args:
    persistent: makes a storage of the fields of its persistent identity.

  Raises:
    UserError: for a name or an opcode that weights do not need.
    ValueError, TypeError, LookupError: for a pickle that is damaged.
  """
  machine = _Machine(persistent)
  for opcode, argument, _ in pickletools.genops(file):
    if opcode.name == "STOP":
      return machine.pop(1)[0]
    if opcode.name in LITERALS:
      machine.stack.append(argument)
    elif opcode.name in OPCODES:
      try:
        OPCODES[opcode.name](machine, argument)
      except UserError as error:
        raise UserError(f"{path}: {error}") from None
    else:
      raise UserError(f"{path}: has the pickle opcode {opcode.name}, which no weights need")
  raise EOFError("the pickle has no end")
