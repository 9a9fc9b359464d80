"""OpenFlamingo's resampler, gated block and whole models."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medflax.data.encode import MEDIA_RULES
from medflax.inference.beam import beam_search
from medflax.inference.decode import generate, read_prompts
from medflax.inference.stops import stop_at
from medflax.models.attention import media_mask
from medflax.models.connectors.perceiver import PerceiverResampler
from medflax.models.fusion.gated_xattn import GatedXattn
from medflax.models.language.decoder import Decoder
from medflax.models.vision.vit import ViT
from medflax.models.vlm import VLM
from medflax.pretrained import hf_decoders, open_clip, open_flamingo
from medflax.pretrained.mapping import to_theirs
from tests.golden_cases.base import (
  Case,
  Check,
  Result,
  abstract_leaves,
  compare,
  import_weights,
  next_token_loss,
  same_tokens,
)

# Of the smallest tensors' gradients, sums that nearly cancel, both sides have few digits.
GRADIENT_TOLERANCE = 5e-4
# A beam of another row, not its best, draws <image>; the peer then loses the images of all rows.
DRAWS_IMAGE = ("gptneox",)


def perceiver(case: Case) -> Iterator[Result]:
  sizes = open_flamingo.perceiver_sizes(case.weights, "", case.config.get("dim_head", 64))
  model = PerceiverResampler(**sizes)
  mapping = open_flamingo.perceiver(sizes, "")
  for name in case.inputs():
    x = case.arrays[f"in.{name}"]
    params = import_weights(mapping, abstract_leaves(model, x), case.weights)
    yield compare(
      f"latents of {name}", jax.jit(model.apply)(params, x), case.arrays[f"out.y_{name}"]
    )


def xattn(case: Case) -> Iterator[Result]:
  sizes = open_flamingo.gated_xattn_sizes(case.weights, "", case.config["dim_head"])
  block = GatedXattn(1, **sizes).block(jnp.float32)
  immediate = case.config["only_attend_immediate_media"]
  rule = MEDIA_RULES["prev_image" if immediate else "all_prev"]
  links = [rule(row) for row in case.arrays["in.loc"]]
  index, first = (jnp.asarray(np.stack(x)) for x in zip(*links, strict=True))
  media = jnp.asarray(case.arrays["in.media"])
  ordinals = jnp.broadcast_to(jnp.arange(1, media.shape[1] + 1), media.shape[:2])
  mask = media_mask(index, first, ordinals)
  x, more = jnp.asarray(case.arrays["in.x"]), jnp.asarray(case.arrays["in.x_cached"])
  abstract = abstract_leaves(block, x, media, mask)
  params = import_weights(open_flamingo.gated_xattn(sizes, "", ()), abstract, case.weights)
  y, kept = block.apply(params, x, media, mask)
  # Where a token sees nothing and all previous images are asked for, the peer attends to every
  # image alike; here such a token gets nothing, as it does in the peer's other mode.
  counted = lambda mask: np.asarray(mask.any(-1)) | immediate
  note = "" if immediate else " of tokens that see an image"
  yield compare(f"block{note}", y, case.arrays["out.y"], counted(mask))
  last = jnp.repeat(mask[:, -1:], more.shape[1], axis=1)
  y, _ = block.apply(params, more, None, last, [kept])
  yield compare(f"block, cached media{note}", y, case.arrays["out.y_cached"], counted(last))


class GivenFeatures(nn.Module):
  """A tower for media that are features already."""

  def __call__(self, media: jax.Array, kind: str) -> jax.Array:
    return media


def flamingo(case: Case) -> Iterator[Result]:
  if "same_weights_as" in case.config:
    yield from _version_002(case, _Flamingo(case.sibling(case.config["same_weights_as"])))
    return
  ours, arrays = _Flamingo(case), case.arrays
  ids, attention = arrays["in.input_ids"], arrays["in.attention_mask"]
  inputs = ours.inputs(ids, attention, "prev_image")
  features = ours.apply(ours.media, method="embed_media")
  if "out.vision_tokens" in arrays:
    tower, pixels = ours.model.tower, ours.media["image"]
    own = {"params": ours.params["params"]["tower"]}
    tokens = tower.apply(own, pixels.reshape(-1, *pixels.shape[2:]), "image")
    yield compare("vision tokens", tokens, arrays["out.vision_tokens"])
  if "out.perceiver" in arrays:
    yield compare("resampler", features, arrays["out.perceiver"])
  logits = ours.apply(ours.media, *inputs["args"], **inputs["kwargs"])
  yield compare("logits, left-padded rows too", logits, arrays["out.logits"], attention > 0)
  yield from _greedy(case, ours, features, "prev_image", "out.greedy_ids")
  yield from _beams(case, ours, features)
  if "in.labels" in arrays:
    yield compare("loss", next_token_loss(logits, arrays["in.labels"]), arrays["out.loss"])
    yield from _gradients(case, ours, inputs)
  if "in.cont_ids" in arrays:
    yield _continuation(case, ours, features)
  if case.path(".published.safetensors").exists():
    yield _published(case, ours)


def _version_002(case: Case, ours: "_Flamingo") -> Iterator[Result]:
  """The text sees the image that follows, and decoded tokens see none."""
  arrays, attention = case.arrays, case.arrays["in.attention_mask"]
  for rule, name in (("next_image", "logits"), ("prev_image", "logits_attend_previous")):
    inputs = ours.inputs(arrays["in.input_ids"], attention, rule)
    logits = ours.apply(ours.media, *inputs["args"], **inputs["kwargs"])
    yield compare(f"logits, {rule}", logits, arrays[f"out.{name}"], attention > 0)
    if rule == "next_image":
      yield compare("loss", next_token_loss(logits, arrays["in.labels"]), arrays["out.loss"])
  features = ours.apply(ours.media, method="embed_media")
  yield from _greedy(case, ours, features, "next_image", "out.greedy_ids")


class _Flamingo:
  """A golden model as ours, with its weights and media."""

  def __init__(self, case: Case):
    self.ids = _special_ids(case)
    hf = _language_config(case)
    self.model_type = hf["model_type"]
    head_dims = dict(
      connector_head_dim=_head_dim(case.config.get("perceiver", FIXED)),
      head_dim=_head_dim(case.config.get("xattn", FIXED)),
    )
    self.section = open_flamingo.config_from_tensors(case.weights, **head_dims)
    self.section["lm"] = hf_decoders.config_from_hf(hf)
    self.mapping = open_flamingo.mapping(self.model_type, self.section)
    ignore = open_flamingo.ignored(self.model_type, self.section)
    tower = GivenFeatures()
    if "in.vision_x" in case.arrays:
      vision = dict(case.config, image_size=case.config["image"], patch_size=case.config["patch"])
      section = open_clip.config_from_open_clip(
        dict(vision_cfg=vision, quick_gelu=case.config["quick_gelu"])
      )
      section |= dict(mean=(0.0,), std=(1.0,))  # the pixels given are normalised
      tower = ViT(**_fields(section))
      table = open_clip.mapping(section, "vision_encoder.")
      self.mapping |= {f"tower/{path}": tensor for path, tensor in table.items()}
      ignore += r"|vision_encoder\.(proj|ln_post\..*)"
    self.media = {"image": _media(case)}
    self.model = VLM(
      tower=tower,
      connector=PerceiverResampler(**_fields(self.section["connector"])),
      lm=Decoder(
        **_fields(self.section["lm"]), fusion=GatedXattn(**_fields(self.section["fusion"]))
      ),
    )
    self.run = jax.jit(self.model.apply, static_argnames=("method", "length"))
    ids = case.arrays["in.input_ids"]
    inputs = self.inputs(ids, case.arrays["in.attention_mask"], "prev_image")
    self.abstract = abstract_leaves(self.model, self.media, *inputs["args"], **inputs["kwargs"])
    self.params = import_weights(self.mapping, self.abstract, case.weights, ignore)

  def apply(self, *args: Any, method: str | None = None, **kwargs: Any) -> Any:
    return self.run(self.params, *args, method=method, **kwargs)

  def inputs(self, ids: np.ndarray, attention: np.ndarray, rule: str) -> dict[str, Any]:
    """The text's arguments of `VLM.__call__`; every medium that is given has a slot."""
    links = [MEDIA_RULES[rule](row == self.ids["image"]) for row in ids]
    index, first = (np.stack(x) for x in zip(*links, strict=True))
    slots = self.media["image"].shape[1]
    ordinals = np.broadcast_to(np.arange(1, slots + 1), (len(ids), slots))
    positions = np.maximum(np.cumsum(attention, axis=1) - 1, 0)
    return dict(
      args=(ids.astype(np.int32), index),
      kwargs=dict(
        media_ordinal={"image": ordinals},
        media_first=first,
        positions=positions,
        segment_ids=attention.astype(np.int32),
      ),
    )


