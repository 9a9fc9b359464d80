"""Checkpoints of causal language models: every family there and back, from small configs."""

import jax
import numpy as np
import pytest

from medflax.models.fusion.gated_xattn import GatedXattn
from medflax.models.language.decoder import Decoder
from medflax.pretrained.hf_decoders import NAMES, config_from_hf, ignored, mapping
from medflax.pretrained.mapping import to_ours, to_theirs
from medflax.utils import UserError
from tests.golden_cases.base import abstract_leaves

SIZES = dict(
  **dict(vocab_size=11, hidden_size=8, num_hidden_layers=5, num_attention_heads=4),
  **dict(intermediate_size=12, max_position_embeddings=16),
)
LLAMA = SIZES | dict(hidden_act="silu", rms_norm_eps=1e-6, num_key_value_heads=2)
GPT2 = dict(vocab_size=11, n_embd=8, n_layer=5, n_head=2, n_positions=16, layer_norm_epsilon=1e-5)
CONFIGS = {
  "biogpt": SIZES | dict(hidden_act="gelu"),
  "gemma": LLAMA | dict(head_dim=4),
  "gemma2": LLAMA | dict(head_dim=4, sliding_window=3, query_pre_attn_scalar=4),
  "gemma3_text": LLAMA | dict(head_dim=4, sliding_window=3, query_pre_attn_scalar=4),
  "gpt2": GPT2,
  "gpt_neox": SIZES | dict(hidden_act="gelu", layer_norm_eps=1e-5, rotary_pct=1.0),
  "gptj": GPT2 | dict(rotary_dim=2),
  "llama": LLAMA | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
  "mistral": LLAMA | dict(sliding_window=3),
  "mosaic_gpt": dict(
    **dict(vocab_size=11, d_model=8, n_layers=5, n_heads=2, mlp_ratio=2),
    **dict(alibi=True, attn_qk_ln=True, no_bias=True),
  ),
  "mpt": dict(vocab_size=11, d_model=8, n_layers=5, n_heads=2),
  "opt": SIZES | dict(ffn_dim=12, do_layer_norm_before=False, word_embed_proj_dim=4),
  "phi": SIZES | dict(num_attention_heads=2, hidden_act="gelu_new", layer_norm_eps=1e-5),
  "qwen2": LLAMA,
  "qwen3": LLAMA | dict(head_dim=4),
}
IDS = np.zeros((1, 2), np.int32)
INPUTS = (IDS, IDS, np.ones((1, 2, 2), bool), None, None)


def section(family, **fields):
  return config_from_hf({"model_type": family} | CONFIGS[family] | fields)


def leaves(lm, fusion=None):
  """Our leaves by path, those of gated blocks left out."""
  model = Decoder(**{name: value for name, value in lm.items() if name != "type"}, fusion=fusion)
  inputs = jax.tree.map(jax.numpy.asarray, INPUTS)
  return {k: x for k, x in abstract_leaves(model, *inputs).items() if "/xattn/" not in k}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("family", CONFIGS)
def test_there_and_back(family, every):
  """Every leaf has a place of its own, whichever way layers are grouped."""
  lm = section(family)
  abstract = leaves(lm, GatedXattn(every, heads=2, head_dim=4) if every > 1 else None)
  table = mapping(family, lm, xattn_every=every)
  assert set(table) == set(abstract)
  rng = np.random.default_rng(0)
  ours = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in abstract.items()}
  theirs = to_theirs(table, ours)
  back = to_ours(table, abstract, theirs)
  for path, x in ours.items():
    np.testing.assert_array_equal(back[path], x, err_msg=path)
  assert sum(x.size for x in theirs.values()) == sum(x.size for x in ours.values())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_groups_hold_the_layers_in_their_order(family):
  """The same checkpoint, whether a gated block stands before every second layer or none."""
  lm = section(family)
  flat, grouped = mapping(family, lm), mapping(family, lm, xattn_every=2)
  abstract = leaves(lm)
  rng = np.random.default_rng(0)
  ours = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in abstract.items()}
  theirs = to_theirs(flat, ours)
  other = to_ours(grouped, leaves(lm, GatedXattn(2, heads=2, head_dim=4)), theirs)
  query = ours["groups/layer_0/attn/query/kernel"]
  np.testing.assert_array_equal(other["groups/layer_0/attn/query/kernel"], query[[0, 2]])
  np.testing.assert_array_equal(other["groups/layer_1/attn/query/kernel"], query[[1, 3]])
  np.testing.assert_array_equal(other["tail/layer_0/attn/query/kernel"], query[[4]])


