"""llama.cpp's files become the checkpoints that they were made of."""

import numpy as np
import pytest

from medflax.pretrained import hf_decoders
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.gguf_files import read_gguf
from medflax.pretrained.mapping import to_ours, to_theirs
from medflax.tools.import_weights import abstract_leaves
from medflax.utils import UserError

gguf = pytest.importorskip("gguf")

HEADS, KV_HEADS, HEAD_DIM, WIDTH = 4, 2, 8, 32
INTEGERS = {
  "embedding_length": WIDTH,
  "block_count": 2,
  "feed_forward_length": 64,
  "attention.head_count": HEADS,
  "attention.head_count_kv": KV_HEADS,
  "attention.key_length": HEAD_DIM,
  "attention.sliding_window": 4,
}


def write(path, arch, tensors, quantise=(), **integers):
  writer = gguf.GGUFWriter(path, arch)
  for name, value in (INTEGERS | integers).items():
    writer.add_uint32(f"{arch}.{name}", value)
  writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-6)
  for name, array in tensors.items():
    if name in quantise:
      q8 = gguf.GGMLQuantizationType.Q8_0
      writer.add_tensor(name, gguf.quantize(array, q8), raw_dtype=q8)
    else:
      writer.add_tensor(name, np.ascontiguousarray(array))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def converted(arch, key, array):
  """A tensor as llama.cpp's conversion writes it."""
  for part, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
    if arch == "llama" and f"{part}.weight" in key:  # halves of a head to pairs
      return array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
  return array + 1 if arch == "gemma3" and key.endswith("norm.weight") else array


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen2"])
def test_a_conversion_is_undone(tmp_path, arch):
  hf = dict(
    model_type={"gemma3": "gemma3_text"}.get(arch, arch),
    vocab_size=16,
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    intermediate_size=64,
    sliding_window=4,
    rms_norm_eps=1e-6,
    hidden_act="silu",
    tie_word_embeddings=True,
  )
  section = hf_decoders.config_from_hf(hf)
  mapping = hf_decoders.mapping(hf["model_type"], section)
  leaves = {p.removeprefix("lm/"): x for p, x in abstract_leaves({"lm": section}).items()}
  rng = np.random.default_rng(0)
  theirs = to_theirs(
    mapping, {p: rng.integers(-8, 8, x.shape).astype(np.float32) for p, x in leaves.items()}
  )
  config, tensors, _ = read_gguf(write(tmp_path / "x.gguf", arch, names(arch, theirs)))
  assert hf_decoders.config_from_hf(config) == section | dict(norm_eps=np.float32(1e-6))
  ours = to_ours(mapping, leaves, tensors)
  for key, array in to_theirs(mapping, ours).items():
    np.testing.assert_array_equal(array, theirs[key], err_msg=key)


def names(arch, theirs):
  """Hugging Face's tensors under llama.cpp's names, converted."""
  parts = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm" if arch == "gemma3" else "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
  }
  out = {}
  for key, array in theirs.items():
    module, _, end = key.rpartition(".")
    layer, inner = "", module
    if module.startswith("model.layers."):
      number, _, inner = module.removeprefix("model.layers.").partition(".")
      layer = f"blk.{number}."
    out[f"{layer}{parts[inner]}.{end}"] = converted(arch, key, array)
  return out


def test_numbers_are_dequantised(tmp_path):
  array = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
  tensors = {"token_embd.weight": array, "output_norm.weight": array[0], "new.weight": array}
  path = write(tmp_path / "x.gguf", "llama", tensors, quantise={"token_embd.weight"})
  read = open_checkpoint(path)
  assert {name: tensor.shape for name, tensor in read.items()} == {
    "model.embed_tokens.weight": (2, 32),
    "model.norm.weight": (32,),
    "new.weight": (2, 32),  # to be told as unexpected
  }
  np.testing.assert_array_equal(np.asarray(read["model.norm.weight"]), array[0])
  error = np.abs(np.asarray(read["model.embed_tokens.weight"]) - array).max()
  assert 0 < error <= 1 / 127


def test_logits_of_the_largest_gemmas_are_scaled_by_the_width(tmp_path):
  tensors = {"token_embd.weight": np.zeros((2, WIDTH), np.float32)}
  small = read_gguf(write(tmp_path / "4b.gguf", "gemma3", tensors, block_count=34)).config
  assert "query_pre_attn_scalar" not in small  # transformers' default, the head's 256
  large = read_gguf(write(tmp_path / "27b.gguf", "gemma3", tensors, block_count=62)).config
  assert large["query_pre_attn_scalar"] == WIDTH // HEADS


def test_files_that_are_none(tmp_path):
  path = write(tmp_path / "x.gguf", "rwkv6", {"token_embd.weight": np.zeros((2, 32), np.float32)})
  with pytest.raises(UserError, match=r"architecture of .* 'rwkv6'"):
    read_gguf(path)
  data = path.read_bytes()
  for length in (0, 3, 20, 100, len(data) - 1):
    path.write_bytes(data[:length])
    with pytest.raises(UserError, match="not a GGUF file"):
      read_gguf(path)
  path.write_bytes(data[:8] + (1 << 60).to_bytes(8, "little") + data[16:])  # so many tensors
  with pytest.raises(UserError, match="is not a GGUF file"):
    read_gguf(path)
