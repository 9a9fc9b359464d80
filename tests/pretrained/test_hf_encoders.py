import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from medflax.models.language.encoder import Encoder
from medflax.pretrained.hf_encoders import IGNORE, config_from_hf, mapping
from medflax.pretrained.mapping import to_ours, to_theirs
from medflax.utils import UserError

HF = dict(
  **dict(vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2),
  **dict(intermediate_size=12, max_position_embeddings=9, type_vocab_size=2),
  **dict(hidden_act="gelu", layer_norm_eps=1e-12),
)


def build(section):
  fields = {name: value for name, value in section.items() if name != "type"}
  model = Encoder(**fields)
  tokens = jnp.zeros((1, 3), jnp.int32)
  args = tokens, tokens, jnp.ones((1, 1, 3), bool)
  return model, nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *args))["params"]


def flat_shapes(section):
  return traverse_util.flatten_dict(build(section)[1], sep="/")


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("architecture", [None, "ForMaskedLM", "ForPreTraining"])
def test_every_leaf_goes_there_and_back(family, architecture):
  section = config_from_hf(HF | dict(model_type=family, architectures=[f"X{architecture}"]))
  assert section["lm_head"] == bool(architecture)
  assert section["pooler"] == (architecture != "ForMaskedLM")
  shapes, rng = flat_shapes(section), np.random.default_rng(0)
  ours = {path: rng.normal(size=s.shape).astype(np.float32) for path, s in shapes.items()}
  theirs = to_theirs(mapping(section), ours)
  assert theirs[
    "embeddings.word_embeddings.weight"
    if not architecture
    else f"{family}.embeddings.word_embeddings.weight"
  ].shape == (11, 8)
  again = to_ours(mapping(section), shapes, theirs)
  assert again.keys() == ours.keys()
  for path, value in ours.items():
    np.testing.assert_array_equal(again[path], value)


def test_a_masked_head_is_the_original():
  """The head of two layers, written out by hand in the original's layout."""
  section = config_from_hf(HF | dict(model_type="bert", architectures=["BertForMaskedLM"]))
  model, shapes = build(section)
  rng, flat = np.random.default_rng(0), traverse_util.flatten_dict(shapes, sep="/")
  ours = {path: rng.normal(size=s.shape).astype(np.float32) for path, s in flat.items()}
  theirs, tokens = to_theirs(mapping(section), ours), jnp.asarray([[3, 1, 4]])
  params = traverse_util.unflatten_dict(ours, sep="/")
  args = tokens, jnp.asarray([[0, 1, 2]]), jnp.ones((1, 1, 3), bool)
  out = jax.jit(model.apply)({"params": params}, *args)
  head = "cls.predictions.transform"
  x = np.asarray(out["hidden"][-1]) @ theirs[f"{head}.dense.weight"].T
  x = np.asarray(jax.nn.gelu(x + theirs[f"{head}.dense.bias"], approximate=False))
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
  x = x * theirs[f"{head}.LayerNorm.weight"] + theirs[f"{head}.LayerNorm.bias"]
  logits = x @ theirs["bert.embeddings.word_embeddings.weight"].T + theirs["cls.predictions.bias"]
  np.testing.assert_allclose(out["logits"], logits, rtol=1e-4, atol=1e-4)


def test_tensors_that_stand_there_twice_are_passed_over():
  section = config_from_hf(HF | dict(model_type="bert", architectures=["BertForMaskedLM"]))
  shapes = flat_shapes(section)
  zeros = {path: np.zeros(s.shape, np.float32) for path, s in shapes.items()}
  theirs = to_theirs(mapping(section), zeros)
  more = {"cls.predictions.decoder.weight": zeros["embedding"], "cls.seq_relationship.bias": 0}
  assert to_ours(mapping(section), shapes, theirs | more, ignore=IGNORE).keys() == shapes.keys()
  with pytest.raises(UserError, match=r"unexpected: cls\.predictions\.decoder"):
    to_ours(mapping(section), shapes, theirs | more)


def test_another_model_type_is_named():
  with pytest.raises(UserError, match="did you mean 'bert'"):
    config_from_hf(HF | dict(model_type="albert"))


@pytest.mark.parametrize("variant", ["bert", "roberta"])
def test_parity_with_the_original(golden, golden_folder, variant):
  weights, arrays, _ = golden("bert", variant)
  hf = json.loads((golden_folder("bert") / f"{variant}.config.json").read_text())
  section = config_from_hf(hf)
  model, shapes = build(section)
  flat = traverse_util.flatten_dict(shapes, sep="/")
  params = traverse_util.unflatten_dict(to_ours(mapping(section), flat, weights), sep="/")
  seen = jnp.asarray(arrays["in.attention_mask"] > 0)
  counted = jnp.cumsum(seen, axis=1) * seen - 1
  arange = jnp.broadcast_to(jnp.arange(seen.shape[1]), seen.shape)
  positions = counted if section["position_offset"] else arange
  types = arrays.get("in.token_type_ids")
  out = jax.jit(model.apply)(
    {"params": params},
    jnp.asarray(arrays["in.input_ids"], jnp.int32),
    positions,
    seen[:, None],
    None if types is None else jnp.asarray(types, jnp.int32),
  )
  expected = {"last_hidden_state": out["hidden"][-1], "pooled": out["pooled"]}
  expected |= {f"hidden_{i}": state for i, state in enumerate(out["hidden"])}
  for name, ours in expected.items():
    theirs = arrays[f"out.{name}"]
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max(), name
