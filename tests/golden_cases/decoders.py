"""Causal language models of Hugging Face."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from medflax.models.attention import causal_mask
from medflax.models.language.decoder import Decoder
from medflax.models.reading import with_room
from medflax.pretrained import hf_decoders
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

BFLOAT16_TOLERANCE = 2e-2


def decoder(case: Case) -> Iterator[Result]:
  lm, kind, arrays = hf_decoders.config_from_hf(case.hf), case.hf["model_type"], case.arrays
  fields = {name: value for name, value in lm.items() if name != "type"}
  model = Decoder(**fields)
  one, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2, 2), bool)
  abstract = abstract_leaves(model, one, one, mask, None, None)
  ignore = hf_decoders.ignored(kind, lm)
  params = import_weights(hf_decoders.mapping(kind, lm), abstract, case.weights, ignore)

  @jax.jit
  def whole(params, tokens, seen):
    slots = jnp.arange(tokens.shape[1])
    positions = jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)
    inside = causal_mask(slots, seen, slots, seen)
    return model.apply(params, tokens, positions, inside, None, None, keep=True)

  @jax.jit
  def step(token, parts, seen, slot):
    slots, positions = jnp.arange(seen.shape[1]), jnp.cumsum(seen, axis=1) - 1
    inside = causal_mask(slot[None], jnp.ones_like(token), slots, seen)
    place = jax.lax.dynamic_slice_in_dim(positions, slot, 1, axis=1)
    cached = dict(cache=parts, key_positions=positions, index=slot - ids.shape[1], keep=True)
    logits, room = model.apply(params, token, place, inside, None, None, **cached)
    return logits, (parts[0], room)

  ids = arrays["in.ids"]
  logits, _ = whole(params, ids, np.ones_like(ids))
  yield compare("logits", logits, arrays["out.logits"])
  yield compare("loss", next_token_loss(logits, ids), arrays["out.loss"])
  for side in ("right", "left"):
    seen = arrays[f"in.{side}_mask"]
    logits, kept = whole(params, arrays[f"in.{side}_ids"], seen)
    # With positions from the mask, where the peer's forward would count the padding.
    want = arrays.get(f"out.{side}_logits_maskpos", arrays[f"out.{side}_logits"])
    yield compare(f"logits, {side}-padded", logits, want, seen > 0)
  # The left-padded rows go on.
  new = arrays["out.greedy_ids"].shape[1] - ids.shape[1]
  seen = np.pad(seen, ((0, 0), (0, new)), constant_values=1)
  logits, made, scores, parts = logits[:, -1:], [], [], with_room(kept, new)
  for i in range(ids.shape[1], seen.shape[1]):
    scores.append(logits)
    made.append(jnp.argmax(logits, axis=-1))
    logits, parts = step(made[-1], parts, seen, jnp.asarray(i))
  tokens, logits = np.concatenate(made, axis=1), np.concatenate(scores, axis=1)
  yield same_tokens(f"{new} greedy tokens, left-padded", tokens, arrays["out.greedy_ids"][:, -new:])
  yield compare("logits of every step", logits, arrays["out.greedy_scores"])
  rounded = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16).astype(x.dtype), params)
  alone = compare("", whole(rounded, ids, np.ones_like(ids))[0], arrays["out.logits"]).error
  yield in_bfloat16(Decoder(**fields, dtype=jnp.bfloat16), params, ids, arrays["out.logits"], alone)


def in_bfloat16(model, params, ids, want, alone: float) -> Result:
  """Logits computed in bfloat16.

  Args:
    alone: the error of rounding the weights and nothing else, float32 otherwise. Where random
      weights make so much of it that PyTorch in bfloat16 exceeds the tolerance too (Gemma, LLaMA,
      Qwen), thrice this is allowed: activations are rounded as often, before and behind.
  """
  slots, seen = jnp.arange(ids.shape[1]), jnp.ones_like(ids)
  inside = causal_mask(slots, seen, slots, seen)
  positions = jnp.broadcast_to(slots, ids.shape)
  logits, _ = jax.jit(model.apply)(params, ids, positions, inside, None, None)
  result = compare(f"logits in bfloat16 (weights alone {alone:.1e})", logits, want)
  return dataclasses.replace(result, tolerance=max(BFLOAT16_TOLERANCE, 3 * alone))


CHECKS: dict[str, Check] = {"hf_decoders": decoder}
