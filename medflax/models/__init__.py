"""The model family: parts chosen by name from explicit dicts, assembled by `build_model`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax
import jax.numpy as jnp

from medflax.models.connectors.mapper import MLPMapper, TransformerMapper
from medflax.models.connectors.perceiver import PerceiverResampler
from medflax.models.connectors.projector import MLPProjector, PooledProjection
from medflax.models.connectors.query_decoder import QueryDecoder
from medflax.models.fusion.fused_head import FusedHead
from medflax.models.fusion.gated_xattn import GatedXattn
from medflax.models.fusion.inline import Inline
from medflax.models.image_to_text import ImageToText
from medflax.models.language.decoder import Decoder
from medflax.models.language.encoder_decoder import EncoderDecoder
from medflax.models.masked import MaskedVLM
from medflax.models.vision.patches import Patches
from medflax.models.vision.resnet import ModifiedResNet
from medflax.models.vision.swin import Swin
from medflax.models.vision.vit import ViT
from medflax.models.vlm import VLM, model_inputs
from medflax.utils import UserError

VISION_TOWERS = {"vit": ViT, "modified_resnet": ModifiedResNet, "swin": Swin, "patches": Patches}
CONNECTORS = {
  "perceiver": PerceiverResampler,
  "query_decoder": QueryDecoder,
  "mlp": MLPProjector,
  "pooled": PooledProjection,
  "mlp_mapper": MLPMapper,
  "transformer_mapper": TransformerMapper,
}
FUSIONS = {"gated_xattn": GatedXattn, "inline": Inline, "fused_head": FusedHead}
LANGUAGE_MODELS = {"decoder": Decoder, "encoder_decoder": EncoderDecoder}
# What a model learns to predict, and with it how it generates.
OBJECTIVES = {"next_token": VLM, "masked": MaskedVLM, "image_to_text": ImageToText}
NOTHING = {
  "objective": {"type": "next_token"},
  **{"tower": {}, "connector": {}, "fusion": {}},
  **{"attention": "xla", "one_medium": False},
}


def build_model(config: Mapping[str, Any]) -> VLM:
  """The model of a `config.model`: its parts' `type` picks the class, the rest are its fields.

  A tower, a connector and a fusion may be empty or absent: the model is of text alone. `attention`
  and `one_medium` are fields of the tower and the language model.

  Raises:
    KeyError, TypeError: unknown part or field; `medflax.config.validate` says so kindly before.
    UserError: if the language model does not go with the objective.
  """
  whole: Any = flax.core.freeze({**NOTHING, **config})  # jit hashes models
  types = (whole["lm"].get("type"), whole["objective"]["type"])
  if (types[0] == "encoder_decoder") != (types[1] == "image_to_text"):
    raise UserError(
      f"config.model.lm.type and config.model.objective.type are {types[0]} and {types[1]}; "
      "encoder_decoder and image_to_text need each other"
    )
  common = dict(dtype=jnp.dtype(whole["dtype"]), remat=whole["remat"])
  of_tokens = {name: whole[name] for name in ("attention", "one_medium")}

  def make(table: Mapping[str, type], part: str, **extra: Any) -> Any:
    fields: dict[str, Any] = dict(whole[part])
    if not fields:
      return None
    chosen = table[fields.pop("type")]
    known = {field.name for field in dataclasses.fields(chosen)}
    return chosen(**fields, **{name: x for name, x in extra.items() if name in known})

  return make(
    OBJECTIVES,
    "objective",
    tower=make(VISION_TOWERS, "tower", attention=whole["attention"], **common),
    connector=make(CONNECTORS, "connector", **common),
    lm=make(LANGUAGE_MODELS, "lm", fusion=make(FUSIONS, "fusion"), **of_tokens, **common),
  )


__all__ = [
  "CONNECTORS",
  "FUSIONS",
  "LANGUAGE_MODELS",
  "OBJECTIVES",
  "VISION_TOWERS",
  "VLM",
  "build_model",
  "model_inputs",
]
