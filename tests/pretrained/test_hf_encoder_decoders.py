import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models.language.encoder_decoder import EncoderDecoder
from medflax.pretrained.hf_encoder_decoders import config_from_hf, mapping
from medflax.pretrained.mapping import to_ours, to_theirs
from medflax.utils import UserError
from tests.golden_cases import encoder_decoders
from tests.golden_cases.base import Case, abstract_leaves

RELATIVE = dict(relative_attention_num_buckets=8, relative_attention_max_distance=16)
T5 = dict(
  **dict(model_type="t5", vocab_size=7, d_model=6, d_kv=2, d_ff=8, num_heads=2, num_layers=2),
  **dict(num_decoder_layers=1, layer_norm_epsilon=1e-6),
  **RELATIVE,
)
COMMON = dict(hidden_size=6, d_kv=2, d_ff=8, dense_act_fn="gelu_new")
CASES = {
  "t5": T5 | dict(feed_forward_proj="relu", tie_word_embeddings=True),
  "t5_v1_1": T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
  "pix2struct": dict(
    model_type="pix2struct",
    text_config=COMMON | dict(vocab_size=7, num_heads=3, num_layers=2) | RELATIVE,
    vision_config=COMMON | dict(num_attention_heads=3, num_hidden_layers=1, seq_len=9),
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_leaf_goes_there_and_back(name):
  section = config_from_hf(CASES[name])
  model = EncoderDecoder(**{key: value for key, value in section.items() if key != "type"})
  inputs = jnp.zeros((1, 2, 5)) if section["places"] else jnp.zeros((1, 2), jnp.int32)
  shapes = abstract_leaves(model, inputs, jnp.ones((1, 2), bool), jnp.zeros((1, 1), jnp.int32))
  rng = np.random.default_rng(0)
  ours = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in shapes.items()}
  theirs = to_theirs(mapping(section), ours)
  again = to_ours(mapping(section), shapes, theirs)
  assert again.keys() == ours.keys()
  for path, value in ours.items():
    np.testing.assert_array_equal(again[path], value)


def test_the_base_models_have_the_published_sizes():
  """T5-base as published; google/deplot, told as 282 M, as counted from its shapes by hand."""
  sizes = dict(hidden_size=768, d_kv=64, d_ff=2048, dense_act_fn="gelu_new")
  relative = dict(relative_attention_num_buckets=32, relative_attention_max_distance=128)
  published = {
    222_903_552: T5
    | relative
    | dict(vocab_size=32_128, d_model=768, d_kv=64, d_ff=3072, num_heads=12, num_layers=12)
    | dict(num_decoder_layers=12, feed_forward_proj="relu"),
    282_285_696: dict(
      model_type="pix2struct",
      text_config=sizes | dict(vocab_size=50_244, num_heads=12, num_layers=12) | relative,
      vision_config=sizes | dict(num_attention_heads=12, num_hidden_layers=12, seq_len=4096),
    ),
  }
  for count, hf in published.items():
    section = config_from_hf(hf)
    model = EncoderDecoder(**{key: value for key, value in section.items() if key != "type"})
    inputs = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    if section["places"]:
      inputs = jax.ShapeDtypeStruct((1, 2, 770), jnp.float32)
    seen, tokens = jnp.ones((1, 2), bool), jnp.zeros((1, 1), jnp.int32)
    tree = jax.eval_shape(lambda *x, m=model: m.init(jax.random.key(0), *x), inputs, seen, tokens)
    assert sum(x.size for x in jax.tree.leaves(tree)) == count


def test_another_model_type_is_named():
  with pytest.raises(UserError, match="did you mean 't5'"):
    config_from_hf(T5 | dict(model_type="ut5"))


@pytest.mark.parametrize("variant", ["t5/t5_v1_0", "t5/t5_v1_1", "pix2struct/pix2struct"])
def test_parity_with_the_original(golden_folder, variant):
  folder, name = variant.split("/")
  results = list(encoder_decoders.encoder_decoder(Case(golden_folder(folder), name)))
  assert len(results) == 4
  assert [result for result in results if not result.passed] == []
