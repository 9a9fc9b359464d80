"""OpenFlamingo's and Med-Flamingo's checkpoints ⇄ our resampler, gated blocks and decoder.

A published `.pt` holds what was trained: the resampler, the gated blocks and the input
embeddings. The frozen language model and vision tower are files of their own; `combined` gives
them the names they have in the whole model's state dict, so that one table fits all.
"""

import dataclasses
import re
from collections.abc import Mapping as AnyMapping
from typing import Any

import numpy as np

from medflax.pretrained import hf_decoders
from medflax.pretrained.hf_vision import linear, norm
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Mapping, Tensor
from medflax.utils import UserError

LANGUAGE = "lang_encoder."
HEAD_DIM = 64  # of resampler and gated blocks in every published model; no file tells it
TWICE = r"lang_encoder\.(old_decoder_blocks|gated_cross_attn_layers)\..*"
_GATE = re.compile(r"lang_encoder\.(.+)\.(\d+)\.gated_cross_attn_layer\.attn_gate")


def config_from_tensors(
  tensors: AnyMapping[str, Any], *, connector_head_dim: int = HEAD_DIM, head_dim: int = HEAD_DIM
) -> dict[str, Any]:
  """The `connector` and `fusion` sections of a checkpoint, sizes read off its shapes.

  Raises:
    UserError: if it has no resampler or no gated blocks.
  """
  gates = sorted((int(m[2]), m[1]) for m in map(_GATE.fullmatch, tensors) if m)
  if "perceiver.latents" not in tensors or not gates:
    raise UserError("an OpenFlamingo checkpoint has perceiver.* and *.gated_cross_attn_layer.*")
  first, root = gates[0]
  block = f"{LANGUAGE}{root}.{first}.gated_cross_attn_layer."
  fusion = dict(xattn_every=first + 1) | gated_xattn_sizes(tensors, block, head_dim)
  return dict(
    connector=dict(type="perceiver") | perceiver_sizes(tensors, "perceiver.", connector_head_dim),
    fusion=dict(type="gated_xattn") | fusion,
  )


def perceiver_sizes(tensors: AnyMapping[str, Any], prefix: str, head_dim: int) -> dict[str, int]:
  """The fields of a `PerceiverResampler`."""
  latents, width = tensors[f"{prefix}latents"].shape
  layer = re.compile(rf"{re.escape(prefix)}layers\.\d+\.0\.to_q\.weight")
  sizes = dict(
    num_latents=latents,
    depth=sum(layer.fullmatch(key) is not None for key in tensors),
    heads=tensors[f"{prefix}layers.0.0.to_q.weight"].shape[0] // head_dim,
    head_dim=head_dim,
    mlp_ratio=tensors[f"{prefix}layers.0.1.1.weight"].shape[0] // width,
  )
  tables = dict(max_frames="frame_embs", max_media="media_time_embs")
  present = {ours: key for ours, key in tables.items() if f"{prefix}{key}" in tensors}
  return sizes | {ours: tensors[f"{prefix}{key}"].shape[0] for ours, key in present.items()}


