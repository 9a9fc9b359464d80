"""MedVInT-TD and -TE (Zhang et al. 2023, PMC-VQA): one flat state dict each.

TD: a tower, learned queries that decode it (or the mean of its tokens), and LLaMA that reads the
result before the text. TE: a tower, learned queries, LLaMA as an encoder, and a block over both
that predicts masked tokens. Their towers are PMC-CLIP's ResNet-50 or CLIP's ViT.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import connectors, hf_decoders, hf_vision, open_clip
from medflax.pretrained.checkpoint import Checkpoint, Options, under
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.hf_vision import IMAGENET_MEAN, IMAGENET_STD, fused_attention, linear, norm
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.leaves import abstract_leaves
from medflax.pretrained.mapping import Mapping, Tensor
from medflax.pretrained.systems import lora
from medflax.pretrained.systems.parts import before, clip_sizes, count, language, llama_sizes
from medflax.utils import UserError

Sections = dict[str, dict[str, Any]]
Tensors = AnyMapping[str, Any]

DROPOUT = 0.1  # of the published LoRAs, as they were trained
MASK_ID = 2  # LLaMA's </s> stands for a masked token


@dataclasses.dataclass(frozen=True)
class Untold:
  """What no shape tells; the defaults are the published models'.

  Attributes:
    image_size: of PMC-CLIP's images.
    clip_heads: of CLIP's tower; 0 for 64 channels each.
    query_heads: of the query decoder.
    fused_heads: of TE's last block.
    alpha: of the LoRA.
  """

  image_size: int = 512
  clip_heads: int = 0
  query_heads: int = 8
  fused_heads: int = 8
  alpha: float = 32


TD, TE = Untold(), Untold(query_heads=4)
# What a tower is called in each model, CLIP's and the ResNet's.
TD_TOWERS = {"clip": "vision_model.vision_model.", "resnet": "vision_model."}
TE_TOWERS = {"clip": "image_encoder.vision_model.", "resnet": "image_encoder.visual."}
TE_UNUSED = (
  r"llama_model\..*|qformer_decoder_(layer|norm)\..*|positional_embedding|text_projection"
  r"|logit_scale|.*\.attnpool\..*"
)
# What is no weight, and what three stages or a tower without final norm leave out.
UNUSED = (
  r".*\.post_layernorm\.(weight|bias)|.*\.(num_batches_tracked|position_ids|rotary_emb\.inv_freq)"
)


def open_td(path: pathlib.Path, options: Options) -> Checkpoint:
  """MedVInT-TD's `pytorch_model.bin`."""
  return td_checkpoint(open_checkpoint(path), merge_lora=options.merge_lora)


def open_te(path: pathlib.Path, options: Options) -> Checkpoint:
  """MedVInT-TE's `pytorch_model.bin`."""
  return te_checkpoint(open_checkpoint(path), merge_lora=options.merge_lora)


def td_checkpoint(
  tensors: dict[str, LazyTensor], untold: Untold = TD, *, merge_lora: bool = False
) -> Checkpoint:
  """What the tensors of MedVInT-TD's state dict make."""
  tensors = lora.one_spelling(tensors)
  sections = td_config(tensors, untold)
  return _checkpoint("medvint_td", sections, tensors, untold, merge_lora)


def te_checkpoint(
  tensors: dict[str, LazyTensor], untold: Untold = TE, *, merge_lora: bool = False
) -> Checkpoint:
  """What the tensors of MedVInT-TE's state dict make, which holds LLaMA twice."""
  once = {key: x for key, x in tensors.items() if not re.fullmatch(TE_UNUSED, key)}
  once = lora.one_spelling(once)
  sections = te_config(once, untold)
  return _checkpoint("medvint_te", sections, once, untold, merge_lora)


def _checkpoint(
  source: str,
  sections: Sections,
  tensors: dict[str, LazyTensor],
  untold: Untold,
  merge_lora: bool,
) -> Checkpoint:
  tensors = lora.merged(tensors, untold.alpha) if merge_lora else tensors
  origin = dict(source=source, sections=sections, language=_language(tensors))
  base = MAPPINGS[source](sections, origin["language"])
  origin["lora"] = lora.ranks(base, tensors)
  adapters = {}
  if origin["lora"]:
    options = dict(alpha=untold.alpha, dropout=DROPOUT)
    adapters = lora.leaves(base, abstract_leaves(sections), tensors, **options)
  return Checkpoint(sections, table(origin), tensors, UNUSED, origin, adapters=adapters)


def td_config(tensors: Tensors, untold: Untold = TD) -> Sections:
  """The sections of MedVInT-TD, sizes read off the shapes.

  Raises:
    UserError: if there is no such tower or language model.
  """
  tower, names = _tower(tensors, TD_TOWERS, untold), connectors.MEDVINT_TD
  out_width = tensors["fc_l2.weight"].shape[0]
  if names["queries"] in tensors:
    connector = _queries(tensors, names, untold) | dict(out_width=out_width)
  else:
    hidden = tensors["fc_l1.weight"].shape[0]
    connector = dict(type="mlp", hidden=hidden, out_width=out_width, activation="relu", mean=True)
    tower |= dict(output="class") if tower["type"] == "vit" else {}
  lm = _lm(tensors)
  return dict(tower=tower, connector=connector, fusion=dict(type="inline"), lm=lm)


