"""LLaVA and LLaVA-Med (Li et al. 2023): CLIP, two linear maps, and LLaMA or Mistral.

Both kinds of folder are read: the original code's, whose config.json is the language model's with
`mm_…` fields, and Hugging Face's, with a config for each part. What stands before the names of a
part differs with the version that wrote them, and is found. An original folder may lack the
tower, which is then CLIP's own.
"""

import dataclasses
import pathlib
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import connectors, hf_decoders, hf_vision
from medflax.pretrained.checkpoint import Checkpoint, Options, read_json, under
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Mapping
from medflax.pretrained.systems import parts
from medflax.utils import UserError, pick

EMBEDDING, HEAD, PATCHES = (
  "embed_tokens.weight",
  "lm_head.weight",
  "embeddings.patch_embedding.weight",
)
# The two linear maps in either kind of folder.
PROJECTORS = (
  ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"),
  ("mm_projector.0", "mm_projector.2"),
)
ORIGINAL_PROJECTOR = "mlp2x_gelu"
OUTPUTS = {"default": "patches", "patch": "patches", "full": "tokens", "cls_patch": "tokens"}


def open_folder(path: pathlib.Path, options: Options) -> Checkpoint:
  """A folder of either kind, with its tokenizer."""
  hf = read_json(path / "config.json")
  model = checkpoint(hf, open_checkpoint(path), vision=options.vision)
  return dataclasses.replace(model, tokenizer=parts.tokenizer_in(path))


def checkpoint(
  hf: AnyMapping[str, Any],
  tensors: dict[str, LazyTensor],
  *,
  vision: str = "",
) -> Checkpoint:
  """What a config.json and its tensors make.

  Args:
    vision: CLIP's folder or open_clip file, if `tensors` has no tower.

  Raises:
    UserError: if a part is missing or of another kind.
  """
  prefix = parts.before(tensors, EMBEDDING)
  kind, lm = _language(hf, tensors, prefix)
  tower = _tower(hf, tensors, vision)
  projector = _projector(tensors)
  sections = tower.sections | dict(
    connector=dict(
      type="mlp",
      hidden=tensors[f"{projector[0]}.weight"].shape[0],
      out_width=tensors[f"{projector[1]}.weight"].shape[0],
      activation=_activation(hf),
      **({} if f"{projector[0]}.bias" in tensors else dict(use_bias=False)),
    ),
    fusion=dict(type="inline"),
    lm=lm,
  )
  head = "" if lm["tie_embeddings"] else parts.before(tensors, HEAD)
  inside = any(key.endswith(PATCHES) for key in tensors)
  origin = dict(
    source="llava",
    config=hf,
    sections=sections,
    model_type=kind,
    names=dict(lm=prefix, head=head, projector=projector),
    tower=parts.before(tensors, PATCHES) if inside else None,
  )
  unused = rf"{tower.ignore}|.*({hf_decoders.ignored(kind, lm)})"
  return Checkpoint(
    sections,
    table(origin) | tower.mapping,
    tensors | tower.tensors,
    unused,
    origin,
  )


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a model that was imported, but for a tower that was a checkpoint of its own."""
  names, sections = origin["names"], origin["sections"]
  inside = origin["tower"] is not None
  tower = hf_vision.mapping(sections["tower"], origin["tower"]) if inside else {}
  bias = sections["connector"].get("use_bias", True)
  return {
    **under("tower", tower),
    **under("connector", connectors.mlp_projector(names["projector"], bias=bias)),
    **parts.language(origin["model_type"], sections["lm"], names["lm"], names["head"]),
  }


def _language(
  hf: AnyMapping[str, Any], tensors: AnyMapping[str, Any], prefix: str
) -> tuple[str, dict[str, Any]]:
  """The family and the section; what config.json leaves to defaults is read off the shapes."""
  own = {"llava": "llama"}.get(hf["model_type"], hf["model_type"].removeprefix("llava_"))
  text = hf.get("text_config") or {**hf, "model_type": own}
  given = {name: value for name, value in text.items() if value is not None}
  given = parts.llama_sizes(tensors, prefix) | given
  return given["model_type"], hf_decoders.config_from_hf(given)


def _tower(
  hf: AnyMapping[str, Any], tensors: AnyMapping[str, LazyTensor], vision: str
) -> Checkpoint:
  """CLIP's patches after the layer that config.json names, the last but one by default."""
  strategy = hf.get("vision_feature_select_strategy", hf.get("mm_vision_select_feature", "patch"))
  changes = dict(final_norm=False, output=pick(OUTPUTS, strategy, "feature of config.json"))
  if any(key.endswith(PATCHES) for key in tensors):
    prefix = parts.before(tensors, PATCHES)
    sizes = parts.clip_sizes(tensors, prefix) | hf.get("vision_config", {})
    section = hf_vision.config_from_hf(sizes) | changes
    mapping = under("tower", hf_vision.mapping(section, prefix))
    tower = Checkpoint({"tower": section}, mapping, {}, hf_vision.unused(section, prefix), {})
  elif vision:
    tower = parts.clip_tower(vision, **changes)
  else:
    raise UserError("the checkpoint has no tower: give --vision as well")
  layer, depth = _layer(hf), tower.sections["tower"]["depth"]
  return parts.cut(tower, layer if layer >= 0 else depth + 1 + layer)


def _layer(hf: AnyMapping[str, Any]) -> int:
  layer = hf.get("vision_feature_layer", hf.get("mm_vision_select_layer", -2))
  if not isinstance(layer, int):
    raise UserError(f"config.json: vision_feature_layer = {layer} is not supported, only one layer")
  return layer


def _projector(tensors: AnyMapping[str, Any]) -> tuple[str, str]:
  for names in PROJECTORS:
    if any(key.endswith(f"{names[0]}.weight") for key in tensors):
      prefix = parts.before(tensors, f"{names[0]}.weight")
      return prefix + names[0], prefix + names[1]
  raise UserError(f"the checkpoint has no projector: *{PROJECTORS[0][0]} or *{PROJECTORS[1][0]}")


def _activation(hf: AnyMapping[str, Any]) -> str:
  kind = hf.get("mm_projector_type", ORIGINAL_PROJECTOR)
  if kind != ORIGINAL_PROJECTOR:
    raise UserError(f"config.json: mm_projector_type = {kind!r} is not supported")
  return pick(
    hf_decoders.ACTIVATIONS, hf.get("projector_hidden_act", "gelu"), "projector_hidden_act"
  )
