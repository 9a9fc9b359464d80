"""Generation against the uncached model, padding, stopping, and media embedded once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze, meta

from medflax.inference import decode, decoding
from medflax.inference.decode import generate, postprocess
from medflax.models import build_model

PAD, STOP, VOCAB = 0, 3, 23
CONFIG = {
  "tower": {
    "type": "vit",
    "width": 16,
    "depth": 1,
    "heads": 2,
    "mlp_width": 16,
    "inputs": {
      "image": {"size": (8, 8), "patch": (4, 4), "channels": 1},
      "volume": {"size": (4, 8, 8), "patch": (2, 4, 4), "channels": 1},
    },
  },
  "connector": {"type": "perceiver", "num_latents": 2, "depth": 1, "heads": 2, "head_dim": 8},
  "fusion": {"type": "gated_xattn", "xattn_every": 2, "heads": 2, "head_dim": 8},
  "lm": {
    "type": "decoder",
    "vocab_size": VOCAB,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "kv_heads": 1,
    "mlp_width": 32,
  },
  "dtype": "float32",
  "remat": "none",
}


@pytest.fixture(scope="module")
def model_and_params():
  """A model with weights so large that both its text and its media change its answers."""
  model = build_model(freeze(CONFIG))
  batch = prompts([[5, 6]], [1])
  variables = jax.jit(model.init)(
    jax.random.key(0),
    batch["media"],
    batch["tokens"],
    batch["media_index"],
    media_ordinal={"image": batch["media_ordinal"]},
  )
  leaves, tree = jax.tree.flatten(meta.unbox(variables)["params"])
  rng = np.random.default_rng(0)
  leaves = [jnp.asarray(rng.normal(0, 0.6, leaf.shape), jnp.float32) for leaf in leaves]
  params = jax.tree.unflatten(tree, leaves)
  params["lm"]["groups"]["xattn"]["value"]["kernel"] *= 3
  return model, params


def prompts(rows, num_media, length=None, seed=0):
  """Left-padded prompts; media come first and the last is seen by every token."""
  length = length or max(map(len, rows))
  text = {
    key: np.zeros((len(rows), length), np.int32)
    for key in ("tokens", "positions", "segment_ids", "media_index", "media_first")
  }
  ordinal = np.zeros((len(rows), max(1, *num_media)), np.int32)
  media = np.zeros((*ordinal.shape, 8, 8, 1), np.float32)
  for r, (tokens, count) in enumerate(zip(rows, num_media, strict=True)):
    here = np.s_[r, length - len(tokens) :]
    text["tokens"][here] = tokens
    text["positions"][here] = np.arange(len(tokens))
    text["segment_ids"][here] = 1
    text["media_index"][here] = text["media_first"][here] = count
    ordinal[r, :count] = np.arange(1, count + 1)
    media[r, :count] = np.random.default_rng((seed, r)).normal(0, 3, (count, 8, 8, 1))
  batch = text | {"media_ordinal": ordinal, "media": {"image": media}}
  return jax.tree.map(jnp.asarray, batch)


def run(model, params, batch, *, max_new_tokens=6, stop_ids=(STOP,)):
  batch = dict(batch)
  media = batch.pop("media")
  apply = jax.jit(lambda media: model.apply({"params": params}, media, method="embed_media"))
  batch["features"] = apply(media)
  generation = generate(
    model,
    params,
    batch,
    max_new_tokens=max_new_tokens,
    stop_ids=np.array(stop_ids, np.int32),
    pad_id=PAD,
  )
  return [np.asarray(x) for x in generation]


ROWS, NUM_MEDIA = [[5, 6, 7, 8, 9], [10, 11], [12], [13, 14, 15]], [2, 1, 0, 1]


def test_cached_decoding_is_the_uncached_argmax(model_and_params):
  """The reference runs whole rows, padded on the right, anew for every token."""
  model, params = model_and_params
  batch = prompts(ROWS, NUM_MEDIA)
  generated, stopped = run(model, params, batch, stop_ids=(-1,))
  assert not stopped.any()
  assert len({tuple(row) for row in generated}) > 1  # the prompts matter

  @jax.jit
  def logits_of(tokens, index):
    ordinal = {"image": batch["media_ordinal"]}
    return model.apply({"params": params}, batch["media"], tokens, index, media_ordinal=ordinal)

  lengths = np.array([len(row) for row in ROWS])
  tokens = np.array([row + [0] * (11 - len(row)) for row in ROWS], np.int32)
  index = np.repeat(np.array(NUM_MEDIA, np.int32)[:, None], 11, axis=1)
  for step in range(6):
    logits = logits_of(tokens, index)[np.arange(4), lengths + step - 1]
    tokens[np.arange(4), lengths + step] = logits.argmax(-1)
  for row, length, expected in zip(generated, lengths, tokens, strict=True):
    np.testing.assert_array_equal(row, expected[length : length + 6])


def test_padding_and_company_change_nothing(model_and_params):
  model, params = model_and_params
  together, _ = run(model, params, prompts(ROWS, NUM_MEDIA, length=11))
  alone, stopped = run(model, params, prompts([*ROWS[:1], [], [], []], [2, 0, 0, 0]))
  np.testing.assert_array_equal(together[0], alone[0])
  assert (alone[1:] == PAD).all()  # rows of padding alone are not answered
  assert not stopped[1:].any()


def test_media_matter(model_and_params):
  model, params = model_and_params
  tokens, _ = run(model, params, prompts([[5, 6]] * 4, [1, 1, 2, 1], length=5))
  assert len({tuple(row) for row in tokens}) > 1


def test_a_row_stops_at_its_stop_token_and_others_go_on(model_and_params):
  model, params = model_and_params
  free, _ = run(model, params, prompts(ROWS, NUM_MEDIA), stop_ids=(-1,))
  stop = int(free[0][1])
  tokens, stopped = run(model, params, prompts(ROWS, NUM_MEDIA), stop_ids=(stop,))
  for row, unstopped, hit in zip(tokens, free, stopped, strict=True):
    assert hit == (stop in unstopped)
    end = list(unstopped).index(stop) + 1 if hit else len(unstopped)
    np.testing.assert_array_equal(row[:end], unstopped[:end])
    assert (row[end:] == PAD).all()


def test_one_token_at_most(model_and_params):
  model, params = model_and_params
  short, _ = run(model, params, prompts(ROWS, NUM_MEDIA), max_new_tokens=1)
  long, _ = run(model, params, prompts(ROWS, NUM_MEDIA))
  np.testing.assert_array_equal(short[:, 0], long[:, 0])


def test_equal_shapes_share_a_program(model_and_params):
  model, params = model_and_params
  run(model, params, prompts(ROWS, NUM_MEDIA))
  before = decode.read_prompts._cache_size(), decoding._one_by_one._cache_size()
  run(build_model(freeze(CONFIG)), params, prompts(ROWS[::-1], NUM_MEDIA[::-1]), stop_ids=(7,))
  assert (decode.read_prompts._cache_size(), decoding._one_by_one._cache_size()) == before


def test_fetch_is_the_array():
  np.testing.assert_array_equal(decode.fetch(jnp.arange(3)), [0, 1, 2])


@pytest.mark.parametrize(
  ("text", "answer"),
  [
    (" left lung. ", "left lung"),
    ("yes<|endofchunk|>Question: what", "yes"),
    ("no Question: and then", "no"),
    ("\n a mass .\nmore", "a mass"),
    ("3.5 cm", "3.5 cm"),
    ("", ""),
    ("Question:", ""),
  ],
)
def test_postprocess(text, answer):
  assert postprocess(text, ("<|endofchunk|>", "<image>", "Question:", "\n")) == answer
