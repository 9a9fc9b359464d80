"""Connectors of published systems ⇄ `medflax.models.connectors`.

Each function says where the leaves of a connector with these fields stand; `width` is that of
the visual tokens, which a connector's section does not tell. The resampler is OpenFlamingo's:
`open_flamingo.perceiver`.
"""

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from typing import Any

from medflax.pretrained.hf_vision import blocks, fused_attention, linear, norm
from medflax.pretrained.mapping import Mapping, Tensor

MEDVINT_TD = dict(queries="query_embed.weight", decoder="decoder.", hidden="fc_l1", out="fc_l2")
MEDVINT_TE = {"queries": "qformer_query", "decoder": "qformer_decoder.", "in": "image_embed.0"}


def query_decoder(
  section: AnyMapping[str, Any], width: int, names: AnyMapping[str, str] = MEDVINT_TD
) -> Mapping:
  """MedVInT's query decoder, a torch TransformerDecoder, with the linear maps around it."""
  width = section.get("in_width") or width
  layer = f"{names['decoder']}layers.{{}}."
  stacked = dict(layers=tuple(range(section["depth"])))
  found = {
    "queries": Tensor(names["queries"]),
    **norm("norm", f"{names['decoder']}norm"),
    **fused_attention("layers/self_attn/", f"{layer}self_attn.", width, width, **stacked),
    **fused_attention("layers/cross_attn/", f"{layer}multihead_attn.", width, width, **stacked),
    **linear("layers/mlp/wi", f"{layer}linear1", **stacked),
    **linear("layers/mlp/wo", f"{layer}linear2", **stacked),
  }
  for i, part in enumerate(("self_norm", "cross_norm", "mlp_norm"), start=1):
    found |= norm(f"layers/{part}", f"{layer}norm{i}", **stacked)
  if section.get("in_width"):
    found |= linear("in", names["in"])
  if section.get("out_width"):
    found |= linear("hidden", names["hidden"]) | linear("out", names["out"])
  return found


# The two linear maps of an MLP projector.
LLAVA_HF = ("model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2")
LLAVA = ("model.mm_projector.0", "model.mm_projector.2")
MEDVINT_MLP = ("fc_l1", "fc_l2")


def mlp_projector(names: Sequence[str] = LLAVA_HF, *, bias: bool = True) -> Mapping:
  """An MLP projector by the names of its two linear maps."""
  hidden, out = names
  return linear("hidden", hidden, bias=bias) | linear("out", out, bias=bias)


def pooled_projection(prefix: str = "model.multi_modal_projector.") -> Mapping:
  """Gemma 3's."""
  return {
    "norm/scale": Tensor(f"{prefix}mm_soft_emb_norm.weight"),
    "out/kernel": Tensor(f"{prefix}mm_input_projection_weight"),
  }


def mlp_mapper(section: AnyMapping[str, Any], prefix: str = "clip_project.model.") -> Mapping:
  """The mapper of open-ended-medical-vqa: a linear map, dropout and tanh in turn."""
  n = len(section["hidden"])
  found = linear("out", f"{prefix}{3 * n}")
  for i in range(n):
    found |= linear(f"hidden_{i}", f"{prefix}{3 * i}")
  return found


_MAPPER_LAYER = {
  "attn_norm": "norm1",
  "query": "attn.to_queries",
  "out": "attn.project",
  "mlp_norm": "norm2",
  "mlp/wi": "mlp.fc1",
  "mlp/wo": "mlp.fc2",
}


def transformer_mapper(section: AnyMapping[str, Any], prefix: str = "clip_project.") -> Mapping:
  """ClipCap's Transformer mapper."""
  width, layers = section["out_width"], tuple(range(section.get("depth", 8)))
  layer = f"{prefix}transformer.layers.{{}}."
  fields = dict(width=width, qkv_bias=False)
  both = f"{layer}attn.to_keys_values.weight"  # keys and values stacked in one matrix
  half = dict(layers=layers, axes=(1, 0), shape=(width, width))
  return {
    **linear("in", f"{prefix}linear"),
    "latents": Tensor(f"{prefix}prefix_const"),
    **blocks(fields, layer, _MAPPER_LAYER, layers),
    "blocks/key/kernel": Tensor(both, rows=(0, width), **half),
    "blocks/value/kernel": Tensor(both, rows=(width, 2 * width), **half),
  }
