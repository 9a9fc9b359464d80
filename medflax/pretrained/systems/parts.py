"""What whole systems have in common: parts whose names stand under a prefix, sizes by shapes."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import clip_files, hf_decoders, hf_vision, hugging_face, open_clip
from medflax.pretrained.checkpoint import Checkpoint, Options, under
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


def llama_sizes(tensors: AnyMapping[str, Any], prefix: str) -> dict[str, Any]:
  """A LLaMA's (or Mistral's) config.json by its shapes, with LLaMA's norms and activation.

  Heads have 128 channels unless the buffers of rotary positions tell.

  Args:
    prefix: of the names `embed_tokens.weight` and `layers.…`.
  """
  shape = lambda name: tensors[f"{prefix}{name}"].shape
  vocab_size, width = shape("embed_tokens.weight")
  inverse = f"{prefix}layers.0.self_attn.rotary_emb.inv_freq"
  head_dim = 2 * tensors[inverse].shape[0] if inverse in tensors else LLAMA_HEAD_DIM
  return LLAMA | dict(
    vocab_size=vocab_size,
    hidden_size=width,
    num_hidden_layers=count(tensors, rf"{re.escape(prefix)}layers\.\d+\.input_layernorm\.weight"),
    num_attention_heads=shape("layers.0.self_attn.q_proj.weight")[0] // head_dim,
    num_key_value_heads=shape("layers.0.self_attn.k_proj.weight")[0] // head_dim,
    intermediate_size=shape("layers.0.mlp.gate_proj.weight")[0],
  )


def language(model_type: str, lm: AnyMapping[str, Any], prefix: str, head: str) -> Mapping:
  """The table of a language model whose own files have `model.…` and `lm_head.weight`.

  Args:
    prefix: in place of `model.`.
    head: before `lm_head.weight`.
  """

  def rename(key: str) -> str:
    inner = key.removeprefix("model.")
    return head + key if inner == key else prefix + inner

  return under("lm", renamed(hf_decoders.mapping(model_type, lm), rename))


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


def clip_tower(path: str, **changes: Any) -> Checkpoint:
  """CLIP's tower from a Hugging Face folder or an open_clip file, without the final norm.

  Args:
    changes: of the section; see `hf_vision`.
  """
  file = pathlib.Path(path)
  folder = file.is_dir()
  tower = hugging_face.open_clip_tower(file) if folder else clip_files.open_tower(file, Options())
  section = tower.sections["tower"] | changes
  if section["type"] != "vit":
    raise UserError(f"{path}: CLIP's tower must be a ViT here")
  names = hf_vision if folder else open_clip
  return dataclasses.replace(
    tower, sections={"tower": section}, mapping=under("tower", names.mapping(section))
  )


def clip_embedding(path: str) -> Checkpoint:
  """CLIP's image embedding: the class token, normalised and projected."""
  tensors = clip_tower(path).tensors
  sizes = {"visual_projection.weight": 0, "visual.proj": 1}
  found = [tensors[key].shape[axis] for key, axis in sizes.items() if key in tensors]
  if not found:
    raise UserError(f"{path}: has no projection, {' or '.join(sizes)}")
  return clip_tower(path, output="class", final_norm=True, projection=found[0])


def cut(tower: Checkpoint, depth: int) -> Checkpoint:
  """The tower's first layers, the others' tensors ignored."""
  first = lambda tensor: dataclasses.replace(tensor, layers=tensor.layers[:depth])
  mapping = {path: first(tensor) for path, tensor in tower.mapping.items()}
  names = lambda table: {key for tensor in table.values() for key in tensor.keys}
  rest = sorted(map(re.escape, names(tower.mapping) - names(mapping)))
  return dataclasses.replace(
    tower,
    sections={"tower": tower.sections["tower"] | dict(depth=depth)},
    mapping=mapping,
    ignore="|".join([tower.ignore, *rest]),
  )
