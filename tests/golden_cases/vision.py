"""Vision towers and connectors that have golden cases of their own."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medflax.models import CONNECTORS, VISION_TOWERS
from medflax.pretrained import (
  hf_swin,
  hf_vision,
  open_clip,
  open_flamingo,
  radfm_vision,
)
from tests.golden_cases.base import Case, Check, Result, abstract_leaves, compare, import_weights

AS_IS = dict(mean=(0.0,), std=(1.0,))  # golden pixels are normalised
QUICK = {"xla_backend_optimization_level": 0}  # small cases compile longer than they compute
COUNTERS = r".*num_batches_tracked"


def build(parts, section):
  """The tower or connector of a section; one without `type` is of the class given."""
  fields = {name: value for name, value in section.items() if name != "type"}
  return (parts[section["type"]] if isinstance(parts, dict) else parts)(**fields)


def apply(model, params, *inputs):
  """`model.apply`, compiled; a media kind is static."""
  static = tuple(i + 1 for i, x in enumerate(inputs) if isinstance(x, str))
  return jax.jit(model.apply, static_argnums=static, compiler_options=QUICK)(params, *inputs)


def random_params(model, *inputs):
  """Parameters of a model, none of them zero; compiles no initialisation."""
  rng = np.random.default_rng(0)
  shapes = abstract_leaves(model, *inputs)
  flat = {path: rng.normal(0, 0.3, x.shape).astype(x.dtype) for path, x in shapes.items()}
  return {"params": traverse_util.unflatten_dict(flat, sep="/")}


def encode(section, table, theirs, ignore, x, kind="image"):
  """A tower's features, its weights imported by `table`."""
  model = build(VISION_TOWERS, section)
  params = import_weights(table, abstract_leaves(model, x, kind), theirs, ignore)
  return apply(model, params, x, kind)


def connect(section, table, theirs, ignore, x):
  """A connector's tokens, its weights imported by `table`."""
  model = build(CONNECTORS, section)
  return apply(model, import_weights(table, abstract_leaves(model, x), theirs, ignore), x)


def channels_last(x):
  """PyTorch's [b, c, *size] as ours."""
  return jnp.moveaxis(jnp.asarray(x), 1, -1)


def _pooled(hf: dict[str, Any]) -> dict[str, Any]:
  """What the families call pooled."""
  return {
    "clip_vision_model": dict(output="class"),
    "siglip_vision_model": dict(attention_pool=True),
    "dinov2": dict(output="class"),
    "vit": dict(output="class", projection=hf["hidden_size"], projection_tanh=True),
  }[hf["model_type"]]


def _changes(name: str, hf: dict[str, Any]) -> dict[str, Any]:
  """Fields by which a Hugging Face tower returns the output of this name."""
  vision, raw = hf.get("vision_config", hf), dict(output="tokens", final_norm=False)
  if name == "last_hidden_state":  # CLIP's is not normalised, the others' is
    return raw if vision["model_type"] == "clip_vision_model" else dict(output="tokens")
  if name == "penultimate":
    return raw | dict(depth=vision["num_hidden_layers"] - 1)
  if name.startswith("hidden_"):
    return raw | dict(depth=int(name.removeprefix("hidden_")))
  if name == "image_embeds":
    return dict(output="class", projection=hf["projection_dim"])
  return _pooled(vision)


def hugging_face(case: Case) -> Iterator[Result]:
  """Every output of the image's side but `hidden_0`, the patches before any layer."""
  section = hf_vision.config_from_hf(case.hf) | AS_IS
  x = channels_last(case.arrays["in.pixel_values"])
  elsewhere = ("hidden_0", "text_embeds", "logits_per_image")
  for key, want in case.arrays.items():
    name = key.removeprefix("out.")
    if key == name or name in elsewhere:
      continue
    changed = section | _changes(name, case.hf)
    table, ignore = hf_vision.mapping(changed), hf_vision.unused(changed)
    got = encode(changed, table, case.weights, ignore, x)
    if case.hf["model_type"] == "clip":  # the whole model compares directions
      got = got / jnp.linalg.norm(got, axis=-1, keepdims=True)
    yield compare(name, got if want.ndim == 3 else got[:, 0], want)


def swin(case: Case) -> Iterator[Result]:
  """The tokens, and their mean."""
  section, x = (
    hf_swin.config_from_hf(case.hf) | AS_IS,
    channels_last(case.arrays["in.pixel_values"]),
  )
  got = encode(section, hf_swin.mapping(section), case.weights, hf_swin.IGNORE, x)
  yield compare("last_hidden_state", got, case.arrays["out.last_hidden_state"])
  yield compare("pooled", got.mean(1), case.arrays["out.pooled"])


