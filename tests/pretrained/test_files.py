"""Checkpoint files of every format, whole, damaged and hostile."""

import json
import pathlib
import pickle
import struct
import tempfile
import zipfile

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given

from medflax.pretrained import files
from medflax.pretrained.files import open_checkpoint, write_safetensors
from medflax.utils import UserError
from tests.pretrained import torch_writer as torch

WEIGHTS = {
  "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b": np.asarray([1.5, -2], np.float16),
  "steps": np.asarray([1 << 40], np.int64),
}


def assert_read(path, expected):
  tensors = open_checkpoint(path)
  assert list(tensors) == list(expected)
  for name, array in expected.items():
    assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(np.asarray(tensors[name]), array)


def refuses(path, message):
  with pytest.raises(UserError, match=message) as caught:
    open_checkpoint(path)
  assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("save", [torch.save, torch.save_legacy])
def test_pytorch_files(tmp_path, save):
  assert_read(save(tmp_path / "x.pt", WEIGHTS), WEIGHTS)


def test_a_view_of_a_shared_storage(tmp_path):
  whole = np.arange(12, dtype=np.float32)
  view = torch.tensor("0", whole, offset=1, shape=(2, 3), strides=(1, 4))
  path = torch.archive(tmp_path / "x.bin", torch.state_dict({"v": view}), {"0": whole})
  assert_read(path, {"v": np.asarray([[1, 5, 9], [2, 6, 10]], np.float32)})


def test_a_training_checkpoint_holds_its_state_dict_within(tmp_path):
  array = WEIGHTS["a.weight"]
  inner = torch.state_dict({"module.a.weight": torch.tensor("0", array)})
  program = torch.state_dict({"epoch": b"K\x03", "model_state_dict": inner})
  assert_read(torch.archive(tmp_path / "x.pt", program, {"0": array}), {"a.weight": array})


@given(tensors=st.dictionaries(st.text(max_size=5), hnp.arrays("float32", hnp.array_shapes())))
def test_pytorch_files_of_any_shape(tensors):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "x.pt"
    wrapped = {f"w.{name}": array for name, array in tensors.items()}
    if wrapped:
      assert_read(torch.save(path, wrapped), wrapped)
    else:
      refuses(torch.save(path, wrapped), "not a state dict")


CALL_SYSTEM = b"cos\nsystem\n" + torch.text("touch ran") + b"\x85R"


@pytest.mark.parametrize(
  ("program", "message"),
  [
    (CALL_SYSTEM, r"would run 'os\.system'"),
    (b"cbuiltins\neval\n" + torch.text("1") + b"\x85R", r"would run 'builtins\.eval'"),
    (torch.text("os") + torch.text("system") + b"\x93", r"would run 'os\.system'"),
    (torch.state_dict({"x": CALL_SYSTEM}), r"would run 'os\.system'"),
    (b"(" + torch.text("touch ran") + b"ios\nsystem\n", "opcode INST"),
    (b"}r\xff\xff\xff\x7f", "holds a dict"),  # a memo of 2^31 entries, were it a list
    (b"\x8e" + struct.pack("<Q", 1 << 60) + b"x", "not a PyTorch checkpoint"),  # 2^60 bytes
    (b"]" + torch.text("x") + b"R", "calls something that is no function"),
    (b"R", "empty stack"),
    (b"u", "not a PyTorch checkpoint"),
    (b"K\x01", "holds a int"),
    (torch.state_dict({"x": b"K\x01"}), "'x' is a int, not a tensor"),
  ],
)
def test_a_pickle_that_is_no_state_dict(tmp_path, monkeypatch, program, message):
  monkeypatch.chdir(tmp_path)
  refuses(torch.archive(tmp_path / "x.pt", program, {}), message)
  assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
  "lie",
  [
    dict(offset=1),
    dict(shape=(3, 3), strides=(3, 1)),
    dict(shape=(1 << 30,), strides=(0,)),
    dict(shape=(2, 3), strides=(-3, 1)),
    dict(shape=(2, 3), strides=(1,)),
    dict(size=1 << 30),
    dict(size=-1),
  ],
)
def test_tensors_stay_inside_their_storage(tmp_path, lie):
  array = WEIGHTS["a.weight"]
  program = torch.state_dict({"x": torch.tensor("0", array, **lie)})
  refuses(torch.archive(tmp_path / "x.pt", program, {"0": array}), "not a PyTorch checkpoint")


class Attack:
  def __reduce__(self):
    return (pathlib.Path.touch, (pathlib.Path("ran"),))


def test_a_plain_pickle_is_not_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "x.pt").write_bytes(pickle.dumps(Attack()))
  refuses(tmp_path / "x.pt", "would run|opcode")
  assert not (tmp_path / "ran").exists()


def test_compressed_archives_may_be_bombs(tmp_path):
  program = torch.state_dict({"x": torch.tensor("0", WEIGHTS["b"])})
  path = torch.archive(tmp_path / "x.pt", program, {"0": WEIGHTS["b"]}, zipfile.ZIP_DEFLATED)
  refuses(path, "compressed")


@pytest.mark.parametrize("save", [torch.save, torch.save_legacy])
def test_pytorch_files_cut_short(tmp_path, save):
  path = save(tmp_path / "x.pt", WEIGHTS)
  data = path.read_bytes()
  for length in range(0, len(data), 7):
    path.write_bytes(data[:length])
    refuses(path, "x.pt")


