"""Every family of causal language models is the one decoder under other settings."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models.attention import causal_mask
from medflax.models.language.decoder import Decoder
from medflax.models.language.layer import QK_NORMS
from medflax.models.language.positions import ROPE_SCALINGS, alibi_slopes, rotary
from medflax.models.reading import with_room
from medflax.pretrained.hf_decoders import config_from_hf, ignored, mapping
from tests.golden_cases.base import Case, abstract_leaves, compare, import_weights

VARIANTS = (
  *("llama", "llama_gqa", "llama3_rope", "mistral_sw", "qwen2", "qwen3"),
  *("gemma", "gemma2", "gemma3_text", "gpt2", "biogpt", "opt", "opt_350m_style"),
  *("gpt_neox", "gpt_neox_seq", "gptj", "phi", "mpt"),
)
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than computing here
SIZES = dict(vocab_size=11, width=8, depth=3, heads=2, kv_heads=1, mlp_width=12)
# Settings that act on other tokens, on positions or on the order of the parts.
SETTINGS = {
  "window": dict(windows=(3,)),
  "windows of some layers": dict(windows=(3, 0), rope_local_theta=100.0, attn_softcap=5.0),
  "learned": dict(rope_theta=0.0, learned_positions=16, position_offset=2, residual="post"),
  "alibi": dict(rope_theta=0.0, alibi_bias_max=8.0, norm="layer_norm_no_bias", qk_norm="all"),
  "partly rotated": dict(rope_dim=2, rope_interleaved=True, residual="parallel_shared"),
  "all else": dict(
    **dict(
      residual="sandwich", norm="zero_rms_norm", qk_norm="head", embed_width=4, embed_scale=3.0
    ),
    **dict(inverse_depth_scale=True, logit_softcap=2.0, mlp="plain", mlp_bias=True),
  ),
}


def decoder(lm, **fields):
  return Decoder(**{k: v for k, v in lm.items() if k != "type"} | fields)


def inputs(tokens, segment_ids, positions):
  """Arguments for whole rows of text."""
  slots = jnp.arange(tokens.shape[1])
  mask = causal_mask(slots, jnp.asarray(segment_ids), slots, jnp.asarray(segment_ids))
  return jnp.asarray(tokens), jnp.asarray(positions), mask, None, None


EXAMPLE = inputs(*3 * [np.ones((1, 2), np.int32)])


def random_params(model):
  """Parameters none of which are zero."""
  rng = np.random.default_rng(0)
  leaves = abstract_leaves(model, *EXAMPLE)
  flat = {path: rng.normal(0, 0.3, x.shape).astype(x.dtype) for path, x in leaves.items()}
  return {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}


def decode(model, first, params, token, segment_ids, positions, parts, slot):
  """Logits of one more token a row, which lies at `slot`, and the cache's parts with it."""
  slots, place = jnp.arange(segment_ids.shape[1]), positions[:, slot][:, None]
  mask = causal_mask(slot[None], jnp.ones_like(token), slots, segment_ids)
  cached = dict(cache=parts, key_positions=positions, index=slot - first, keep=True)
  y, room = model.apply(params, token, place, mask, None, None, **cached)
  return y[:, 0], (parts[0], room)


def jit(function, *args, **kwargs):
  return jax.jit(functools.partial(function, *args, **kwargs), compiler_options=QUICK)


def decoded(model, params, tokens, padding, kept, first):
  """Logits behind each of `tokens` from slot `first` on, which follow left-padded prompts."""
  step, parts = jit(decode, model, first), with_room(kept, tokens.shape[1] - first)
  segment_ids = np.pad(padding, ((0, 0), (0, tokens.shape[1] - first)), constant_values=1)
  positions = np.maximum(np.cumsum(segment_ids, axis=1) - 1, 0)
  for i in range(first, tokens.shape[1]):
    text = (jnp.asarray(a) for a in (tokens[:, i : i + 1], segment_ids, positions))
    y, parts = step(params, *text, parts, jnp.asarray(i))
    yield np.asarray(y)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parity_with_transformers(golden_folder, variant):
  """Whole, right- and left-padded rows, and tokens decoded greedily from the cache."""
  case = Case(golden_folder("hf_decoders"), variant)
  arrays, family, lm = case.arrays, case.hf["model_type"], config_from_hf(case.hf)
  model = decoder(lm)
  leaves, ignore = abstract_leaves(model, *EXAMPLE), ignored(family, lm)
  params = import_weights(mapping(family, lm), leaves, case.weights, ignore)

  whole, padding = np.ones_like(arrays["in.ids"]), arrays["in.left_mask"]
  tokens = np.concatenate([arrays[f"in.{kind}ids"] for kind in ("", "right_", "left_")])
  segments = np.concatenate([whole, arrays["in.right_mask"], padding])
  positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0)
  greedy = arrays["out.greedy_ids"]
  fed = greedy[:, :-1]
  run = jit(model.apply, keep=True)
  logits, kept = run(params, *inputs(tokens, segments, positions))
  left = arrays.get("out.left_logits_maskpos", arrays["out.left_logits"])
  expected = np.concatenate([arrays["out.logits"], arrays["out.right_logits"], left])
  assert compare("logits", logits, expected, segments > 0).passed

  rows, prompt = padding.shape
  kept = jax.tree.map(lambda a: a[:, -rows:], kept)  # layers first; the left-padded rows
  steps = [np.asarray(logits[-rows:, -1])]
  steps += decoded(model, params, fed, padding, kept, prompt)
  y = np.stack(steps, axis=1)
  assert compare("scores", y, arrays["out.greedy_scores"]).passed
  np.testing.assert_array_equal(y.argmax(-1), greedy[:, prompt:])


