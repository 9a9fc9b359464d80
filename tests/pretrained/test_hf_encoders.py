import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from medflax.models.language.encoder import Encoder
from medflax.pretrained.hf_encoders import IGNORE, config_from_hf, mapping, positions
from medflax.pretrained.mapping import to_ours, to_theirs
from medflax.utils import UserError
from tests.golden_cases import encoders
from tests.golden_cases.base import Case

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


def test_positions_of_roberta_begin_behind_the_row_of_padding():
  offset = lambda **hf: config_from_hf(HF | hf)["position_offset"]
  assert offset(model_type="roberta", pad_token_id=0) == 1
  assert offset(model_type="roberta") == 2
  assert offset(model_type="bert", pad_token_id=3) == 0


def test_an_activation_has_our_name_or_is_refused():
  section = config_from_hf(HF | dict(model_type="bert", hidden_act="gelu_new"))
  assert section["activation"] == "gelu_tanh"
  with pytest.raises(UserError, match="mish"):
    config_from_hf(HF | dict(model_type="bert", hidden_act="mish"))


def test_another_model_type_is_named():
  with pytest.raises(UserError, match="did you mean 'bert'"):
    config_from_hf(HF | dict(model_type="albert"))


@pytest.mark.parametrize("variant", ["bert", "roberta"])
def test_parity_with_the_original(golden_folder, variant):
  results = list(encoders.encoder(Case(golden_folder("bert"), variant)))
  assert len(results) >= 4
  assert [result for result in results if not result.passed] == []


def test_padding_stands_before_the_first_position_of_roberta():
  seen = jnp.asarray([[True, True, False], [False, True, True]])
  np.testing.assert_array_equal(positions(seen, 2), [[0, 1, -1], [-1, 0, 1]])
  np.testing.assert_array_equal(positions(seen, 0), [[0, 1, 2], [0, 1, 2]])