def te_config(tensors: Tensors, untold: Untold = TE) -> Sections:
  """The sections of MedVInT-TE, as `td_config`."""
  width, _ = tensors["text_embed.0.weight"].shape
  tower, names = _tower(tensors, TE_TOWERS, untold), connectors.MEDVINT_TE
  fusion = dict(
    type="fused_head",
    width=width,
    depth=count(tensors, r"fusion_module\.resblocks\.\d+\.ln_1\.weight"),
    heads=untold.fused_heads,
    mlp_width=tensors["fusion_module.resblocks.0.mlp.c_fc.weight"].shape[0],
  )
  in_width = width if f"{names['in']}.weight" in tensors else 0
  return dict(
    tower=tower,
    connector=_queries(tensors, names, untold) | dict(in_width=in_width),
    fusion=fusion,
    lm=_lm(tensors),
    objective=dict(type="masked", mask_id=MASK_ID),
  )


def _language(tensors: Tensors) -> str:
  return before(tensors, "embed_tokens.weight")


def _lm(tensors: Tensors) -> dict[str, Any]:
  return hf_decoders.config_from_hf(llama_sizes(tensors, _language(tensors)))


def _tower(tensors: Tensors, prefixes: AnyMapping[str, str], untold: Untold) -> dict[str, Any]:
  """CLIP's patches without the final norm, or the last stage's pixels of the ResNet."""
  pixels = dict(mean=IMAGENET_MEAN, std=IMAGENET_STD)
  if f"{prefixes['clip']}embeddings.class_embedding" in tensors:
    sizes = clip_sizes(tensors, prefixes["clip"])
    sizes |= dict(num_attention_heads=untold.clip_heads) if untold.clip_heads else {}
    return hf_vision.config_from_hf(sizes) | dict(final_norm=False) | pixels
  names, prefix = RESNETS[prefixes["resnet"]], re.escape(prefixes["resnet"])
  stages = [names[f"layer{i}"] for i in (1, 2, 3, 4)]
  blocks = [count(tensors, rf"{prefix}{stage}\.\d+\.conv1\.weight") for stage in stages]
  if not blocks[0]:
    raise UserError("a MedVInT checkpoint has a tower: PMC-CLIP's ResNet or CLIP's ViT")
  width = tensors[f"{prefixes['resnet']}{stages[0]}.0.conv1.weight"].shape[0]
  return open_clip.resnet_config(
    [n for n in blocks if n], width=width, image_size=untold.image_size
  )


def _queries(tensors: Tensors, names: AnyMapping[str, str], untold: Untold) -> dict[str, Any]:
  layer = f"{names['decoder']}layers."
  return dict(
    type="query_decoder",
    num_latents=tensors[names["queries"]].shape[0],
    depth=count(tensors, rf"{re.escape(layer)}\d+\.norm1\.weight"),
    heads=untold.query_heads,
    mlp_width=tensors[f"{layer}0.linear1.weight"].shape[0],
  )


def _llama(sections: Sections, prefix: str) -> Mapping:
  """LLaMA's table, given what stands before `embed_tokens.weight`."""
  return language("llama", sections["lm"], prefix, prefix.removesuffix("model."))


def _tower_table(section: AnyMapping[str, Any], prefixes: AnyMapping[str, str]) -> Mapping:
  resnet = prefixes["resnet"]
  tables = {
    "vit": lambda: hf_vision.mapping(section, prefixes["clip"]),
    "modified_resnet": lambda: open_clip.resnet_mapping(section, resnet, RESNETS[resnet]),
  }
  return under("tower", tables[section["type"]]())


def _width(tower: AnyMapping[str, Any]) -> int:
  """Of the tower's tokens."""
  return tower["width"] * (2 ** (len(tower["blocks"]) + 1) if "blocks" in tower else 1)


def td_mapping(sections: Sections, prefix: str) -> Mapping:
  """Where each leaf of a MedVInT-TD stands.

  Args:
    prefix: what stands before `embed_tokens.weight`; it differs with the version of peft.
  """
  tower, connector = sections["tower"], sections["connector"]
  tables = {
    "query_decoder": lambda: connectors.query_decoder(connector, _width(tower)),
    "mlp": lambda: connectors.mlp_projector(connectors.MEDVINT_MLP),
  }
  return {
    **_tower_table(tower, TD_TOWERS),
    **under("connector", tables[connector["type"]]()),
    **_llama(sections, prefix),
  }


def te_mapping(sections: Sections, prefix: str) -> Mapping:
  """Where each leaf of a MedVInT-TE stands, as `td_mapping`."""
  tower, connector, fusion = (sections[part] for part in ("tower", "connector", "fusion"))
  names, width, block = connectors.MEDVINT_TE, fusion["width"], "fusion_module.resblocks.{}."
  stacked = dict(layers=tuple(range(fusion["depth"])))
  fused = {
    **linear("in", "text_embed.0"),
    "separator": Tensor("img_special_token", shape=(1, 1, width)),
    **norm("blocks/attn_norm", f"{block}ln_1", **stacked),
    **norm("blocks/mlp_norm", f"{block}ln_2", **stacked),
    **fused_attention("blocks/", f"{block}attn.", width, width, **stacked),
    **linear("blocks/mlp/wi", f"{block}mlp.c_fc", **stacked),
    **linear("blocks/mlp/wo", f"{block}mlp.c_proj", **stacked),
    "head/kernel": Tensor("mlm_projection"),
  }
  lm = _llama(sections, prefix)
  del lm["lm/head/kernel"]  # LLaMA's own head is not there
  return {
    **_tower_table(tower, TE_TOWERS),
    **under("connector", connectors.query_decoder(connector, _width(tower), names)),
    **lm,
    **under("lm/fused", fused),
  }


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a model that was imported, its LoRA as well."""
  base = MAPPINGS[origin["source"]](origin["sections"], origin["language"])
  return base | lora.rows(base, origin["lora"])


MAPPINGS = {"medvint_td": td_mapping, "medvint_te": te_mapping}
RESNETS = {
  TD_TOWERS["resnet"]: open_clip.SEQUENTIAL_NAMES,
  TE_TOWERS["resnet"]: open_clip.CLIP_NAMES,
}