def test_fused_queries_keys_and_values():
  """GPT-2 has blocks of columns, MPT blocks of rows, GPT-NeoX rows head by head."""
  width, heads, head_dim = 8, 2, 4
  for family, fused in {
    "gpt2": "transformer.h.0.attn.c_attn.weight",
    "mpt": "transformer.blocks.0.attn.Wqkv.weight",
    "gpt_neox": "gpt_neox.layers.0.attention.query_key_value.weight",
  }.items():
    lm = section(family) | dict(heads=heads, kv_heads=heads)
    part = lambda n, shape=(5, width, heads, head_dim): np.full(shape, float(n), np.float32)
    table = mapping(family, lm)
    paths = [f"groups/layer_0/attn/{name}/kernel" for name in ("query", "key", "value")]
    whole = to_theirs(table, {path: part(n) for n, path in enumerate(paths)})[fused]
    rows = whole.T[:, 0] if family == "gpt2" else whole[:, 0]
    order = [0, 1, 2] * heads if family == "gpt_neox" else [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(rows, np.repeat(order, head_dim))


def test_a_tied_head_and_buffers_are_ignored_and_nothing_else():
  lm = section("gpt2")
  table, abstract = mapping("gpt2", lm), leaves(lm)
  ours = {path: np.zeros(x.shape, np.float32) for path, x in abstract.items()}
  theirs = to_theirs(table, ours)
  extra = {"lm_head.weight": np.zeros((11, 8)), "transformer.h.0.attn.bias": np.zeros((1, 1))}
  to_ours(table, abstract, theirs | extra, ignore=ignored("gpt2", lm))
  wrong = theirs | {"transformer.h.0.attn.c_extra": np.zeros(1)}
  with pytest.raises(UserError, match=r"unexpected: transformer\.h\.0\.attn\.c_extra"):
    to_ours(table, abstract, wrong, ignore=ignored("gpt2", lm))
  untied = section("gpt2", tie_word_embeddings=False)
  assert "head/kernel" in mapping("gpt2", untied)
  assert "lm_head" not in ignored("gpt2", untied)


@pytest.mark.parametrize(
  ("family", "fields", "windows"),
  [
    ("llama", {}, ()),
    ("mistral", {}, (3,)),
    ("mistral", dict(sliding_window=None), ()),
    ("gemma2", {}, (3, 0)),
    ("gemma3_text", dict(num_hidden_layers=13), (3, 3, 3, 3, 3, 0)),
    ("gemma3_text", dict(sliding_window_pattern=2), (3, 0)),
    (
      "gemma3_text",
      dict(layer_types=["full_attention"] + 4 * ["sliding_attention"]),
      (0, *4 * [3]),
    ),
    ("qwen2", dict(sliding_window=3, max_window_layers=2), ()),
    (
      "qwen2",
      dict(sliding_window=3, max_window_layers=2, use_sliding_window=True),
      (0, 0, 3, 3, 3),
    ),
  ],
)
def test_windows_are_the_shortest_pattern(family, fields, windows):
  assert section(family, **fields).get("windows", ()) == windows


def test_rotary_settings_of_either_transformers():
  scaling = dict(rope_type="linear", factor=8.0)
  old = section("gemma3_text", rope_theta=5e5, rope_local_base_freq=1e3, rope_scaling=scaling)
  rope = {
    "full_attention": scaling | dict(rope_theta=5e5),
    "sliding_attention": dict(rope_type="default", rope_theta=1e3),
  }
  assert section("gemma3_text", rope_parameters=rope) == old
  assert old["rope_theta"] == 5e5 and old["rope_local_theta"] == 1e3
  assert old["rope_scaling"] == {"type": "linear", "factor": 8.0}


@pytest.mark.parametrize(
  ("family", "fields", "culprit"),
  [
    ("lama", {}, "did you mean 'llama'"),
    ("llama", dict(rope_scaling=dict(rope_type="yarn", factor=2.0)), "yarn"),
    ("llama", dict(hidden_act="mish"), "mish"),
    ("phi", dict(qk_layernorm=True), "qk_layernorm"),
    ("mpt", dict(attn_config=dict(alibi=False)), "alibi"),
    ("mosaic_gpt", dict(no_bias=False), "no_bias"),
  ],
)
def test_what_would_be_computed_wrongly_is_refused(family, fields, culprit):
  with pytest.raises(UserError, match=culprit):
    config_from_hf({"model_type": family} | CONFIGS.get(family, {}) | fields)


def test_every_family_is_tried():
  assert set(CONFIGS) == set(NAMES)