def test_safetensors_in_any_dtype(tmp_path):
  weights = WEIGHTS | {"bf": np.asarray([1, 2], jnp.bfloat16), "s": np.asarray(2.0, np.float32)}
  path = tmp_path / "x.safetensors"
  safetensors.numpy.save_file(weights, path)
  for name, tensor in open_checkpoint(path).items():
    assert (tensor.shape, tensor.dtype) == (weights[name].shape, weights[name].dtype)
    np.testing.assert_array_equal(np.asarray(tensor), weights[name])


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("part_bytes", [1, 40, 1 << 20])
def test_a_part_of_a_tensor(tmp_path, monkeypatch, dtype, part_bytes):
  monkeypatch.setattr(files, "PART_BYTES", part_bytes)
  x = np.arange(60).astype(dtype).reshape(5, 3, 4)
  safetensors.numpy.save_file({"x": x, "s": np.asarray(x[1, 0, 0])}, tmp_path / "x.safetensors")
  lazy = open_checkpoint(tmp_path / "x.safetensors")
  for index in np.index_exp[3], np.index_exp[2:], np.index_exp[1:4, :, 2:], np.index_exp[:, 1], ():
    np.testing.assert_array_equal(lazy["x"][index], x[index])
  np.testing.assert_array_equal(lazy["s"][()], x[1, 0, 0])
  torch.save(tmp_path / "x.pt", {"x": x.astype(np.float32)})
  np.testing.assert_array_equal(open_checkpoint(tmp_path / "x.pt")["x"][1:3, 1], x[1:3, 1])


@pytest.mark.parametrize(
  ("header", "length"),
  [
    (b"{}", 1 << 60),
    (b'{"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}', None),
    (b'{"x": {"dtype": "F32", "shape": [1152921504606846976], "data_offsets": [0, 4]}}', None),
    (b'{"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}', None),
    (b'{"x": {"dtype": "F16", "shape": [1], "data_offsets": [0, 4]}}', None),
    (b"not json", None),
  ],
)
def test_hostile_safetensors(tmp_path, header, length):
  path = tmp_path / "x.safetensors"
  path.write_bytes(struct.pack("<Q", length or len(header)) + header + bytes(4))
  refuses(path, "is not a safetensors file")


def test_numbers_that_numpy_lacks(tmp_path):
  header = b'{"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}'
  path = tmp_path / "x.safetensors"
  path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
  refuses(path, "x has the unsupported dtype F8_E4M3")


def shard(folder, weights, *, weight_map=None):
  names = {name: f"model-{i}.safetensors" for i, name in enumerate(weights)}
  for name, file in names.items():
    safetensors.numpy.save_file({name: weights[name]}, folder / file)
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": names | (weight_map or {})}))


def test_a_folder_of_shards(tmp_path):
  shard(tmp_path, WEIGHTS)
  assert_read(tmp_path, WEIGHTS)
  assert_read(tmp_path / "model.safetensors.index.json", WEIGHTS)


@pytest.mark.parametrize(
  ("weight_map", "message"),
  [
    ({"lost": "model-0.safetensors"}, "lost is not in model-0.safetensors"),
    ({"x": "../other.safetensors"}, "must lie beside"),
    ({"x": "model-9.safetensors"}, "there is no such file"),
    ({"x": 3}, "not the index"),
  ],
)
def test_an_index_that_does_not_hold(tmp_path, weight_map, message):
  shard(tmp_path, WEIGHTS, weight_map=weight_map)
  with pytest.raises(UserError, match=message):
    open_checkpoint(tmp_path)


def test_a_path_that_is_no_checkpoint(tmp_path):
  with pytest.raises(UserError, match="has none of model"):
    open_checkpoint(tmp_path)
  with pytest.raises(UserError, match="no such file"):
    open_checkpoint(tmp_path / "x.pt")
  (tmp_path / "x.txt").touch()
  with pytest.raises(UserError, match="unknown kind of checkpoint"):
    open_checkpoint(tmp_path / "x.txt")


def test_files_are_written_piece_by_piece(tmp_path):
  path = tmp_path / "x.safetensors"
  stacked = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "n": np.asarray(3, jnp.bfloat16)}
  specs = {name: (x.shape, x.dtype) for name, x in stacked.items()}
  written = list(write_safetensors(path, specs, lambda name: list(np.atleast_1d(stacked[name]))))
  assert written == [16, 32, 48, 50]
  np.testing.assert_array_equal(np.asarray(open_checkpoint(path)["w"]), stacked["w"])
  assert safetensors.numpy.load_file(path)["n"] == 3


def test_a_file_that_is_not_complete_does_not_appear(tmp_path):
  specs = {"w": ((3, 4), np.dtype(np.float32))}
  with pytest.raises(ValueError, match="w: pieces of another size"):
    list(write_safetensors(tmp_path / "x", specs, lambda _: [np.zeros((2, 4), np.float32)]))
  assert not list(tmp_path.iterdir())


def test_every_reader_is_tested():
  assert set(files.READERS) == {".safetensors", ".pt", ".pth", ".bin", ".json", ".gguf"}
