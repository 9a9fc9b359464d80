"""RadFM (Wu et al. 2023): a 3D ViT, a resampler, and LLaMA-13B with figure tokens.

The published `pytorch_model.bin` is one flat state dict; nothing else is needed. What it holds of
a text encoder and a classifier, which the model does not call, is left out.
"""

import math
import pathlib
import re
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import hf_decoders, open_flamingo, radfm_vision
from medflax.pretrained.checkpoint import Checkpoint, Options, under
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Mapping, Tensor
from medflax.pretrained.systems.parts import count, language, llama_sizes
from medflax.utils import UserError

LANGUAGE, REST = "lang_model.", "embedding_layer."
HEAD_DIM = 64  # of tower and resampler; no file tells it
CHANNELS, SLICES = 3, 4  # of a patch, which is a square of each slice
VOLUME = (64, 256, 256)  # what the published model saw; images are as large as the tables
UNUSED = (
  r"embedding_layer\.(weight|bert_model\..*|bert_projection_fc\..*|output_upscaling\..*"
  r"|transformer_decoder(_mlp)?\..*|cls_head\..*)"
)


def open_model(path: pathlib.Path, _: Options) -> Checkpoint:
  """The published `pytorch_model.bin`."""
  return checkpoint(open_checkpoint(path))


def checkpoint(tensors: dict[str, LazyTensor], *, head_dim: int = HEAD_DIM) -> Checkpoint:
  """What the tensors of a state dict make.

  Raises:
    UserError: if they are not RadFM's.
  """
  sections = config_from_tensors(tensors, head_dim=head_dim)
  ignore = f"{UNUSED}|{re.escape(LANGUAGE)}({hf_decoders.ignored('llama', sections['lm'])})"
  origin = dict(source="radfm", sections=sections)
  return Checkpoint(sections, mapping(sections), tensors, ignore, origin)


def config_from_tensors(
  tensors: AnyMapping[str, Any], *, head_dim: int = HEAD_DIM
) -> dict[str, dict[str, Any]]:
  """The sections of `config.model`, sizes read off the shapes.

  Raises:
    UserError: if there is no such tower.
  """
  tower, perceiver = f"{REST}vision_encoder.", f"{REST}perceiver."
  if f"{tower}to_patch_embedding.2.weight" not in tensors or f"{perceiver}latents" not in tensors:
    raise UserError("a RadFM checkpoint has embedding_layer.vision_encoder.* and .perceiver.*")
  shape = lambda name: tensors[f"{tower}{name}"].shape
  dim, values = shape("to_patch_embedding.2.weight")
  patch = math.isqrt(values // (CHANNELS * SLICES))
  tables = {axis: shape(f"pos_embedding.{axis}_embed.weight")[0] for axis in ("row", "dep")}
  layers = rf"{re.escape(tower)}transformer\.layers\.\d+\.0\.norm\.weight"
  sizes = dict(
    image_size=tables["row"] * patch,
    image_patch_size=patch,
    frames=tables["dep"] * SLICES,
    frame_patch_size=SLICES,
    dim=dim,
    depth=count(tensors, layers),
    heads=shape("transformer.layers.0.0.fn.to_qkv.weight")[0] // (3 * head_dim),
    mlp_dim=shape("transformer.layers.0.1.fn.net.0.weight")[0],
    dim_head=head_dim,
  )
  whole = (sizes["frames"], sizes["image_size"], sizes["image_size"])
  depth, height, width = (min(size, limit) for size, limit in zip(VOLUME, whole, strict=True))
  connector = dict(type="perceiver") | open_flamingo.perceiver_sizes(tensors, perceiver, head_dim)
  return dict(
    tower=radfm_vision.config_from_radfm(
      sizes, volume_size=(depth, height, width), image_size=whole[1:]
    ),
    connector=connector | dict(out_width=tensors[f"{REST}fc.weight"].shape[0]),
    fusion=dict(type="inline"),
    lm=hf_decoders.config_from_hf(llama_sizes(tensors, f"{LANGUAGE}model."))
    | dict(extra_tokens=tensors[f"{REST}figure_token_weight"].shape[0]),
  )


def mapping(sections: AnyMapping[str, AnyMapping[str, Any]]) -> Mapping:
  """Where each leaf of a model with these sections stands."""
  return {
    **under("tower", radfm_vision.mapping(sections["tower"], f"{REST}vision_encoder.")),
    **under(
      "connector",
      open_flamingo.perceiver(sections["connector"], f"{REST}perceiver.", f"{REST}fc"),
    ),
    **language("llama", sections["lm"], f"{LANGUAGE}model.", LANGUAGE),
    "lm/extra_embedding": Tensor(f"{REST}figure_token_weight"),
  }


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a model that was imported."""
  return mapping(origin["sections"])