def gated_xattn_sizes(tensors: AnyMapping[str, Any], prefix: str, head_dim: int) -> dict[str, int]:
  """The fields of a `GatedXattn`, but for how many layers there are to each."""
  hidden, width = tensors[f"{prefix}ff.1.weight"].shape
  heads = tensors[f"{prefix}attn.to_q.weight"].shape[0] // head_dim
  return dict(heads=heads, head_dim=head_dim, mlp_ratio=hidden // width)


def mapping(model_type: str, section: AnyMapping[str, Any]) -> Mapping:
  """Where each leaf of a model, but for its tower, stands in the whole model's state dict.

  Args:
    model_type: of the language model, a name in `hf_decoders.NAMES`.
    section: of the model, with `connector`, `fusion` and `lm`.
  """
  lm, every = section["lm"], section["fusion"]["xattn_every"]
  layer = hf_decoders.NAMES[model_type].layer
  gated = tuple(range(every - 1, lm["depth"], every))
  block = f"{LANGUAGE}{layer}gated_cross_attn_layer."
  parts = {
    "connector/": perceiver(section["connector"]),
    "lm/groups/xattn/": gated_xattn(section["fusion"], block, gated),
    "lm/": {
      path: dataclasses.replace(tensor, key=wrapped(tensor.key, layer))
      for path, tensor in hf_decoders.mapping(model_type, lm, every).items()
    },
  }
  return {prefix + path: tensor for prefix, part in parts.items() for path, tensor in part.items()}


def ignored(model_type: str, section: AnyMapping[str, Any]) -> str:
  """Regex of the foreign names that are no weights, or stand there a second time."""
  return rf"{TWICE}|{re.escape(LANGUAGE)}({hf_decoders.ignored(model_type, section['lm'])})"


def wrapped(key: str, layer: str) -> str:
  """A language model's name as OpenFlamingo has it: decoder layers are wrapped."""
  prefix = re.escape(layer).replace(re.escape("{}"), r"(\d+|\{\})")
  inner = re.match(prefix, key)
  return f"{LANGUAGE}{inner[0]}decoder_layer.{key[inner.end() :]}" if inner else LANGUAGE + key


def perceiver(
  section: AnyMapping[str, Any], prefix: str = "perceiver.", out: str = "fc"
) -> Mapping:
  """Where each leaf of a `PerceiverResampler` stands.

  RadFM's is the same one, and then the linear map `out`, which stands beside it.
  """
  attention, mlp = f"{prefix}layers.{{}}.0.", f"{prefix}layers.{{}}.1."
  layers = tuple(range(section["depth"]))
  inner = section.get("heads", 8) * section.get("head_dim", 64)
  found = {
    "latents": Tensor(f"{prefix}latents"),
    **norm("norm", f"{prefix}norm"),
    **norm("layers/norm_media", f"{attention}norm_media", layers=layers),
    **norm("layers/norm_latents", f"{attention}norm_latents", layers=layers),
    **_attention("layers/", attention, inner, layers),
    **_mlp("layers/", mlp, layers),
  }
  if section.get("max_frames"):
    found["frame_embedding"] = Tensor(f"{prefix}frame_embs")
  if section.get("max_media"):
    shape = (section["max_media"], 1, -1)
    found["media_time_embedding"] = Tensor(f"{prefix}media_time_embs", shape=shape)
  return found | linear("out", out) if section.get("out_width") else found


def gated_xattn(section: AnyMapping[str, Any], prefix: str, layers: tuple[int, ...]) -> Mapping:
  """Where each leaf of gated blocks stands; those of `layers` are stacked, () is a single one."""
  inner = section["heads"] * section["head_dim"]
  return {
    "attn_gate": Tensor(f"{prefix}attn_gate", layers),
    "mlp_gate": Tensor(f"{prefix}ff_gate", layers),
    **norm("attn_norm", f"{prefix}attn.norm", layers=layers),
    **_attention("", f"{prefix}attn.", inner, layers),
    **_mlp("", f"{prefix}ff.", layers),
  }


def _attention(path: str, key: str, inner: int, layers: tuple[int, ...]) -> Mapping:
  common = dict(layers=layers, axes=(1, 0), shape=(inner, -1))
  return {
    f"{path}query/kernel": Tensor(f"{key}to_q.weight", **common),
    f"{path}key/kernel": Tensor(f"{key}to_kv.weight", rows=(0, inner), **common),
    f"{path}value/kernel": Tensor(f"{key}to_kv.weight", rows=(inner, 2 * inner), **common),
    f"{path}out/kernel": Tensor(f"{key}to_out.weight", **common | dict(shape=(-1, inner))),
  }


def _mlp(path: str, key: str, layers: tuple[int, ...]) -> Mapping:
  return {
    **norm(f"{path}mlp_norm", f"{key}0", layers=layers),
    f"{path}mlp/wi/kernel": Tensor(f"{key}1.weight", layers, axes=(1, 0)),
    f"{path}mlp/wo/kernel": Tensor(f"{key}3.weight", layers, axes=(1, 0)),
  }


def combined(
  trained: AnyMapping[str, LazyTensor], language: AnyMapping[str, LazyTensor], model_type: str
) -> dict[str, LazyTensor]:
  """A published checkpoint with its language model: the whole model's state dict.

  What was trained goes before. The head gets as many rows as the trained embeddings have: those
  of tokens that OpenFlamingo added were saved nowhere and become zero, padding is cut.
  """
  names = hf_decoders.NAMES[model_type]
  # Safetensors keep one name of a tensor that has two, and not always the published one.
  block = lambda m: f"{LANGUAGE}{names.layer.format(m[1])}gated_cross_attn_layer."
  own = {re.sub(r"^lang_encoder\.gated_cross_attn_layers\.(\d+)\.", block, k): k for k in trained}
  tensors = {wrapped(key, names.layer): x for key, x in language.items()}
  tensors |= {name: trained[key] for name, key in own.items()}
  embedding, head = (f"{LANGUAGE}{names.outer[part]}.weight" for part in ("embedding", "head"))
  if head in tensors and embedding in tensors:
    tensors[head] = resized(tensors[head], tensors[embedding].shape[0])
  return tensors


def vocabulary(tensors: AnyMapping[str, LazyTensor], model_type: str) -> dict[str, int]:
  """The language model's `vocab_size`, new tokens included."""
  embedding = hf_decoders.NAMES[model_type].outer["embedding"]
  return dict(vocab_size=tensors[f"{LANGUAGE}{embedding}.weight"].shape[0])


def resized(tensor: LazyTensor, rows: int) -> LazyTensor:
  """The tensor with so many rows: the last ones cut, or zeros after them."""
  if tensor.shape[0] == rows:
    return tensor

  def read() -> np.ndarray:
    x = np.asarray(tensor)[:rows]
    return np.concatenate([x, np.zeros((rows - len(x), *x.shape[1:]), x.dtype)])

  return LazyTensor((rows, *tensor.shape[1:]), tensor.dtype, read)
