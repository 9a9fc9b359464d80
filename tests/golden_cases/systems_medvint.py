"""MedVInT-TD, MedVInT-TE and PMC-CLIP's ResNet."""

import json
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from medflax.pretrained.systems import medvint
from tests.golden_cases.base import Case, Check, Result, compare, next_token_loss
from tests.golden_cases.systems import System, greedy, margin, row, step_logits, weighted_loss
from tests.golden_cases.vision import MEDVINT_PARTS, channels_last

PUBLISHED = ".published_names.safetensors"


def _told(case: Case, field: str, pattern: str) -> int:
  """A number in a text of the case's config or notes; 1 where there is none."""
  text = case.config.get(field) or json.loads(case.path(".json").read_text()).get(field, "")
  return int((re.search(pattern, text) or [0, 1])[1])


def decoder(case: Case) -> Iterator[Result]:
  """TD: tower, embeddings, logits, loss and greedy decoding; a LoRA in its spellings, merged."""
  images = channels_last(case.arrays["in.images"])
  tower = case.config["resnet"]
  untold = medvint.Untold(
    image_size=images.shape[1],
    clip_heads=tower["num_attention_heads"] if isinstance(tower, dict) else 0,
    query_heads=_told(case, "decoder", r"(\d+) heads"),
    alpha=_told(case, "note", r"alpha ?(\d+)"),
  )
  make = lambda tensors, **options: System(medvint.td_checkpoint(tensors, untold, **options))
  system = make(dict(case.weights))
  media = {"image": images[:, None]}
  features, seen = system.apply(media, method="embed_media", catch="tower.__call__")
  yield compare("tower", *_tokens(seen, case.arrays["out.image_encoder"]))
  latents = features.shape[2]
  text = _after_image(case.arrays["in.input_ids"], latents)
  inputs = (media, jnp.asarray(text.tokens), jnp.asarray(text.media_index))
  logits, embeds = system.apply(*inputs, **text.options("image"), catch="lm._embed")
  yield compare("embeddings", embeds, case.arrays["out.inputs_embeds"])
  yield compare("logits", logits, case.arrays["out.logits"])
  yield compare("logits to generate from", logits, case.arrays["out.generate_logits"])
  labels = case.arrays["in.labels"][:, -logits.shape[1] :]  # their MLP variant cuts places off
  yield compare("loss", next_token_loss(logits, labels), case.arrays["out.loss"])
  want = case.arrays["out.greedy_ids"]
  yield greedy(system, features, text, want)
  scores = step_logits(system, features, text, want)
  yield compare("logits of every step", scores, case.arrays["out.greedy_scores"])
  yield margin(scores, case.arrays["out.greedy_margin"])
  for name, weights in _spellings(case):
    for merge in (False, True):
      logits = make(weights, merge_lora=merge).apply(*inputs, **text.options("image"))
      what = f"logits, {name}{', merged' if merge else ''}"
      yield compare(what, logits, case.arrays["out.logits"])


def _tokens(got, want):
  """Theirs may be the mean of the tower's tokens, or a stage's pixels [b, c, h, w]."""
  if want.ndim == 4:
    want = want.reshape(*want.shape[:2], -1).swapaxes(1, 2)
  if want.shape[1] == got.shape[1] + 1:  # the class token is not handed on
    want = want[:, 1:]
  return (got.mean(1, keepdims=True) if want.shape[1] == 1 else got), want


def _after_image(ids: np.ndarray, latents: int):
  """The row of an image's latents, then the text, without padding."""
  soft = np.broadcast_to(np.arange(1, latents + 1), (len(ids), latents))
  soft = np.concatenate([soft, np.zeros_like(ids)], axis=1)
  tokens = np.concatenate([np.zeros((len(ids), latents), ids.dtype), ids], axis=1)
  return row(tokens, np.ones_like(tokens), soft)


def _spellings(case: Case) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
  """The same weights as the versions of peft name them, if there is a LoRA."""
  if not any(".lora_A." in key for key in case.weights):
    return
  yield "as given", dict(case.weights)
  adapted = {key.split(".lora_A.")[0] for key in case.weights if ".lora_A." in key}
  wrapped = {f"{module}.weight": f"{module}.base_layer.weight" for module in adapted}
  yield "newest names", {wrapped.get(key, key): x for key, x in case.weights.items()}
  if case.path(PUBLISHED).exists():
    yield "published names", load_file(case.path(PUBLISHED))


def encoder(case: Case) -> Iterator[Result]:
  """TE: tower, LLaMA's states, log-probabilities and loss of the masked places."""
  images = channels_last(case.arrays["in.image"])
  media = {"image": images[:, None]}
  want = case.arrays["out.image_encoder"]
  common = dict(
    image_size=images.shape[1],
    query_heads=_told(case, "qformer", r"(\d+) heads"),
    fused_heads=_told(case, "fusion", r"(\d+) heads"),
    alpha=_told(case, "lora", r"alpha ?(\d+)"),
  )
  # Nothing in a case tells the heads of its CLIP but what the tower returns.
  width = want.shape[-1]
  for clip_heads in (4, *(n for n in range(1, width) if width % n == 0)):
    untold = medvint.Untold(clip_heads=clip_heads, **common)
    system = System(medvint.te_checkpoint(dict(case.weights), untold))
    features, tower = system.apply(media, method="embed_media", catch="tower.__call__")
    result = compare("tower", *_tokens(tower, want))
    if result.passed or want.ndim == 4:
      break
  yield result
  ids, seen = case.arrays["in.input_ids"], case.arrays["in.attention_mask"]
  # Theirs sees padding in the last block alone: a token that padding sees sees it there.
  t = ids.shape[1]
  mask = jnp.asarray(np.tril(np.ones((t, t), bool)) & (seen[:, None] > 0))
  positions = jnp.broadcast_to(jnp.arange(t), ids.shape)
  everywhere = jnp.ones((*ids.shape, 1), bool)
  lm = lambda m, *inputs: m.lm(*inputs)[0]
  inputs = (jnp.asarray(ids, jnp.int32), positions, mask, features, everywhere)
  logits, states = system.apply(*inputs, method=lm, catch="norm.__call__")
  yield compare("states of the text", states, case.arrays["out.text_encoder"], seen > 0)
  log_probs = jax.nn.log_softmax(logits)
  yield compare("log-probabilities", log_probs, case.arrays["out.log_probs"], seen > 0)
  labels = case.arrays["in.labels"]
  loss = weighted_loss(logits, labels, (labels > 0).astype(np.float32))  # 0 is not counted
  yield compare("loss", loss, case.arrays["out.loss"])


def check(case: Case) -> Iterator[Result]:
  """A part, known by a tensor of its own, or one of the two systems."""
  parts = [part for key, part in MEDVINT_PARTS.items() if key in case.weights]
  return (parts or [encoder if "mlm_projection" in case.weights else decoder])[0](case)


CHECKS: dict[str, Check] = {"medvint": check}
