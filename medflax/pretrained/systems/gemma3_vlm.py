"""Gemma 3 with images, MedGemma (Sellergren et al. 2025): SigLIP, pooled patches, Gemma 3.

What stands before the names of a part differs with the version of transformers that wrote them,
and is found.
"""

import pathlib
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import connectors, hf_decoders, hf_vision
from medflax.pretrained.checkpoint import Checkpoint, Options, read_json, under
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Mapping
from medflax.pretrained.systems import parts
from medflax.utils import UserError

# Of the tower, where config.json leaves them to transformers.
SIGLIP = dict(model_type="siglip_vision_model", hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
TEXT = "gemma3_text"
# A name of each part, which tells what stands before all of its names.
MARKS = dict(
  lm="embed_tokens.weight",
  tower="embeddings.patch_embedding.weight",
  projector="mm_soft_emb_norm.weight",
)


def open_folder(path: pathlib.Path, _: Options) -> Checkpoint:
  """A folder of transformers', with its tokenizer."""
  hf = read_json(path / "config.json")
  return checkpoint(hf, open_checkpoint(path), tokenizer=parts.tokenizer_in(path))


def checkpoint(
  hf: AnyMapping[str, Any],
  tensors: dict[str, LazyTensor],
  *,
  tokenizer: AnyMapping[str, bytes] = {},
) -> Checkpoint:
  """What a config.json and its tensors make.

  Raises:
    UserError: if a part is missing or of another kind.
  """
  sections = config_from_hf(hf)
  names = {part: parts.before(tensors, mark) for part, mark in MARKS.items()}
  origin = dict(source="gemma3_vlm", config=hf, sections=sections, names=names)
  unused = hf_vision.unused(sections["tower"], names["tower"])
  ignore = rf"{unused}|.*({hf_decoders.ignored(TEXT, sections['lm'])})"
  return Checkpoint(sections, table(origin), tensors, ignore, origin, tokenizer=dict(tokenizer))


def config_from_hf(hf: AnyMapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The sections of `config.model` from a config.json.

  Raises:
    UserError: if it is not one of Gemma 3 with images.
  """
  if not {"text_config", "vision_config"} <= hf.keys():
    raise UserError("config.json: Gemma 3 with images has a text_config and a vision_config")
  vision = SIGLIP | hf["vision_config"]
  lm = hf_decoders.config_from_hf(hf["text_config"] | dict(model_type=TEXT))
  return dict(
    tower=hf_vision.config_from_hf(vision),
    connector=dict(
      type="pooled",
      num_latents=hf.get("mm_tokens_per_image", 256),
      out_width=lm["width"],
      norm_eps=vision["layer_norm_eps"],
    ),
    fusion=dict(type="inline", bidirectional=True),
    lm=lm,
  )


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a model that was imported."""
  names, sections = origin["names"], origin["sections"]
  return {
    **under("tower", hf_vision.mapping(sections["tower"], names["tower"])),
    **under("connector", connectors.pooled_projection(names["projector"])),
    **parts.language(TEXT, sections["lm"], names["lm"], ""),  # whose head is tied
  }
