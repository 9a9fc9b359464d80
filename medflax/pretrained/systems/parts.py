"""What the tables of whole systems have in common: parts whose names stand under a prefix."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import clip_files, hf_decoders, hugging_face
from medflax.pretrained.checkpoint import Checkpoint, Options
from medflax.pretrained.mapping import Mapping
from medflax.utils import UserError

# What LLaMA's files do not tell; every published one has these.
LLAMA_HEAD_DIM = 128
LLAMA = dict(model_type="llama", hidden_act="silu", rms_norm_eps=1e-6)


def renamed(mapping: Mapping, rename: Callable[[str], str]) -> Mapping:
  """The table of the same leaves under other foreign names."""
  new = lambda tensor: dataclasses.replace(tensor, key=rename(tensor.key))
  return {path: new(tensor) for path, tensor in mapping.items()}


def before(names: Iterable[str], suffix: str) -> str:
  """What stands before `suffix` in the one name that ends with it.

  Raises:
    UserError: if none does, or several.
  """
  found = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
  if len(found) != 1:
    raise UserError(f"the checkpoint has {len(found)} tensors *{suffix}; one is needed")
  return found[0]


def count(names: Iterable[str], pattern: str) -> int:
  """How many names match, all of each: one for every layer."""
  regex = re.compile(pattern)
  return sum(regex.fullmatch(name) is not None for name in names)


def llama_section(tensors: AnyMapping[str, Any], prefix: str) -> dict[str, Any]:
  """The `lm` section of a LLaMA by its shapes; heads have 128 channels unless buffers tell.

  Args:
    prefix: of the names `embed_tokens.weight` and `layers.…`.
  """
  shape = lambda name: tensors[f"{prefix}{name}"].shape
  vocab_size, width = shape("embed_tokens.weight")
  inverse = f"{prefix}layers.0.self_attn.rotary_emb.inv_freq"
  head_dim = 2 * tensors[inverse].shape[0] if inverse in tensors else LLAMA_HEAD_DIM
  hf = LLAMA | dict(
    vocab_size=vocab_size,
    hidden_size=width,
    num_hidden_layers=count(tensors, rf"{re.escape(prefix)}layers\.\d+\.input_layernorm\.weight"),
    num_attention_heads=shape("layers.0.self_attn.q_proj.weight")[0] // head_dim,
    num_key_value_heads=shape("layers.0.self_attn.k_proj.weight")[0] // head_dim,
    intermediate_size=shape("layers.0.mlp.gate_proj.weight")[0],
  )
  return hf_decoders.config_from_hf(hf)


def clip_sizes(tensors: AnyMapping[str, Any], prefix: str) -> dict[str, Any]:
  """A CLIP tower's `vision_config` by its shapes; heads have 64 channels, as OpenAI's.

  Args:
    prefix: of the names `embeddings.…` and `encoder.…`.
  """
  shape = lambda name: tensors[f"{prefix}{name}"].shape
  width, channels, patch, _ = shape("embeddings.patch_embedding.weight")
  tokens, _ = shape("embeddings.position_embedding.weight")
  layer = rf"{re.escape(prefix)}encoder\.layers\.\d+\.layer_norm1\.weight"
  return dict(
    model_type="clip_vision_model",
    hidden_size=width,
    intermediate_size=shape("encoder.layers.0.mlp.fc1.weight")[0],
    num_hidden_layers=count(tensors, layer),
    num_attention_heads=max(width // 64, 1),
    num_channels=channels,
    patch_size=patch,
    image_size=patch * round((tokens - 1) ** 0.5),
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
  )


def tokenizer_in(path: pathlib.Path) -> dict[str, bytes]:
  """A folder's tokenizer files by name; none beside a file by itself."""
  files = [path / name for name in hugging_face.TOKENIZER_FILES if (path / name).is_file()]
  return {file.name: file.read_bytes() for file in files}


def clip_tower(path: str) -> Checkpoint:
  """CLIP's tower from a Hugging Face folder or an open_clip file."""
  clip = pathlib.Path(path)
  if clip.is_dir():
    return hugging_face.open_clip_tower(clip)
  return clip_files.open_tower(clip, Options())
