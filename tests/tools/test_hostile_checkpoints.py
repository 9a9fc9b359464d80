"""Files that lie or attack: one clear line, nothing is run, and no memory is taken."""

import json
import pathlib
import pickle
import resource
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from medflax.tools import import_weights
from tests.pretrained import torch_writer as torch

MIB = 1 << 20
HF = dict(
  model_type="llama",
  vocab_size=4,
  hidden_size=4,
  num_hidden_layers=1,
  num_attention_heads=1,
  intermediate_size=4,
  rms_norm_eps=1e-6,
  hidden_act="silu",
)
GOOD = np.ones((2, 2), np.float32)


class Attack:
  def __reduce__(self):
    return (pathlib.Path.touch, (pathlib.Path("ran"),))


def plain_pickle(folder):
  (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Attack()}))


def pickle_in_an_archive(folder):
  attack = b"cos\nsystem\n" + torch.text("touch ran") + b"\x85R"
  torch.archive(folder / "pytorch_model.bin", torch.state_dict({"x": attack}), {})


def bomb(folder):
  zeros = {"0": np.zeros(64 * MIB, np.uint8)}
  program = torch.state_dict({"x": torch.tensor("0", GOOD, size=16 * MIB)})
  torch.archive(folder / "pytorch_model.bin", program, zeros, zipfile.ZIP_DEFLATED)


def storage_of_a_tebibyte(folder):
  lie = torch.tensor("0", GOOD, size=(1 << 31) - 1, shape=(1 << 30,), strides=(1,))
  torch.archive(folder / "pytorch_model.bin", torch.state_dict({"x": lie}), {"0": GOOD})


def program_of_gibibytes(folder):
  """The directory of the archive says that its program has 4 GiB."""
  path = torch.save(folder / "pytorch_model.bin", {"x": GOOD})
  data = bytearray(path.read_bytes())
  entry = data.index(b"PK\x01\x02")
  data[entry + 20 : entry + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
  path.write_bytes(data)


def string_of_gibibytes(folder):
  program = b"\x80\x02X" + struct.pack("<I", 0xFFFFFFF0) + b"abc"
  (folder / "pytorch_model.bin").write_bytes(program)


def keys_of_keys(folder):
  """A tuple of tuples of … whose hash, or name, takes 2^50 steps."""
  nested = b"K\x01" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(50))
  torch.archive(
    folder / "pytorch_model.bin", b"}" + nested + torch.tensor("0", GOOD) + b"s", {"0": GOOD}
  )


def key_twice(folder):
  item = torch.text("x") + torch.tensor("0", GOOD)
  torch.archive(folder / "pytorch_model.bin", b"}(" + item + item + b"u", {"0": GOOD})


def file_twice(folder):
  path = torch.save(folder / "pytorch_model.bin", {"x": GOOD})
  with zipfile.ZipFile(path, "a") as archive:
    archive.writestr("other/data.pkl", b"\x80\x02}.")


def write_header(folder, header, length=None, data=16):
  raw = header if isinstance(header, bytes) else json.dumps(header).encode()
  content = struct.pack("<Q", length or len(raw)) + raw + bytes(data)
  (folder / "model.safetensors").write_bytes(content)


def header_of_an_exbibyte(folder):
  write_header(folder, b"{}", 1 << 60)


def tensor_of_an_exbibyte(folder):
  write_header(folder, {"x": dict(dtype="U8", shape=[1 << 60], data_offsets=[0, 1 << 60])})


def sizes_that_overflow(folder):
  write_header(folder, {"x": dict(dtype="F32", shape=[1 << 62, 4], data_offsets=[0, 16])})


def truncated(folder):
  path = folder / "model.safetensors"
  safetensors.numpy.save_file({"x": GOOD}, path)
  path.write_bytes(path.read_bytes()[:-1])


def another_dtype(folder):
  write_header(folder, {"x": dict(dtype="F16", shape=[4], data_offsets=[0, 16])})


