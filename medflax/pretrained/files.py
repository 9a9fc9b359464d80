"""Checkpoint files of every format as a mapping from names to lazily read tensors."""

import json
import math
import os
import pathlib
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from medflax.pretrained.gguf_files import read_gguf
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.torch_files import read_torch
from medflax.utils import UserError, pick, write_atomic

SAFETENSORS_DTYPES = {
  "BOOL": np.bool_,
  "U8": np.uint8,
  "I8": np.int8,
  "I16": np.int16,
  "I32": np.int32,
  "I64": np.int64,
  "F16": np.float16,
  "BF16": jnp.bfloat16,
  "F32": np.float32,
  "F64": np.float64,
}
SHARD_BYTES = 5_000_000_000
PART_BYTES = 1 << 26  # in memory at a time where a part of a tensor is read
# What a folder is read from, the first of these that it has.
IN_FOLDER = (
  "model.safetensors.index.json",
  "model.safetensors",
  "adapter_model.safetensors",
  "pytorch_model.bin.index.json",
  "pytorch_model.bin",
)


def open_checkpoint(path: str | os.PathLike) -> dict[str, LazyTensor]:
  """The tensors of a checkpoint by name; nothing but names and shapes is read until needed.

  Args:
    path: a `.safetensors`, `.pt`, `.pth`, `.bin` or `.gguf` file, the `.index.json` of a sharded
      one, or a Hugging Face model folder.

  Raises:
    UserError: if there is none, or it is damaged or hostile.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    found = [path / name for name in IN_FOLDER if (path / name).exists()]
    if not found:
      raise UserError(f"{path}: has none of {', '.join(IN_FOLDER)}")
    path = found[0]
  if not path.exists():
    raise UserError(f"{path}: there is no such file")
  return pick(READERS, path.suffix, f"kind of checkpoint, {path},")(path)


def read_safetensors(path: pathlib.Path) -> dict[str, LazyTensor]:
  """The tensors of one safetensors file.

  Raises:
    UserError: if the file is damaged or has numbers that NumPy lacks.
  """
  try:
    with safetensors.safe_open(path, "numpy"):  # the reference reader has no doubts about it
      pass
    start, header = _header(path)
  except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
    raise UserError(f"{path}: is not a safetensors file: {error}") from None
  tensors = {}
  for name, entry in header.items():
    if name != "__metadata__":
      if entry["dtype"] not in SAFETENSORS_DTYPES:
        raise UserError(f"{path}: {name} has the unsupported dtype {entry['dtype']}")
      dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
      offset, shape = start + entry["data_offsets"][0], tuple(entry["shape"])
      tensors[name] = _in_file(path, offset, shape, dtype)
  return tensors


def _header(path: pathlib.Path) -> tuple[int, dict[str, Any]]:
  """Where the tensors begin, and what the file says about them."""
  with path.open("rb") as file:
    (length,) = struct.unpack("<Q", file.read(8))
    return 8 + length, json.loads(file.read(length), object_pairs_hook=unique)


def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
  """A JSON object without names that stand there twice, one of which would be lost.

  Raises:
    ValueError: naming one.
  """
  found = dict(items)
  if len(found) < len(items):
    names = [name for name, _ in items]
    raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands there twice")
  return found


def _in_file(
  path: pathlib.Path, offset: int, shape: tuple[int, ...], dtype: np.dtype
) -> LazyTensor:
  """Numbers that lie as they are from byte `offset`; the file is open while it is read alone."""

  def load(start: int, inner: tuple[int, ...]) -> np.ndarray:
    count = math.prod(inner) * dtype.itemsize
    return np.fromfile(path, np.uint8, count, offset=offset + start).view(dtype).reshape(inner)

  def part(index: Any) -> np.ndarray:
    """An index of the first axis is read alone, a slice of it in pieces, then cut."""
    if index == ():
      return load(0, shape)
    first, *rest = index if isinstance(index, tuple) else (index,)
    row = math.prod(shape[1:]) * dtype.itemsize
    if isinstance(first, int):
      return load(first * row, shape[1:])[tuple(rest)]
    start, stop, _ = first.indices(shape[0])
    inner = np.broadcast_to(np.empty((), dtype), shape[1:])[tuple(rest)].shape
    out, step = np.empty((stop - start, *inner), dtype), max(1, PART_BYTES // max(row, 1))
    for i in range(start, stop, step):
      rows = load(i * row, (min(step, stop - i), *shape[1:]))
      out[i - start : i - start + step] = rows[(slice(None), *rest)]
    return out

  return LazyTensor(shape, dtype, lambda: load(0, shape), part)


def read_index(path: pathlib.Path) -> dict[str, LazyTensor]:
  """The tensors of all shards that a Hugging Face `.index.json` names.

  Raises:
    UserError: if the index is damaged, or a shard or a tensor in it is missing.
  """
  try:
    text = path.read_text(encoding="utf-8")
    weight_map = json.loads(text, object_pairs_hook=unique)["weight_map"]
    shards = sorted(set(weight_map.values()))
    if any(not _is_shard(name) for name in shards):
      raise ValueError("shards must lie beside the index")
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
    raise UserError(f"{path}: is not the index of a sharded checkpoint: {error}") from None
  opened = {name: open_checkpoint(path.parent / name) for name in shards}
  if lost := [name for name, shard in weight_map.items() if name not in opened[shard]]:
    raise UserError(f"{path}: {lost[0]} is not in {weight_map[lost[0]]}, where the index puts it")
  return {name: opened[shard][name] for name, shard in weight_map.items()}


def _is_shard(name: str) -> bool:
  """A bare file name, of no folder ("..") and of no index, which might name itself."""
  path = pathlib.PurePath(name)
  return path.name == name and path.suffix in (".safetensors", ".bin")


READERS: dict[str, Callable[[pathlib.Path], dict[str, LazyTensor]]] = {
  ".safetensors": read_safetensors,
  ".pt": read_torch,
  ".pth": read_torch,
  ".bin": read_torch,
  ".json": read_index,
  ".gguf": lambda path: read_gguf(path)[1],
}


def write_safetensors(
  path: str | os.PathLike,
  specs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  pieces: Callable[[str], Iterable[np.ndarray]],
  metadata: Mapping[str, str] | None = None,
) -> Iterator[int]:
  """Writes a safetensors file piece by piece, so that it may exceed the memory.

  The file appears under its name when it is complete.

  Args:
    specs: shape and dtype of each tensor.
    pieces: the values of a tensor, cut along its first axis.
    metadata: kept in the file's header.

  Yields:
    Bytes written so far, after each piece.

  Raises:
    ValueError: if the pieces of a tensor do not add up to it.
  """
  path = pathlib.Path(path)
  codes = {np.dtype(dtype): code for code, dtype in SAFETENSORS_DTYPES.items()}
  # The format wants tensors aligned: widest numbers first, as the reference writer has them.
  order = sorted(specs, key=lambda name: (-specs[name][1].itemsize, name))
  header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
  end = 0
  for name in order:
    shape, dtype = specs[name]
    start, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [start, end]}
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(struct.pack("<Q", len(text)) + text)
      for name in order:
        for piece in pieces(name):
          file.write(np.ascontiguousarray(piece, specs[name][1]).view(np.uint8).data)
          yield file.tell() - 8 - len(text)
        if file.tell() != 8 + len(text) + header[name]["data_offsets"][1]:
          raise ValueError(f"{name}: pieces of another size than {specs[name][0]}")
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise


def write_shards(
  folder: pathlib.Path,
  specs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  pieces: Callable[[str], Iterable[np.ndarray]],
  shard_bytes: int = SHARD_BYTES,
) -> Iterator[int]:
  """Writes `model.safetensors`, or what exceeds `shard_bytes` in shards with their index.

  A tensor is in one shard, in the order of `specs`. Arguments and yields are those of
  `write_safetensors`; the index appears when all shards are complete.
  """
  bytes_of = lambda name: math.prod(specs[name][0]) * specs[name][1].itemsize
  shards: list[list[str]] = [[]]
  for name in specs:
    if shards[-1] and sum(map(bytes_of, [*shards[-1], name])) > shard_bytes:
      shards.append([])
    shards[-1].append(name)
  count, done, weight_map = len(shards), 0, {}
  for i, names in enumerate(shards, start=1):
    file = f"model-{i:05}-of-{count:05}.safetensors" if count > 1 else "model.safetensors"
    part = {name: specs[name] for name in names}
    for written in write_safetensors(folder / file, part, pieces, metadata={"format": "pt"}):
      yield done + written
    done += sum(map(bytes_of, names))
    weight_map |= dict.fromkeys(names, file)
  if count > 1:
    index = {"metadata": {"total_size": done}, "weight_map": weight_map}
    write_atomic(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
