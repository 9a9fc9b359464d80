"""Every family of causal language models is the one decoder under other settings."""

import functools
import json

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models.attention import causal_mask
from medflax.models.language.decoder import Decoder
from medflax.pretrained.hf_decoders import NAMES, config_from_hf, ignored, mapping
from medflax.pretrained.mapping import to_ours, to_theirs

VARIANTS = (
  *("llama", "llama_gqa", "llama3_rope", "mistral_sw", "qwen2", "qwen3"),
  *("gemma", "gemma2", "gemma3_text", "gpt2", "biogpt", "opt", "opt_350m_style"),
  *("gpt_neox", "gpt_neox_seq", "gptj", "phi", "mpt"),
)
TOLERANCE = 1e-4  # of the largest logit


def decoder(lm, **fields):
  return Decoder(**{k: v for k, v in lm.items() if k != "type"} | fields)


def abstract(model):
  """The leaves of a decoder by path, without making any."""
  ids = jnp.zeros((1, 2), jnp.int32)
  mask = jnp.ones((1, 2, 2), bool)
  tree = jax.eval_shape(model.init, jax.random.key(0), ids, ids, mask, None, None)
  return flax.traverse_util.flatten_dict(nn.unbox(tree)["params"], sep="/")


def nested(flat):
  return {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}


def prefill(model, params, tokens, segment_ids, positions, cache_size):
  """Logits of whole rows and the cache behind them."""
  slots = jnp.arange(tokens.shape[1])
  mask = causal_mask(slots, segment_ids, slots, segment_ids)
  return model.apply(params, tokens, positions, mask, None, None, cache_size=cache_size)


def decode(model, params, token, segment_ids, positions, cache, index):
  """Logits of one more token a row, which lies at slot `index`, and the cache with it."""
  slots = jnp.arange(segment_ids.shape[1])
  mask = causal_mask(index[None], jnp.ones_like(token), slots, segment_ids)
  return model.apply(params, token, positions, mask, None, None, cache=cache, index=index)


def error(y, expected):
  return np.abs(np.asarray(y) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_parity_with_transformers(golden, golden_folder, variant):
  """Whole, right- and left-padded rows, and eight tokens decoded greedily from the cache."""
  torch, arrays, _ = golden("hf_decoders", variant)
  hf = json.loads((golden_folder("hf_decoders") / f"{variant}.config.json").read_text())
  lm = config_from_hf(hf)
  model, table = decoder(lm), mapping(hf["model_type"], lm)
  ours = to_ours(table, abstract(model), torch, ignore=ignored(hf["model_type"], lm))
  theirs = to_theirs(table, ours)
  assert all(np.array_equal(theirs[key], torch[key]) for key in theirs)
  params = nested(ours)

  whole = np.ones_like(arrays["in.ids"])
  tokens = np.concatenate([arrays[f"in.{kind}ids"] for kind in ("", "right_", "left_")])
  segments = np.concatenate([whole, arrays["in.right_mask"], arrays["in.left_mask"]])
  positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0)
  rows, prompt = arrays["in.ids"].shape
  total = arrays["out.greedy_ids"].shape[1]
  run = jax.jit(functools.partial(prefill, model, cache_size=total))
  logits, cache = run(params, *map(jnp.asarray, (tokens, segments, positions)))
  left = arrays.get("out.left_logits_maskpos", arrays["out.left_logits"])
  expected = np.concatenate([arrays["out.logits"], arrays["out.right_logits"], left])
  seen = segments > 0
  assert error(np.asarray(logits)[seen], expected[seen]) < TOLERANCE

  cache = jax.tree.map(lambda a: a[:, -rows:], cache)  # groups first; the left-padded rows
  padding = arrays["in.left_mask"]
  segment_ids = np.pad(padding, ((0, 0), (0, total - prompt)), constant_values=1)
  greedy, y = arrays["out.greedy_ids"], logits[-rows:, -1]
  step = jax.jit(functools.partial(decode, model))
  for i in range(prompt, total):
    assert error(y, arrays["out.greedy_scores"][:, i - prompt]) < TOLERANCE
    np.testing.assert_array_equal(y.argmax(-1), greedy[:, i])
    place = padding.sum(1, keepdims=True) + i - prompt
    token = greedy[:, i : i + 1]
    inputs = (jnp.asarray(a) for a in (token, segment_ids, place))
    y, cache = step(params, *inputs, cache, jnp.asarray(i))
    y = y[:, 0]


def test_every_family_has_a_golden_variant():
  assert len(NAMES) == 14 and len(VARIANTS) == 18