FIXED = "heads 2, dim_head 16"  # of variants whose config does not say


def _special_ids(case: Case) -> dict[str, int]:
  """Of the tokens that OpenFlamingo adds, which come last and in this order."""
  names = ("eoc", "image", "pad")
  if "eoc" in case.config:
    return {name: case.config[name] for name in names}
  embedding = re.compile(r"lang_encoder.*(embed_tokens|embed_in|wte)\.weight")
  [vocab] = {x.shape[0] for key, x in case.weights.items() if embedding.fullmatch(key)}
  return dict(zip(names, range(vocab - 3, vocab), strict=True))


def _head_dim(told: str) -> int:
  """`dim_head` in "depth 2, heads 2, dim_head 16"; "peer defaults" are 64."""
  sizes = dict(re.findall(r"(\w+) (\d+)", told))
  return int(sizes.get("dim_head", open_flamingo.HEAD_DIM))


def _fields(section: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in flax.core.freeze(section).items() if k != "type"}  # to be hashed


def _media(case: Case) -> np.ndarray:
  """Features [b, m, v, d] or pixels [b, m, h, w, c]; one frame each."""
  if "in.vision_x" in case.arrays:
    return np.moveaxis(case.arrays["in.vision_x"][:, :, 0], 2, -1)
  return case.arrays["in.vision_features"][:, :, 0]


