"""The leaves that a model of given sections has; none is computed."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from medflax.models import LANGUAGE_MODELS, VISION_TOWERS, build_model
from medflax.models.captioner import build_captioner
from medflax.models.fusion.gated_xattn import GatedXattn
from medflax.models.language.encoder import Encoder
from medflax.models.language.encoder_decoder import EncoderDecoder
from medflax.utils import pick

WHOLE = ("connector", "fusion", "lm", "tower")
Init = Callable[[jax.Array], Any]


def abstract_leaves(
  sections: Mapping[str, Mapping[str, Any]], *, xattn_every: int = 1, patch_values: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
  """The leaves by path of the whole model, or of each part by itself.

  Args:
    sections: of `config.model`, by part.
    xattn_every: how a language model by itself is grouped for the fusion it will have.
    patch_values: numbers in a patch of an encoder that reads patches.
  """
  if set(WHOLE) <= set(sections):
    return _leaves("", _vlm(sections))
  beside = dict(xattn_every=xattn_every, patch_values=patch_values)
  found: dict[str, jax.ShapeDtypeStruct] = {}
  for part, section in sections.items():
    found |= _leaves(f"{part}/", pick(PARTS, part, "part")(section, beside))
  return {path: leaf for path, leaf in found.items() if not path.startswith("lm/groups/xattn/")}


def _leaves(prefix: str, init: Init) -> dict[str, jax.ShapeDtypeStruct]:
  tree = nn.unbox(jax.eval_shape(init, jax.random.key(0)))["params"]
  flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
  return {f"{prefix}{path}": leaf for path, leaf in flat.items()}


def _vlm(sections: Mapping[str, Any]) -> Init:
  fixed = {"dtype": "float32", "remat": "none", "objective": {"type": "next_token"}}
  model = build_model(flax.core.freeze({**fixed, **sections}))
  media = {kind: x[:, None] for kind, x in _media(sections["tower"]).items()}
  ordinal = dict.fromkeys(media, jnp.ones((1, 1), jnp.int32))
  return lambda key: model.init(key, media, TOKENS, TOKENS, media_ordinal=ordinal)


TOKENS, SEEN = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
MASK = jnp.ones((1, 2, 2), bool)


def _tower(section: Mapping[str, Any], _: Mapping[str, int]) -> Init:
  model = VISION_TOWERS[section["type"]](**_fields(section))

  def init(key: jax.Array) -> Any:
    params: dict[str, Any] = {}
    for kind, x in _media(section).items():
      params |= model.init(key, x, kind)["params"]
    return {"params": params}

  return init


def _encoder(section: Mapping[str, Any], _: Mapping[str, int]) -> Init:
  return lambda key: Encoder(**_fields(section)).init(key, TOKENS, TOKENS, MASK)


def _encoder_decoder(section: Mapping[str, Any], beside: Mapping[str, int]) -> Init:
  patches = jnp.zeros((1, 2, 2 + beside["patch_values"]))
  inputs = patches if section["places"] else TOKENS
  return lambda key: EncoderDecoder(**_fields(section)).init(key, inputs, SEEN, TOKENS)


def _decoder(section: Mapping[str, Any], beside: Mapping[str, int]) -> Init:
  every = beside["xattn_every"]
  fusion = GatedXattn(every) if every > 1 else None
  model = LANGUAGE_MODELS[section["type"]](**_fields(section), fusion=fusion)
  return lambda key: model.init(key, TOKENS, TOKENS, MASK, None, None)


def _captioner(section: Mapping[str, Any], _: Mapping[str, int]) -> Init:
  [media] = _media(section["tower"]).values()
  frames = jnp.repeat(media[:, None].astype(jnp.float32), section["frames"] or 1, axis=1)
  return lambda key: build_captioner(section).init(key, frames, TOKENS)


TEXT = {"decoder": _decoder, "encoder": _encoder, "encoder_decoder": _encoder_decoder}
PARTS = {
  "tower": _tower,
  "lm": lambda section, beside: TEXT[section["type"]](section, beside),
  "captioner": _captioner,
}


def _media(tower: Mapping[str, Any]) -> dict[str, jax.Array]:
  shapes = {k: (*spec["size"], spec["channels"]) for k, spec in tower.get("inputs", {}).items()}
  return {kind: jnp.zeros((1, *shape), jnp.uint8) for kind, shape in shapes.items()}


def _fields(section: Mapping[str, Any]) -> dict[str, Any]:
  return {name: x for name, x in flax.core.freeze(section).items() if name != "type"}
