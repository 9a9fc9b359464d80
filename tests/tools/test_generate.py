"""An imported language model continues text from the command line."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from medflax.inference import decode
from medflax.tools import generate, import_weights
from tests.pretrained.test_gguf_tokenizer import llama


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
  folder = tmp_path_factory.mktemp("imported")
  path = llama(folder / "x.gguf")
  assert import_weights.main(["gguf", str(path), "--to", str(folder / "ours")]) == 0
  return folder / "ours"


def run(*args):
  return generate.main([str(arg) for arg in args])


def test_cached_steps_are_the_whole_models_greedy_choices(imported):
  lm = generate.load(imported)
  ids = lm.encode(" the left lung")
  assert ids[0] == lm.tokenizer.bos_id
  new = list(lm.continued(ids, 12))
  assert len(new) == 12
  row = jnp.asarray([ids + new])
  logits = lm.model.apply({"params": lm.params}, {}, row, jnp.zeros_like(row), media_ordinal={})
  np.testing.assert_array_equal(jnp.argmax(logits[0], axis=-1)[len(ids) - 1 : -1], new)


def test_the_loop_of_the_evaluators_makes_the_same_tokens(imported):
  lm = generate.load(imported)
  ids = lm.encode(" lung")
  tokens = np.asarray([ids], np.int32)
  batch = {
    "tokens": tokens,
    "media_index": np.zeros_like(tokens),
    "media_first": np.zeros_like(tokens),
    "positions": np.arange(len(ids), dtype=np.int32)[None],
    "segment_ids": np.ones_like(tokens),
  }
  stop = np.asarray([lm.tokenizer.eos_id])
  made = decode.generate(lm.model, lm.params, batch, max_new_tokens=6, stop_ids=stop, pad_id=0)
  assert made.tokens[0].tolist() == list(lm.continued(ids, 6))


def test_the_end_of_the_text_ends_it(imported):
  lm = generate.load(imported)
  ids = lm.encode(" lung")
  new = list(lm.continued(ids, 6))
  lm.tokenizer.eos_id = new[3]
  assert list(lm.continued(ids, 6)) == new[: new.index(new[3])]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_command_prints_prompt_text_and_speed(imported, capsys, dtype):
  assert run(imported, " left", "--max-new-tokens", 8, "--dtype", dtype) == 0
  printed = capsys.readouterr()
  lm = generate.load(imported, dtype)
  text = "".join(generate.texts(lm.tokenizer, lm.continued(lm.encode(" left"), 8)))
  assert printed.out == f" left{text}\n"
  assert printed.err.startswith("8 tokens, the first after")


def test_characters_are_whole(imported):
  tokenizer = generate.load(imported).tokenizer
  ids = tokenizer.encode("l肺e")
  bits = list(generate.texts(tokenizer, ids))
  assert "".join(bits) == "l肺e"
  assert generate.REPLACEMENT not in "".join(bits)
  assert "".join(generate.texts(tokenizer, ids[:-2])) == tokenizer.decode(ids[:-2])  # half of it


def test_mistakes_are_one_line(imported, tmp_path, capsys):
  def message(*args):
    assert run(*args) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err

  assert "config.json cannot be read" in message(tmp_path, "x")
  assert "dtype 'int8'" in message(imported, "x", "--dtype", "int8")
  assert "--max-new-tokens" in message(imported, "x", "--max-new-tokens", 0)
  (tmp_path / "config.json").write_text(json.dumps({"tower": {"type": "vit"}}))
  assert "not of a causal language model" in message(tmp_path, "x")
  for name in ("weights.safetensors", "config.json"):
    (tmp_path / name).write_bytes((imported / name).read_bytes())
  assert "tokenizer is not a folder" in message(tmp_path, "x")
  config = json.loads((imported / "config.json").read_text())
  config["lm"]["depth"] = 2
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert "no model of text alone" in message(tmp_path, "x")