def dtype_that_numpy_lacks(folder):
  write_header(folder, {"x": dict(dtype="F8_E4M3", shape=[16], data_offsets=[0, 16])})


def name_twice(folder):
  one = b'"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}'
  write_header(folder, b"{" + one + b", " + one + b"}")


def integers(folder):
  safetensors.numpy.save_file({"model.norm.weight": np.ones(4, int)}, folder / "model.safetensors")


def write_index(folder, weight_map):
  safetensors.numpy.save_file({"x": GOOD}, folder / "model-0.safetensors")
  text = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
  (folder / "model.safetensors.index.json").write_text(text)


def shard_outside(folder):
  write_index(folder, {"x": "../secret.safetensors"})


def shard_above(folder):
  write_index(folder, {"x": ".."})


def shard_at_the_root(folder):
  write_index(folder, {"x": "/etc/passwd"})


def index_of_itself(folder):
  write_index(folder, {"x": "model.safetensors.index.json"})


def index_entry_twice(folder):
  write_index(folder, '{"weight_map": {"x": "model-0.safetensors", "x": "model-0.safetensors"}}')


def write_config(folder, **fields):
  (folder / "config.json").write_text(json.dumps(HF | fields))
  safetensors.numpy.save_file({"x": GOOD}, folder / "model.safetensors")


def billions_of_layers(folder):
  write_config(folder, num_hidden_layers=10**9)


def width_in_words(folder):
  write_config(folder, hidden_size="wide", head_dim=None)


def no_width(folder):
  write_config(folder)
  fields = {name: value for name, value in HF.items() if name != "hidden_size"}
  (folder / "config.json").write_text(json.dumps(fields))


def deep_json(folder):
  (folder / "config.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (plain_pickle, "would run"),
    (pickle_in_an_archive, "would run 'os.system'"),
    (bomb, "compressed archives are not PyTorch checkpoints"),
    (storage_of_a_tebibyte, "says 2147483647 numbers but has 16 bytes"),
    (program_of_gibibytes, "claims files larger than itself"),
    (string_of_gibibytes, "not a PyTorch checkpoint"),
    (keys_of_keys, "the pickle names something by a tuple"),
    (key_twice, "'x' stands there twice"),
    (file_twice, "holds a file twice"),
    (header_of_an_exbibyte, "is not a safetensors file"),
    (tensor_of_an_exbibyte, "is not a safetensors file"),
    (sizes_that_overflow, "is not a safetensors file"),
    (truncated, "is not a safetensors file"),
    (another_dtype, "is not a safetensors file"),
    (dtype_that_numpy_lacks, "x has the unsupported dtype F8_E4M3"),
    (name_twice, "'x' stands there twice"),
    (integers, "no floating-point numbers: model.norm.weight int64"),
    (shard_outside, "shards must lie beside the index"),
    (shard_above, "shards must lie beside the index"),
    (shard_at_the_root, "shards must lie beside the index"),
    (index_of_itself, "shards must lie beside the index"),
    (index_entry_twice, "'x' stands there twice"),
    (billions_of_layers, "num_hidden_layers = 1000000000, but there are 1 tensors"),
    (width_in_words, "has a field that no such model has"),
    (no_width, "lacks the field 'hidden_size'"),
    (deep_json, "config.json cannot be read"),
  ],
)
def test_one_line_and_nothing_else(tmp_path, monkeypatch, capsys, make, message):
  folder = tmp_path / "model"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(HF))
  safetensors.numpy.save_file({"x": GOOD}, tmp_path / "secret.safetensors")
  make(folder)
  monkeypatch.chdir(tmp_path)
  resident = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
  before = resident()
  tracemalloc.start()
  try:
    status = import_weights.main(["hugging_face", str(folder), "--to", str(tmp_path / "ours")])
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  told = capsys.readouterr().err
  assert status == 2
  assert message in told and told.startswith("error: ") and told.count("\n") == 1
  assert peak < 64 * MIB and resident() - before < 64 * MIB
  assert not (tmp_path / "ran").exists() and not (tmp_path / "ours").exists()
