"""The model family: parts chosen by name from explicit dicts, assembled by `build_model`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from medflax.models.connectors.mapper import MLPMapper, TransformerMapper
from medflax.models.connectors.perceiver import PerceiverResampler
from medflax.models.connectors.projector import MLPProjector, PooledProjection
from medflax.models.connectors.query_decoder import QueryDecoder
from medflax.models.fusion.gated_xattn import GatedXattn
from medflax.models.language.decoder import Decoder
from medflax.models.vision.resnet import ModifiedResNet
from medflax.models.vision.swin import Swin
from medflax.models.vision.vit import ViT
from medflax.models.vlm import VLM, model_inputs

VISION_TOWERS = {"vit": ViT, "modified_resnet": ModifiedResNet, "swin": Swin}
CONNECTORS = {
  "perceiver": PerceiverResampler,
  "query_decoder": QueryDecoder,
  "mlp": MLPProjector,
  "pooled": PooledProjection,
  "mlp_mapper": MLPMapper,
  "transformer_mapper": TransformerMapper,
}
FUSIONS = {"gated_xattn": GatedXattn}
LANGUAGE_MODELS = {"decoder": Decoder}


def build_model(config: Mapping[str, Any]) -> VLM:
  """The model of a `config.model`: its parts' `type` picks the class, the rest are its fields.

  Raises:
    KeyError, TypeError: unknown part or field; `medflax.config.validate` says so kindly before.
  """
  dtype = jnp.dtype(config["dtype"])

  def make(table: Mapping[str, type], part: str, **extra: Any) -> Any:
    fields = dict(config[part])
    return table[fields.pop("type")](**fields, **extra)

  common = dict(dtype=dtype, remat=config["remat"])
  fusion = make(FUSIONS, "fusion")
  return VLM(
    tower=make(VISION_TOWERS, "tower", **common),
    connector=make(CONNECTORS, "connector", **common),
    lm=make(LANGUAGE_MODELS, "lm", fusion=fusion, **common),
  )


__all__ = [
  "CONNECTORS",
  "FUSIONS",
  "LANGUAGE_MODELS",
  "VISION_TOWERS",
  "VLM",
  "build_model",
  "model_inputs",
]
