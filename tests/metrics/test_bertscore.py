"""BERTScore with a tiny encoder whose folder is written here, and its matching by itself."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import transformers
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from medflax.metrics.bertscore import BertScore, greedy_cosine, inverse_frequency
from medflax.models.language.encoder import Encoder
from medflax.pretrained.hf_encoders import config_from_hf, mapping
from medflax.pretrained.mapping import to_theirs
from medflax.utils import UserError

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "left", "right", "lung", "heart", "##s", "no"]
HF = dict(
  **dict(model_type="bert", vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=2),
  **dict(num_attention_heads=2, intermediate_size=12, max_position_embeddings=40),
  **dict(type_vocab_size=2, hidden_act="gelu", layer_norm_eps=1e-12),
)
PREDICTIONS = ["left lung", "", "hearts", "no"]
REFERENCES = [["right lung"], ["heart"], ["no heart", "hearts"], ["no left lungs"]]


def tiny(hf):
  """An encoder and its parameters by path, the same whatever else the model has."""
  section = config_from_hf(hf)
  model = Encoder(**{name: value for name, value in section.items() if name != "type"})
  tokens, mask = jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 1, 3), bool)
  tree = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens, mask))["params"]
  shapes = traverse_util.flatten_dict(tree, sep="/")
  random = lambda path: np.random.default_rng(sum(path.encode()))
  normal = lambda path: random(path).normal(size=shapes[path].shape).astype(np.float32)
  return section, model, {path: normal(path) for path in shapes}


def write(folder, architecture, **changes):
  """A folder as Hugging Face has it."""
  hf = HF | dict(architectures=[architecture]) | changes
  section, _, ours = tiny(hf)
  theirs = to_theirs(mapping(section), ours)
  theirs = {key: np.ascontiguousarray(x) for key, x in theirs.items()}
  folder.mkdir()
  safetensors.numpy.save_file(theirs, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps(hf))
  vocab = {word: index for index, word in enumerate(WORDS)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  ends = [("[CLS]", 1), ("[SEP]", 2)]
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=ends
  )
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
  ).save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write(tmp_path_factory.mktemp("bert") / "tiny", "BertModel")


@pytest.fixture(scope="module")
def scorer(folder):
  return BertScore(folder, layer=1, batch_tokens=128)


def matching(*inputs):
  return jax.jit(greedy_cosine)(*map(jnp.asarray, inputs))


def by_hand(ours, our_weights, theirs, their_weights):
  """The same without batches and padding."""
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  similar = unit(ours) @ unit(theirs).T
  precision = np.average(similar.max(axis=1), weights=our_weights)
  recall = np.average(similar.max(axis=0), weights=their_weights)
  return precision, recall, 2 * precision * recall / (precision + recall)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 6), st.integers(3, 6))
def test_matching_is_the_definition_whatever_the_padding_holds(seed, n, m):
  rng = np.random.default_rng(seed)
  # Positive: padding, of similarity 0, is never the most similar.
  ours, theirs = rng.uniform(0.01, 1, size=(2, 1, 6, 3)).astype(np.float32)
  weights = rng.uniform(0.1, 1, size=(2, 1, 6)).astype(np.float32)
  weights[0, :, n:] = weights[1, :, m:] = 0
  want = by_hand(ours[0, :n], weights[0, 0, :n], theirs[0, :m], weights[1, 0, :m])
  ours[:, n:], theirs[:, m:] = 7, -7
  got = matching(ours, weights[0], [n], theirs, weights[1], [m])
  np.testing.assert_allclose(np.ravel(got), want, rtol=1e-5)


def test_padding_is_more_similar_than_an_opposite():
  x, ones = np.ones((2, 4, 2), np.float32), np.ones((2, 4), np.float32)
  scores = matching(x, ones, [4, 4], -x, ones, [4, 3])
  np.testing.assert_allclose(scores, [[-1, 0], [-1, -0.75], [-1, 0]], atol=1e-6)


def test_texts_that_are_empty_or_without_weight_score_0():
  x, ones = np.ones((3, 4, 2), np.float32), np.ones((3, 4), np.float32)
  weights = ones * np.array([[1], [0], [1]], np.float32)
  scores = matching(x, weights, [2, 4, 4], x, ones, [4, 4, 4])
  np.testing.assert_allclose(scores, [[0, 0, 1], [0, 1, 1], [0, 0, 1]], atol=1e-6)


def test_the_rarer_a_token_the_more_it_counts():
  weights = inverse_frequency([[1, 4, 4, 2], [1, 5, 2]])
  assert weights[1] == 0 and weights[4] == math.log(3 / 2) and weights[9] == math.log(3)


def test_an_answer_equal_to_the_reference_scores_1(scorer):
  for scores in scorer(["no left lung"], [[" no left lung\n"]]).values():
    assert scores == pytest.approx([1], abs=1e-6)


def test_scores_are_those_of_the_hidden_states(scorer):
  """One pair by hand: without padding, through the definition."""
  ids = [scorer.token_ids(text) for text in ("left lung", "no hearts")]
  assert ids == [[1, 4, 6, 2], [1, 9, 7, 8, 2]]
  _, model, weights = tiny(HF)
  leaves = {path: jnp.asarray(x) for path, x in weights.items()}
  params = {"params": traverse_util.unflatten_dict(leaves, sep="/")}
  states = []
  for row in ids:
    places, mask = jnp.arange(len(row))[None], jnp.ones((1, 1, len(row)), bool)
    out = model.apply(params, jnp.asarray([row]), places, mask)
    states.append(np.asarray(out["hidden"][1, 0]))
  want = by_hand(states[0], [0, 1, 1, 0], states[1], [0, 1, 1, 1, 0])
  got = scorer(["left lung"], [["no hearts"]])
  np.testing.assert_allclose(np.ravel(list(got.values())), want, rtol=1e-5)


@pytest.mark.parametrize("idf", [False, True])
def test_a_score_does_not_depend_on_the_batch(scorer, folder, idf):
  together = scorer(PREDICTIONS, REFERENCES, idf=idf)
  other = BertScore(folder, layer=1, batch_tokens=1)(PREDICTIONS, REFERENCES, idf=idf)
  for name, scores in together.items():
    np.testing.assert_allclose(scores, other[name], atol=1e-6)
    assert scores[1] == 0 and np.isfinite(scores).all()


def test_each_score_is_the_highest_over_the_references(scorer):
  both = scorer(["hearts"], [["no heart", "lung"]])
  single = [scorer(["hearts"], [[text]]) for text in ("no heart", "lung")]
  for name, scores in both.items():
    np.testing.assert_allclose(scores, np.max([s[name] for s in single], axis=0), atol=1e-6)


def test_a_folder_with_a_head_scores_the_same(scorer, tmp_path):
  headed = BertScore(write(tmp_path / "headed", "BertForMaskedLM"), layer=1)
  for name, scores in scorer(PREDICTIONS, REFERENCES).items():
    np.testing.assert_allclose(headed(PREDICTIONS, REFERENCES)[name], scores, atol=1e-6)


def test_positions_of_roberta_begin_at_2(tmp_path):
  changes = dict(model_type="roberta", max_position_embeddings=9)
  scorer = BertScore(write(tmp_path / "roberta", "RobertaForMaskedLM", **changes), layer=2)
  assert len(scorer.token_ids("left " * 20)) == 7
  scores = scorer(["left " * 20, "left"], [["left " * 30], ["no lung"]])["f1"]
  assert scores[0] == pytest.approx(1, abs=1e-5) and 0 < scores[1] < 1


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layers_differ(folder, scorer, layer):
  scores = BertScore(folder, layer=layer)(["left lung"], [["heart"]])
  assert (scores["f1"] == pytest.approx(scorer(["left lung"], [["heart"]])["f1"])) == (layer == 1)


def test_long_and_foreign_and_no_answers(scorer):
  scores = scorer(["left " * 500, "肺炎 é"], [["left " * 600], ["肺炎"]])
  assert scores["f1"][0] == pytest.approx(1, abs=1e-5) and np.isfinite(scores["f1"]).all()
  assert {name: x.shape for name, x in scorer([], []).items()} == dict.fromkeys(scores, (0,))


def test_what_cannot_be_read_says_so(folder, tmp_path):
  with pytest.raises(UserError, match="has the layers 0 to 2, not 3"):
    BertScore(folder, layer=3)
  with pytest.raises(UserError, match=r"config\.json"):
    BertScore(tmp_path, layer=0)