def _language_config(case: Case) -> dict[str, Any]:
  """The language model's config.json, sizes from the shapes, heads from the case's config."""
  shapes = {key: x.shape for key, x in case.weights.items()}
  of = lambda pattern: next(shape for key, shape in shapes.items() if re.search(pattern, key))
  numbers = [re.search(r"^lang_encoder\..*?\.(\d+)\.decoder_layer\.", key) for key in shapes]
  vocab, width = of(r"lang_encoder.*(embed_tokens|embed_in|wte)")
  depth = 1 + max(int(m[1]) for m in numbers if m)
  inverse = [shape for key, shape in shapes.items() if key.endswith("inv_freq")]
  rotated = 2 * inverse[0][0] if inverse else 0
  heads = case.config.get("heads") or width // rotated
  hidden = dict(vocab_size=vocab, hidden_size=width, num_hidden_layers=depth)
  hidden["num_attention_heads"] = heads
  families = {
    "llama": lambda: (
      hidden | dict(intermediate_size=of("gate_proj")[0], rms_norm_eps=1e-6, hidden_act="silu")
    ),
    "opt": lambda: (
      hidden
      | dict(
        model_type="opt",
        ffn_dim=of(r"\.fc1\.weight")[0],
        max_position_embeddings=of("embed_positions")[0] - 2,
      )
    ),
    "gptneox": lambda: (
      hidden
      | dict(
        model_type="gpt_neox",
        intermediate_size=of("dense_h_to_4h.weight")[0],
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        rotary_pct=rotated * heads / width,
      )
    ),
    "mpt": lambda: dict(
      vocab_size=vocab,
      d_model=width,
      n_layers=depth,
      n_heads=heads,
      expansion_ratio=of("up_proj")[0] // width,
    ),
  }
  return {"model_type": case.config["decoder"]} | families[case.config["decoder"]]()


def _greedy(
  case: Case, ours: _Flamingo, features: jax.Array, rule: str, name: str
) -> Iterator[Result]:
  ids = case.arrays["in.input_ids"]
  inputs, batch = _prompts(case, ours, features, rule)
  new = case.arrays[name].shape[1] - ids.shape[1]
  made = generate(
    ours.model,
    ours.params["params"],
    batch,
    max_new_tokens=new,
    stop_ids=np.asarray([ours.ids["eoc"]]),
    pad_id=ours.ids["pad"],
  )
  want = case.arrays[name][:, ids.shape[1] :]
  yield same_tokens(f"{new} greedy tokens, left-padded rows too", made.tokens, want)
  if "out.greedy_scores" in case.arrays:
    yield _scores(case, ours, features, inputs, want)