def open_clip_tower(case: Case) -> Iterator[Result]:
  """Tokens as open_clip gave them up to 2.20 and as it does since, and the embedding."""
  config = case.config
  vision = dict(config, image_size=config["image"], patch_size=config["patch"])
  section = open_clip.config_from_open_clip(
    dict(vision_cfg=vision, quick_gelu=config["quick_gelu"])
  )
  x = channels_last(case.arrays["in.pixels"])
  outputs = {
    "out.tokens": {},
    "alt.tokens_open_clip330": dict(final_norm=True),
    "out.pooled": dict(output="class", final_norm=True, projection=config["embed_dim"]),
  }
  for key, changes in outputs.items():
    changed = section | AS_IS | changes
    ignore = r"visual\.(proj|ln_post\..*)|" + open_clip.TEXT
    got = encode(changed, open_clip.mapping(changed), case.weights, ignore, x)
    yield compare(key, got[:, 0] if key == "out.pooled" else got, case.arrays[key])
    if key == "out.pooled":
      got = got[:, 0] / jnp.linalg.norm(got[:, 0], axis=-1, keepdims=True)
      yield compare("out.image_features", got, case.arrays["out.image_features"])


def radfm_tower(case: Case) -> Iterator[Result]:
  """Volumes of several sizes; the tokens' order there is height, width, depth."""
  for name in case.inputs():
    x = jnp.asarray(case.arrays[f"in.{name}"]).transpose(0, 4, 2, 3, 1)  # from [b, c, h, w, d]
    section = radfm_vision.config_from_radfm(case.config, volume_size=x.shape[1:4])
    table = radfm_vision.mapping(section, prefix="")
    model = build(VISION_TOWERS, section)
    params = import_weights(table, abstract_leaves(model, x, "volume"), case.weights)
    y, positions = _with_positions(model, params, x)
    patch = section["inputs"]["volume"]["patch"]
    grid = [s // p for s, p in zip(x.shape[1:4], patch, strict=True)]
    for what, tokens in (("y", y), ("pos", jnp.broadcast_to(positions, y.shape))):
      tokens = tokens.reshape(len(x), *grid, -1).transpose(0, 2, 3, 1, 4).reshape(y.shape)
      yield compare(f"{what}_{name}", tokens, case.arrays[f"out.{what}_{name}"])


def _with_positions(model, params, x):
  """A tower's tokens, and what it added to them for their places."""
  places = lambda _, method: method == "_axis_tables"
  run = lambda params, x: model.apply(
    params, x, "volume", capture_intermediates=places, mutable=["intermediates"]
  )
  y, state = jax.jit(run, compiler_options=QUICK)(params, x)
  [positions] = jax.tree.leaves(state)
  return y, positions


def radfm_connector(case: Case) -> Iterator[Result]:
  """The resampler alone and with RadFM's linear map."""
  config, x = case.config, jnp.asarray(case.arrays["in.x"])
  fields = {name: config[name] for name in ("num_latents", "depth", "heads")}
  section = dict(type="perceiver", head_dim=config["dim_head"], **fields)
  for name, out_width in (("perceiver", 0), ("fc", config["out"])):
    section["out_width"] = out_width
    table = open_flamingo.perceiver(section)
    yield compare(
      name, connect(section, table, case.weights, r"fc\..*", x), case.arrays[f"out.{name}"]
    )


def modified_resnet(case: Case) -> Iterator[Result]:
  """The pixels of the stem and of each stage, by towers of so many stages, and the embedding."""
  config, x = case.config, channels_last(case.arrays["in.images"])
  sizes = dict(width=config["width"], image_size=config["image"])
  for stages in range(len(config["layers"]) + 1):
    section = open_clip.resnet_config(config["layers"][:stages], **sizes) | AS_IS
    ignore = rf"{COUNTERS}|attnpool\..*|layer[{stages + 1}-9]\..*"
    table = open_clip.resnet_mapping(section, prefix="")
    name = f"layer{stages}" if stages else "stem"
    want = case.arrays[f"out.{name}"]
    want = want.reshape(*want.shape[:2], -1).swapaxes(1, 2)
    yield compare(name, encode(section, table, case.weights, ignore, x), want)
  section |= dict(projection=config["output_dim"], heads=config["heads"])
  table = open_clip.resnet_mapping(section, prefix="")
  got = encode(section, table, case.weights, COUNTERS, x)[:, 0]
  yield compare("image_features", got, case.arrays["out.image_features"])


CHECKS: dict[str, Check] = {
  "clip_vision": hugging_face,
  "siglip_vision": hugging_face,
  "vit_vision": lambda case: {"swin": swin}.get(case.hf["model_type"], hugging_face)(case),
  "open_clip": open_clip_tower,
}
# Parts of systems, by a tensor that only their cases have; the whole systems' checks hold them.
RADFM_PARTS: dict[str, Check] = {
  "to_patch_embedding.2.weight": radfm_tower,
  "perceiver.latents": radfm_connector,
}
MEDVINT_PARTS: dict[str, Check] = {"attnpool.c_proj.weight": modified_resnet}
