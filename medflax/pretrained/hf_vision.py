"""Hugging Face's vision towers ⇄ `medflax.models.vision.vit`: CLIP, SigLIP, ViT, DINOv2.

`config_from_hf` gives the whole tower, all layers and the final norm, that returns patch tokens.
Other features are other fields of the section, for example

    section | dict(final_norm=False)                          # CLIP's `last_hidden_state`
    section | dict(final_norm=False, depth=section["depth"] - 1)            # hidden_states[-2]
    section | dict(output="class", projection=hf["projection_dim"])         # CLIP's embedding
    section | dict(attention_pool=True)                       # SigLIP's pooled output

Another `inputs.image.size` interpolates the position table, whose own size is `table`.
"""

import re
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained.mapping import Mapping, Tensor
from medflax.utils import UserError, pick

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "quick_gelu": "quick_gelu",
  "relu": "relu",
  "silu": "silu",
}

_CLIP_LAYER = {
  "attn_norm": "layer_norm1",
  "query": "self_attn.q_proj",
  "key": "self_attn.k_proj",
  "value": "self_attn.v_proj",
  "out": "self_attn.out_proj",
  "mlp_norm": "layer_norm2",
  "mlp/wi": "mlp.fc1",
  "mlp/wo": "mlp.fc2",
}
_CLIP = {
  "class_token": "embeddings.class_embedding",
  "position": "embeddings.position_embedding.weight",
  "patch": "embeddings.patch_embedding",
  "pre_norm": "pre_layrnorm",  # sic
  "final_norm": "post_layernorm",
  "layer": "encoder.layers.{}.",
}
_VIT_LAYER = {
  "query": "attention.attention.query",
  "key": "attention.attention.key",
  "value": "attention.attention.value",
  "out": "attention.output.dense",
}
_VIT = {
  "class_token": "embeddings.cls_token",
  "position": "embeddings.position_embeddings",
  "patch": "embeddings.patch_embeddings.projection",
  "final_norm": "layernorm",
  "layer": "encoder.layer.{}.",
  "projection": "pooler.dense",
}
# `marks`: fields by which a section is known to be of the family; `names`: of the tower's own
# leaves, `layer` of a block's; `prefix`: what stands before the names in the family's own files.
FAMILIES = {
  "clip_vision_model": dict(
    marks=dict(class_token=True, pre_norm=True),
    norm=dict(mean=CLIP_MEAN, std=CLIP_STD),
    names=_CLIP | {"projection": "../visual_projection"},
    layer=_CLIP_LAYER,
    prefix="vision_model.",
  ),
  "siglip_vision_model": dict(
    marks=dict(class_token=False, patch_bias=True),
    norm=dict(mean=(0.5,) * 3, std=(0.5,) * 3),
    names=_CLIP,
    layer=_CLIP_LAYER,
    prefix="vision_model.",
  ),
  "dinov2": dict(
    marks=dict(class_token=True, patch_bias=True, layer_scale=1.0),
    norm=dict(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    names=_VIT,
    layer=_VIT_LAYER
    | {
      "attn_norm": "norm1",
      "mlp_norm": "norm2",
      "mlp/wi": "mlp.fc1",
      "mlp/wo": "mlp.fc2",
      "attn_scale": "layer_scale1.lambda1",
      "mlp_scale": "layer_scale2.lambda1",
    },
    prefix="",
  ),
  "vit": dict(
    marks=dict(class_token=True, patch_bias=True),
    norm=dict(mean=(0.5,) * 3, std=(0.5,) * 3),
    names=_VIT,
    layer=_VIT_LAYER
    | {
      "attn_norm": "layernorm_before",
      "mlp_norm": "layernorm_after",
      "mlp/wi": "intermediate.dense",
      "mlp/wo": "output.dense",
    },
    prefix="",
  ),
}


def config_from_hf(hf: AnyMapping[str, Any]) -> dict[str, Any]:
  """Our tower section from a `config.json`, that of a whole model with a `vision_config` too.

  Sizes that the patch does not divide are cut, as the convolution cuts them; pixels are
  normalised as the family's processors do, which `config.json` does not tell.

  Raises:
    UserError: for another model type, or a feed-forward layer that is not an MLP.
  """
  hf = hf.get("vision_config", hf)
  family = pick(FAMILIES, hf["model_type"], "vision model_type")
  if hf.get("use_swiglu_ffn"):
    raise UserError("use_swiglu_ffn: of DINOv2, the sizes with a gated MLP are not supported")
  patch, channels = pair(hf["patch_size"]), hf.get("num_channels", 3)
  size = tuple(s // p * p for s, p in zip(pair(hf["image_size"]), patch, strict=True))
  width = hf["hidden_size"]
  return dict(
    type="vit",
    width=width,
    depth=hf["num_hidden_layers"],
    heads=hf["num_attention_heads"],
    mlp_width=hf.get("intermediate_size") or int(width * hf["mlp_ratio"]),
    inputs=dict(image=dict(size=size, table=size, patch=patch, channels=channels)),
    activation=pick(ACTIVATIONS, hf["hidden_act"], "hidden_act"),
    norm_eps=hf["layer_norm_eps"],
    qkv_bias=hf.get("qkv_bias", True),
    **family["marks"],
    **family["norm"],
  )


def mapping(section: AnyMapping[str, Any], prefix: str | None = None) -> Mapping:
  """Where each leaf of a `ViT` with these fields stands in the checkpoint.

  Args:
    section: from `config_from_hf`, with or without changes of what it returns.
    prefix: of the foreign names; None: the family's own. LLaVA and Gemma 3 have
      "model.vision_tower.", their older files "vision_tower.vision_model.".
  """
  family = _family(section)
  prefix = family["prefix"] if prefix is None else prefix
  names = {ours: _key(prefix, theirs) for ours, theirs in family["names"].items()}
  width, [(kind, spec)] = section["width"], section["inputs"].items()
  pixels = (width, spec["channels"], *spec["patch"])
  out = {
    f"position_{kind}": Tensor(names["position"], shape=_table(section, spec, names)),
    f"patch_{kind}/kernel": Tensor(f"{names['patch']}.weight", axes=CONV, shape=pixels),
  }
  if section.get("patch_bias"):
    out[f"patch_{kind}/bias"] = Tensor(f"{names['patch']}.bias")
  if section.get("class_token"):
    shape = (1, 1, width) if names["class_token"].endswith("cls_token") else ()
    out["class_token"] = Tensor(names["class_token"], shape=shape)
  for part in ("pre_norm", "final_norm"):
    if section.get(part, part == "final_norm"):
      out |= norm(part, names[part])
  if section.get("projection"):
    out |= linear("projection", names["projection"], bias=section.get("projection_tanh", False))
  if section.get("attention_pool"):
    out |= probe_pool(width, f"{prefix}head.")
  layers = tuple(range(section["depth"]))
  return out | blocks(section, names["layer"], family["layer"], layers)


def unused(section: AnyMapping[str, Any], prefix: str | None = None) -> str:
  """Regex of the foreign names that a tower with these fields leaves out, for `ignore`.

  These are the layers after the last, the final norm and the heads, if the section has none,
  CLIP's text side, and what is no weight.
  """
  family = _family(section)
  prefix = family["prefix"] if prefix is None else prefix
  names = {ours: re.escape(_key(prefix, theirs)) for ours, theirs in family["names"].items()}
  layer, _, end = _key(prefix, family["names"]["layer"]).partition("{}")
  used = "|".join(map(str, range(section["depth"])))
  after = rf"{re.escape(layer)}(?!({used}){re.escape(end)})\d+{re.escape(end)}"
  out = [after, ".*position_ids", ".*mask_token", "text_model", "text_projection", "logit_scale"]
  if not section.get("final_norm", True):
    out.append(names["final_norm"])
  if not section.get("attention_pool"):
    out.append(rf"{re.escape(prefix)}head\.")
  if not section.get("projection") and "projection" in names:
    out.append(names["projection"])
  return "|".join(f"{name}.*" for name in out)


CONV = (2, 3, 1, 0)  # torch's [out, in, h, w] to our [h · w · in, out]


def linear(path: str, key: str, *, bias: bool = True, **kwargs: Any) -> Mapping:
  """A torch Linear, [out, in]; further arguments are `Tensor`'s."""
  out = {f"{path}/kernel": Tensor(f"{key}.weight", axes=(1, 0), **kwargs)}
  kwargs.pop("shape", None)
  return out | ({f"{path}/bias": Tensor(f"{key}.bias", **kwargs)} if bias else {})


def norm(path: str, key: str, **kwargs: Any) -> Mapping:
  """A LayerNorm with scale and bias."""
  return {
    f"{path}/scale": Tensor(f"{key}.weight", **kwargs),
    f"{path}/bias": Tensor(f"{key}.bias", **kwargs),
  }


def projection(path: str, key: str, width: int, *, bias: bool = True, **kwargs: Any) -> Mapping:
  """A torch Linear from `width` to heads; our leaves are [width, heads, head_dim]."""
  out = {f"{path}/kernel": Tensor(f"{key}.weight", axes=(1, 0), shape=(-1, width), **kwargs)}
  return out | ({f"{path}/bias": Tensor(f"{key}.bias", shape=(-1,), **kwargs)} if bias else {})


def fused_attention(path: str, key: str, width: int, heads_width: int, **kwargs: Any) -> Mapping:
  """A torch MultiheadAttention: queries, keys, values stacked in `in_proj`, then `out_proj`."""
  out = linear(f"{path}out", f"{key}out_proj", shape=(width, heads_width), **kwargs)
  for i, name in enumerate(("query", "key", "value")):
    rows = (i * heads_width, (i + 1) * heads_width)
    out[f"{path}{name}/kernel"] = Tensor(
      f"{key}in_proj_weight", rows=rows, axes=(1, 0), shape=(heads_width, width), **kwargs
    )
    out[f"{path}{name}/bias"] = Tensor(
      f"{key}in_proj_bias", rows=rows, shape=(heads_width,), **kwargs
    )
  return out


def blocks(
  section: AnyMapping[str, Any], key: str, names: AnyMapping[str, str], layers: tuple[int, ...]
) -> Mapping:
  """The stacked `ViTBlock`s of a section, by a family's names of the parts of a layer."""
  out, width, stacked = {}, section["width"], dict(layers=layers)
  for ours, theirs in names.items():
    path, theirs = f"blocks/{ours}", f"{key}{theirs}"
    if ours in ("query", "key", "value"):
      bias = section.get("qkv_bias", True)
      out |= projection(path, theirs, width, bias=bias, **stacked)
    elif ours.endswith("_norm"):
      out |= norm(path, theirs, **stacked)
    elif ours.endswith("_scale"):
      out[path] = Tensor(theirs, **stacked)
    else:
      shape = dict(shape=(width, -1)) if ours == "out" else {}
      out |= linear(path, theirs, **shape, **stacked)
  return out


def probe_pool(width: int, key: str) -> Mapping:
  """SigLIP's pooling head."""
  return {
    "pool/probe": Tensor(f"{key}probe", shape=(1, 1, width)),
    **fused_attention("pool/", f"{key}attention.", width, width),
    **norm("pool/mlp_norm", f"{key}layernorm"),
    **linear("pool/mlp/wi", f"{key}mlp.fc1"),
    **linear("pool/mlp/wo", f"{key}mlp.fc2"),
  }


def _family(section: AnyMapping[str, Any]) -> dict[str, Any]:
  fits = lambda marks: all(section.get(name, False) == value for name, value in marks.items())
  for family in FAMILIES.values():
    if fits(family["marks"]):
      return family
  raise UserError(f"no tower of Hugging Face's is known with these fields: {dict(section)}")


def _table(
  section: AnyMapping[str, Any], spec: AnyMapping[str, Any], names: AnyMapping[str, str]
) -> tuple[int, ...]:
  """ViT's and DINOv2's tables have an axis of one before tokens and width."""
  return () if names["position"].endswith(".weight") else (1, -1, section["width"])


def _key(prefix: str, name: str) -> str:
  """A name under the prefix; "../" stands beside the tower, not in it."""
  if name.startswith("../"):
    return prefix.removesuffix("vision_model.") + name.removeprefix("../")
  return prefix + name


def pair(size: int | list | tuple) -> tuple[int, int]:
  """A size that a config gives as one number for both sides, or as two."""
  return (size, size) if isinstance(size, int) else (size[0], size[1])