def _prompts(
  case: Case, ours: _Flamingo, features: jax.Array, rule: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The text's arguments, and the batch that `decode.read_prompts` takes."""
  inputs = ours.inputs(case.arrays["in.input_ids"], case.arrays["in.attention_mask"], rule)
  batch = {
    "features": features,
    "tokens": inputs["args"][0],
    "media_index": inputs["args"][1],
    **{key: inputs["kwargs"][key] for key in ("media_first", "positions", "segment_ids")},
    "media_ordinal": inputs["kwargs"]["media_ordinal"]["image"],
  }
  return inputs, batch


def _beams(case: Case, ours: _Flamingo, features: jax.Array) -> Iterator[Result]:
  """Under both length penalties; "alt" are those of a later transformers."""
  ids = case.arrays["in.input_ids"]
  drawn = case.variant in DRAWS_IMAGE
  rows = ~(ids == ours.ids["image"]).any(axis=1) if drawn else np.ones(len(ids), bool)
  _, batch = _prompts(case, ours, features, "prev_image")
  old = case.versions["transformers"].startswith("4.28")
  for name in [name for name in case.arrays if "beam" in name]:
    [(count, penalty)] = re.findall(r"beam(\d+)_lp([-\d.]+)", name)
    want = case.arrays[name][:, ids.shape[1] :]
    new, beams = want.shape[1], int(count)
    ranking = "whole" if old and name.startswith("out.") else "apart"
    found = beam_search(
      ours.model,
      ours.params["params"],
      *read_prompts(ours.model, ours.params["params"], batch, new, branches=beams),
      num_beams=beams,
      max_new_tokens=new,
      stops=stop_at([ours.ids["eoc"]]),
      pad_id=ours.ids["pad"],
      prompt_lengths=np.full(len(ids), ids.shape[1]),  # padding counts there
      ranking=ranking,
      length_penalty=float(penalty),
    )
    note = " of rows without images" * drawn
    what = f"{beams} beams{note}, length penalty {penalty}, {ranking}"
    yield same_tokens(what, np.asarray(found.tokens)[rows, 0], want[rows])


def _scores(case: Case, ours: _Flamingo, features, inputs, want: np.ndarray) -> Result:
  """Logits of each decoding step, of rows that have not stopped."""
  ids, index = inputs["args"]
  new = want.shape[1]
  logits, read = ours.apply(features, ids, index, method="prefill", length=new, **inputs["kwargs"])
  steps = [logits]
  for i in range(new - 1):
    seen = (np.arange(new) <= i)[None, None]
    token = want[:, i : i + 1].astype(np.int32)
    logits, read = ours.apply(token, read, seen, method="extend")
    steps.append(logits)
  stopped = np.cumsum(want == ours.ids["eoc"], axis=1) - (want == ours.ids["eoc"]) > 0
  scores = np.concatenate(steps, axis=1)
  return compare("logits of every step", scores, case.arrays["out.greedy_scores"], ~stopped)


def _gradients(case: Case, ours: _Flamingo, inputs: Mapping[str, Any]) -> Iterator[Result]:
  """Of what OpenFlamingo trains, under its own names."""

  def loss(params):
    logits = ours.model.apply(params, ours.media, *inputs["args"], **inputs["kwargs"])
    return next_token_loss(logits, case.arrays["in.labels"])

  tree = jax.jit(jax.grad(loss))(ours.params)["params"]
  flat = {path: np.asarray(x) for path, x in traverse_util.flatten_dict(tree, sep="/").items()}
  theirs = to_theirs(ours.mapping, flat)
  names = [name.removeprefix("out.grad/") for name in case.arrays if name.startswith("out.grad/")]
  [embedding] = (name for name in names if re.search(r"embed_tokens|wte|embed_in", name))
  whole = theirs[embedding]
  yield compare("gradient of the embedding", whole, case.arrays["out.grad_embed_unmasked"])
  new = [ours.ids["eoc"], ours.ids["image"]]  # the rows that are trained
  theirs[embedding] = np.zeros_like(whole)
  theirs[embedding][new] = whole[new]
  errors = [compare("", theirs[name], case.arrays[f"out.grad/{name}"]).error for name in names]
  what = f"gradients of {len(errors)} trained tensors, each by its own largest"
  yield Result(what, max(errors), tolerance=GRADIENT_TOLERANCE)
  norm = np.sqrt(sum(np.square(theirs[name], dtype=np.float64).sum() for name in names))
  yield compare("their norm", norm, case.arrays["out.grad_norm"])


def _continuation(case: Case, ours: _Flamingo, features: jax.Array) -> Result:
  """More text against cached media: every token sees the prompt's last image."""
  prompt, more = case.arrays["in.input_ids"], case.arrays["in.cont_ids"]
  last = (prompt == ours.ids["image"]).sum(axis=1, keepdims=True)
  inputs = ours.inputs(more, np.ones_like(more), "prev_image")
  index = np.broadcast_to(last, more.shape).astype(np.int32)
  kwargs = inputs["kwargs"] | dict(media_first=index)
  logits = ours.apply(ours.media, more.astype(np.int32), index, **kwargs)
  return compare("continuation on cached media", logits, case.arrays["out.cached_cont_logits"])


def _published(case: Case, ours: _Flamingo) -> Result:
  """The trained part and the language model, put together, are the whole model again."""
  from safetensors.numpy import load_file

  trained = load_file(case.path(".published.safetensors"))
  whole = re.compile(r"lang_encoder\.(?!old_decoder|gated_cross|.*gated_cross_attn_layer)(.*)")
  base = {
    m[1].replace("decoder_layer.", ""): x
    for key, x in case.weights.items()
    if (m := whole.match(key))
  }
  tensors = open_flamingo.combined(trained, base, ours.model_type)
  ignore = open_flamingo.ignored(ours.model_type, ours.section)
  again = import_weights(ours.mapping, ours.abstract, tensors, ignore)
  equal = jax.tree.map(np.array_equal, again, ours.params)
  return Result(
    "published file with its language model", 0.0 if all(jax.tree.leaves(equal)) else np.inf
  )


CHECKS: dict[str, Check] = {
  "of_perceiver": perceiver,
  "of_xattn": xattn,
  "of_flamingo": flamingo,
}