@pytest.mark.parametrize("name", SETTINGS)
def test_decoding_is_the_whole_row_token_by_token(name):
  """From the cache, behind padding or not, as in one unpadded row at once."""
  model = Decoder(**SIZES | SETTINGS[name])
  params = random_params(model)
  row = np.random.default_rng(1).integers(0, 11, (1, 8))
  whole = jit(model.apply)(params, *inputs(row, np.ones_like(row), np.arange(8)[None]))[0]

  tokens = np.concatenate([row, np.roll(row, 2)])
  padding = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
  positions = np.maximum(np.cumsum(padding, axis=1) - 1, 0)
  prompt = inputs(tokens[:, :5], padding, positions)
  logits, kept = jit(model.apply, keep=True)(params, *prompt)
  y = np.stack([logits[:, -1], *decoded(model, params, tokens, padding, kept, 5)], axis=1)
  np.testing.assert_allclose(y, np.stack([whole[0, 4:], whole[0, 2:-2]]), atol=1e-4)


def test_a_window_ends_what_a_token_sees():
  model = Decoder(**SIZES | dict(depth=2, windows=(3, 1)))
  params = random_params(model)
  at = np.tile(np.arange(8), (2, 1))
  tokens = at.copy()
  tokens[1, 2] = 9
  y, _ = jit(model.apply)(params, *inputs(tokens, np.ones_like(tokens), at))
  np.testing.assert_array_equal(np.flatnonzero((y[0] != y[1]).any(-1)), [2, 3, 4])


def test_deeper_models_are_no_longer_programs():
  """Layers that differ are scanned like layers that do not."""

  def size(depth):
    model = Decoder(**SIZES | dict(depth=depth, windows=(4, 4, 0), rope_local_theta=10.0))
    params = abstract_leaves(model, *EXAMPLE)
    assert params["groups/layer_0/attn/query/kernel"].shape[0] == depth
    run = lambda key: model.apply(model.init(key, *EXAMPLE), *EXAMPLE)[0]
    return len(str(jax.make_jaxpr(run)(jax.random.key(0))).splitlines())

  assert size(30) < 1.5 * size(3)


def test_query_scale_by_depth_is_in_the_queries():
  model = Decoder(**SIZES | dict(inverse_depth_scale=True))
  params = random_params(model)
  query = params["params"]["groups"]["layer_0"]["attn"]["query"]
  y = jit(model.apply)(params, *EXAMPLE)[0]
  query["kernel"] = query["kernel"] / np.array([1, 2, 3], np.float32)[:, None, None, None]
  same = jit(Decoder(**SIZES).apply)(params, *EXAMPLE)[0]
  np.testing.assert_allclose(y, same, atol=1e-5)


def test_queries_and_keys_are_normalised_by_head_or_together():
  x = jnp.array([[[[3.0, 4.0], [30.0, 40.0]]]])
  norm = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  heads = np.array([[0.6, 0.8], [0.6, 0.8]])
  np.testing.assert_allclose(QK_NORMS["head"](norm, x)[0, 0], heads, rtol=1e-6)
  together = np.array([[3, 4], [30, 40]]) / np.sqrt(2525)
  np.testing.assert_allclose(QK_NORMS["all"](norm, x)[0, 0], together, rtol=1e-6)


def test_interleaved_channels_are_the_same_rotation():
  x = jax.random.normal(jax.random.key(0), (1, 3, 2, 8))
  at, frequency = jnp.array([[0, 5, 9]]), jnp.array([1.0, 0.1])
  order = np.array([0, 2, 1, 3, 4, 5, 6, 7])
  y = jit(rotary, interleaved=True)(x, at, frequency)
  np.testing.assert_allclose(y[..., order], jit(rotary)(x[..., order], at, frequency), atol=1e-6)
  np.testing.assert_array_equal(y[..., 4:], x[..., 4:])
  np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)


def test_llama3_keeps_fast_channels_and_slows_slow_ones():
  frequency = jnp.array([1.0, 0.01, 1e-6])
  scale = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=1024)
  fast, between, slow = ROPE_SCALINGS["llama3"](frequency, **scale) / frequency
  assert fast == 1 and slow == 1 / 8
  assert 1 / 8 < between < 1


@pytest.mark.parametrize(
  ("heads", "slopes"), [(4, [1 / 4, 1 / 16, 1 / 64, 1 / 256]), (3, [1 / 16, 1 / 256, 1 / 4])]
)
def test_alibi_slopes(heads, slopes):
  np.testing.assert_allclose(alibi_slopes(heads, 8.0), slopes)
