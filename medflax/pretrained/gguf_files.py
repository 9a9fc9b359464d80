"""llama.cpp's GGUF files as the Hugging Face checkpoints that they were converted from.

Numbers come dequantised to float32. What the conversion changed is changed back: names, the
order of LLaMA's query and key rows, Gemma's norm weights with one added.
"""

import functools
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from medflax.pretrained.lazy import LazyTensor
from medflax.utils import UserError, pick

ARCHITECTURES = {
  "llama": "llama",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "gemma": "gemma",
  "gemma2": "gemma2",
  "gemma3": "gemma3_text",
}
# Fields of config.json by their names after "<architecture>.".
FIELDS = {
  "embedding_length": "hidden_size",
  "block_count": "num_hidden_layers",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
  "attention.key_length": "head_dim",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
  "attention.sliding_window": "sliding_window",
  "context_length": "max_position_embeddings",
  "rope.freq_base": "rope_theta",
}
TOKENIZER = "tokenizer.ggml."  # what a vocabulary's metadata begin with
TOKEN_IDS = {
  "bos_token_id": "bos_token_id",
  "eos_token_id": "eos_token_id",
  "padding_token_id": "pad_token_id",
}
# Models whose attention logits are scaled by width / heads, by architecture and depth; no
# field tells it. All other sizes of Gemma 2 and 3 scale by the head's width.
SCALED_BY_WIDTH = {("gemma2", 46), ("gemma3", 62)}  # 27B
OUTER = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
}
LAYER = {
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "attn_norm": "input_layernorm",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
GEMMA2_LAYER = LAYER | {
  "ffn_norm": "pre_feedforward_layernorm",
  "post_attention_norm": "post_attention_layernorm",
  "post_ffw_norm": "post_feedforward_layernorm",
}
LAYERS = {"gemma2": GEMMA2_LAYER, "gemma3": GEMMA2_LAYER}  # others: LAYER


class GGUF(NamedTuple):
  """One file: config.json and tensors by Hugging Face's names, the tokenizer's metadata."""

  config: dict[str, Any]
  tensors: dict[str, LazyTensor]
  tokenizer: dict[str, Any]


def read_gguf(path: pathlib.Path) -> GGUF:
  """What a GGUF file was converted from; see `gguf_tokenizer` for its vocabulary.

  Raises:
    UserError: if the file is damaged or of another architecture, or `gguf` is not installed.
  """
  metadata, tensors = read_raw(path)
  arch = str(metadata.get("general.architecture", ""))
  model_type = pick(ARCHITECTURES, arch, f"architecture of {path},")
  given = {hf: metadata[f"{arch}.{k}"] for k, hf in FIELDS.items() if f"{arch}.{k}" in metadata}
  tokens = {k.removeprefix(TOKENIZER): x for k, x in metadata.items() if k.startswith(TOKENIZER)}
  ids = {hf: tokens[k] for k, hf in TOKEN_IDS.items() if k in tokens}
  config = {"model_type": model_type, "hidden_act": "silu", **given, **ids}
  if f"{arch}.rope.scaling.type" in metadata or "rope_freqs.weight" in tensors:
    raise UserError(f"{path}: scaled rotary frequencies of a GGUF file are not supported")
  config["vocab_size"] = tensors["token_embd.weight"].shape[0]
  config["tie_word_embeddings"] = "output.weight" not in tensors
  if (arch, config.get("num_hidden_layers")) in SCALED_BY_WIDTH:
    config["query_pre_attn_scalar"] = config["hidden_size"] // config["num_attention_heads"]
  restore = RESTORE.get(arch, lambda name, tensor, config: tensor)
  layer = LAYERS.get(arch, LAYER)
  renamed = {_hf_name(k, layer): restore(k, x, config) for k, x in tensors.items()}
  return GGUF(config, renamed, tokens)


def read_raw(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
  """Metadata and tensors under llama.cpp's own names."""
  try:
    import gguf  # an extra
  except ImportError:
    raise UserError(f"{path}: reading GGUF needs: pip install 'medflax[gguf]'") from None
  try:
    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
  except (ValueError, LookupError, OSError, MemoryError, OverflowError, TypeError) as error:
    raise UserError(f"{path}: is not a GGUF file: {error}") from None

  def lazy(tensor: gguf.ReaderTensor) -> LazyTensor:
    shape = tuple(int(n) for n in reversed(tensor.shape))
    read = lambda: gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    return LazyTensor(shape, np.dtype(np.float32), read)

  return metadata, {tensor.name: lazy(tensor) for tensor in reader.tensors}


def _hf_name(name: str, layer: Mapping[str, str]) -> str:
  """The Hugging Face name of a tensor; a name that is not known stays, to be told as unexpected."""
  module, _, end = name.rpartition(".")
  if block := re.fullmatch(r"blk\.(\d+)\.(.+)", module):
    number, part = block.groups()
    return f"model.layers.{number}.{layer[part]}.{end}" if part in layer else name
  return f"{OUTER[module]}.{end}" if module in OUTER else name


def _llama(name: str, tensor: LazyTensor, config: Mapping[str, Any]) -> LazyTensor:
  """Rotation pairs lie beside each other in GGUF and half a head apart in Hugging Face's."""
  heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
  part = name.removesuffix(".weight").rpartition(".")[2]
  return (
    _changed(tensor, functools.partial(_halves, config[heads[part]])) if part in heads else tensor
  )


def _halves(heads: int, x: Shaped[np.ndarray, "rows d"]) -> Shaped[np.ndarray, "rows d"]:
  return x.reshape(heads, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


def _gemma(name: str, tensor: LazyTensor, _: Mapping[str, Any]) -> LazyTensor:
  return _changed(tensor, lambda x: x - 1) if name.endswith("norm.weight") else tensor


def _changed(tensor: LazyTensor, change: Callable[[np.ndarray], np.ndarray]) -> LazyTensor:
  return LazyTensor(tensor.shape, tensor.dtype, lambda: change(np.asarray(tensor)))


RESTORE: dict[str, Callable[[str, LazyTensor, Mapping[str, Any]], LazyTensor]] = {
  "llama": _llama,
  "gemma": _gemma,
  "gemma2": _gemma,
  "gemma3": _gemma,
}
