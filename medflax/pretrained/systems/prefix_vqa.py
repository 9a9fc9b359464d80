"""Prefix tuning for medical questions (van Sonsbeek et al. 2023): CLIP, a mapper, a language model.

The code's state dict has the mapper, `clip_project.*`, and the language model, `gpt.*`, of which
the latter may be missing if it was frozen. CLIP ViT-B/32 is a file of its own.
"""

import pathlib
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import connectors, hf_decoders, hugging_face
from medflax.pretrained.checkpoint import Checkpoint, Options, under
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Mapping
from medflax.pretrained.systems import parts
from medflax.utils import UserError

MAPPER, LANGUAGE = "clip_project.", "gpt."
HEADS = 8  # of the Transformer mapper; no shape tells


def open_model(path: pathlib.Path, options: Options) -> Checkpoint:
  """A `.pt` of the code's with the language model's folder and CLIP."""
  if not options.lm or not options.vision:
    raise UserError(f"{path} lacks CLIP and the language model's sizes: give --lm and --vision")
  language = hugging_face.open_folder(pathlib.Path(options.lm), Options())
  tower = parts.clip_embedding(options.vision)
  tensors = {LANGUAGE + key: x for key, x in language.tensors.items()} | open_checkpoint(path)
  sections = config_from_tensors(tensors, language.sections["lm"])
  kind = language.origin["config"]["model_type"]
  origin = dict(source="prefix_vqa", sections=sections, model_type=kind)
  return Checkpoint(
    tower.sections | sections,
    tower.mapping | table(origin),
    tower.tensors | tensors,
    f"{tower.ignore}|{ignored(kind, sections['lm'])}",
    origin,
    tokenizer=language.tokenizer,
  )


def config_from_tensors(
  tensors: AnyMapping[str, LazyTensor], lm: dict[str, Any], *, heads: int = HEADS
) -> dict[str, dict[str, Any]]:
  """The sections of `config.model` but the tower's; the mapper's sizes read off its shapes.

  Args:
    lm: the language model's section.
    heads: of the Transformer mapper.

  Raises:
    UserError: if there is no mapper.
  """
  width = lm["width"]
  hidden = [key for key in tensors if parts.count([key], r"clip_project\.model\.\d+\.weight")]
  if hidden:
    widths = [tensors[f"{MAPPER}model.{3 * i}.weight"].shape[0] for i in range(len(hidden))]
    connector: dict[str, Any] = dict(
      type="mlp_mapper",
      num_latents=widths[-1] // width,
      out_width=width,
      hidden=tuple(widths[:-1]),
    )
  elif f"{MAPPER}prefix_const" in tensors:
    layer = f"{MAPPER}transformer.layers."
    connector = dict(
      type="transformer_mapper",
      num_latents=tensors[f"{MAPPER}prefix_const"].shape[0],
      out_width=width,
      num_inputs=tensors[f"{MAPPER}linear.weight"].shape[0] // width,
      depth=parts.count(tensors, r"clip_project\.transformer\.layers\.\d+\.norm1\.weight"),
      heads=heads,
      mlp_ratio=tensors[f"{layer}0.mlp.fc1.weight"].shape[0] // width,
    )
  else:
    raise UserError("the checkpoint has no mapper, clip_project.*")
  return dict(connector=connector, fusion=dict(type="inline"), lm=lm)


MAPPERS = {
  "mlp_mapper": connectors.mlp_mapper,
  "transformer_mapper": connectors.transformer_mapper,
}


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a model that was imported, but for its tower, a checkpoint of its own."""
  connector, lm = (origin["sections"][part] for part in ("connector", "lm"))
  language = hf_decoders.mapping(origin["model_type"], lm)
  return {
    **under("connector", MAPPERS[connector["type"]](connector)),
    **under("lm", parts.renamed(language, lambda key: LANGUAGE + key)),
  }


def ignored(model_type: str, lm: AnyMapping[str, Any]) -> str:
  """Regex of the foreign names that are no weights, or stand there a second time."""
  return rf"gpt\.({hf_decoders.ignored(model_type, lm)})"
