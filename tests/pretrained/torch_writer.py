"""Writes what `torch.save` writes, opcode by opcode, and what an attacker would."""

import io
import struct
import zipfile

import numpy as np

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}
PROTOCOL, STOP = b"\x80\x02", b"."
EMPTY = b"ccollections\nOrderedDict\n)R"


def text(value):
  data = value.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def integers(values):
  return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values) + b"t"


def tensor(key, array, *, offset=0, strides=None, shape=None, size=None, view=b""):
  """A tensor's opcodes; the keyword arguments let it lie."""
  strides = strides or [s // array.itemsize for s in array.strides]
  storage = b"".join(
    [
      *(b"(", text("storage"), f"ctorch\n{STORAGES[array.dtype.name]}\n".encode(), text(key)),
      *(text("cpu"), b"J", struct.pack("<i", array.size if size is None else size), view, b"tQ"),
    ]
  )
  position = b"J" + struct.pack("<i", offset) + integers(shape or array.shape) + integers(strides)
  return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + position + b"\x89" + EMPTY + b"tR"


def state_dict(entries):
  """A dict's opcodes from those of its values; with attributes, as state dicts have."""
  items = b"".join(text(name) + value for name, value in entries.items())
  return EMPTY + b"(" + items + b"u}" + text("_metadata") + EMPTY + b"sb"


def archive(path, program, storages, compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", compression) as file:
    file.writestr("archive/data.pkl", PROTOCOL + program + STOP)
    file.writestr("archive/byteorder", "little")
    for key, array in storages.items():
      file.writestr(f"archive/data/{key}", np.ascontiguousarray(array).tobytes())
  return path


def save(path, tensors):
  """A state dict in PyTorch's zip format."""
  storages = {str(i): array for i, array in enumerate(tensors.values())}
  entries = {name: tensor(str(i), array) for i, (name, array) in enumerate(tensors.items())}
  return archive(path, state_dict(entries), storages)


def save_legacy(path, tensors):
  """A state dict as PyTorch wrote it before 1.6: pickles and storages in one stream."""
  entries = {n: tensor(str(i), x, view=b"N") for i, (n, x) in enumerate(tensors.items())}
  magic = b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
  keys = b"](" + b"".join(text(str(i)) for i in range(len(tensors))) + b"e"
  out = io.BytesIO()
  for program in (magic, b"M\xe9\x03", b"}", state_dict(entries), keys):
    out.write(PROTOCOL + program + STOP)
  for array in tensors.values():
    out.write(struct.pack("<q", array.size) + np.ascontiguousarray(array).tobytes())
  path.write_bytes(out.getvalue())
  return path
