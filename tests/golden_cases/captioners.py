"""GIT on images and on the frames of videos."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from medflax.models.captioner import build_captioner
from medflax.pretrained import hf_captioners
from tests.golden_cases.base import (
  Case,
  Check,
  Result,
  abstract_leaves,
  compare,
  import_weights,
  same_tokens,
)


def captioner(case: Case) -> Iterator[Result]:
  section = hf_captioners.config_from_hf(case.hf)
  section["tower"] |= dict(mean=(0.0,), std=(1.0,))  # the pixels given are normalised
  model = build_captioner(section)
  pixels = case.arrays["in.pixel_values"]
  media = jnp.asarray(np.moveaxis(pixels if pixels.ndim == 5 else pixels[:, None], 2, -1))
  tokens = jnp.asarray(case.arrays["in.input_ids"], jnp.int32)
  seen = jnp.asarray(case.arrays["in.attention_mask"]) > 0
  abstract = abstract_leaves(model, media, tokens, seen)
  table = hf_captioners.mapping(section)
  params = import_weights(table, abstract, case.weights, hf_captioners.IGNORE)
  params = jax.tree.map(jnp.asarray, params)
  logits, _ = jax.jit(model.apply)(params, media, tokens, seen)
  visual = logits.shape[1] - tokens.shape[1]
  there = np.concatenate([np.ones((len(tokens), visual), bool), np.asarray(seen)], axis=1)
  yield compare("logits", logits, case.arrays["out.logits"], there)

  greedy = case.arrays["out.greedy_ids"]
  total = greedy.shape[1]
  ids, scores = [jnp.asarray(greedy[:, :1], jnp.int32)], []
  y, cache = model.apply(params, media, ids[0], cache_size=total)
  step = jax.jit(lambda *args: model.apply(params, *args, method="decode_step"))
  for _ in range(1, total):
    scores.append(y[:, -1:])
    ids.append(scores[-1].argmax(-1).astype(jnp.int32))
    y, cache = step(ids[-1], cache)
  yield compare("scores of decoding", np.concatenate(scores, 1), case.arrays["out.greedy_scores"])
  yield same_tokens("greedy tokens", np.concatenate(ids, 1), greedy)


CHECKS: dict[str, Check] = {"git": captioner}
