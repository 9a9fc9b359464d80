import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.build import build
from medflax.checkpoint import read_state
from medflax.loading import load_model
from medflax.utils import UserError
from medflax.weights import find_step, open_sources
from tests import nano

LORA = "{'a': {'type': 'lora', 'target': 'lm/.*/query/kernel', 'rank': 2, 'alpha': 4.0}}"
ADAPTERS = dict(peft=LORA, trainable=".*/lora_.*")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return nano.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def first(images, tmp_path_factory):
  """A stage that trains all but the tower, with a moving average, and likes its first step best."""
  evals = "{'ppl': {'type': 'perplexity', 'every': 1, 'task': 'vqa', 'num_shots': 0}}"
  options = dict(trainable="(?!tower/).*", train__num_steps="2", train__ema="0.5")
  best = dict(evals=evals, best__metric="ppl/perplexity", best__mode="max")
  config = nano.config(images, **options, **best)
  return nano.train(config, tmp_path_factory.mktemp("runs") / "first")


def test_the_next_stage_starts_from_what_the_last_one_evaluates(first, images):
  """In another dtype, with adapters that it did not have."""
  dtype = dict(train__frozen_dtype="bfloat16")
  config = nano.config(images, init=f"{first}@newest", **ADAPTERS, **dtype)
  state = build(config, devices=jax.devices()[:1]).create(config.seed)
  saved = read_state(first / "checkpoints", 2)
  assert all(path.endswith(("lora_a", "lora_b")) for path in state.trainable)
  assert {leaf.dtype for leaf in state.frozen.values()} == {jnp.dtype(jnp.bfloat16)}
  ours = {path: leaf for path, leaf in state.frozen.items() if "lora" not in path}
  for path, leaf in ours.items():
    expected = saved["frozen/" + path] if path.startswith("tower/") else saved["ema/" + path]
    np.testing.assert_array_equal(leaf, jnp.asarray(expected, leaf.dtype), err_msg=path)
  assert any((saved["ema/" + p] != saved["trainable/" + p]).any() for p in ours if p[:2] == "lm")


def test_a_second_stage_resumes_as_any_run(first, images, tmp_path):
  config = nano.config(
    images, init=str(first), **ADAPTERS, train__num_steps="2", checkpoint__every="1"
  )
  nano.train(config, tmp_path / "whole")
  shutil.copytree(tmp_path / "whole", tmp_path / "cut")
  shutil.rmtree(tmp_path / "cut/checkpoints/2")
  nano.train(config, tmp_path / "cut")
  whole, again = (read_state(tmp_path / name / "checkpoints", 2) for name in ("whole", "cut"))
  assert whole.keys() == again.keys()
  for path, leaf in whole.items():
    np.testing.assert_array_equal(again[path], leaf, err_msg=path)
  without = nano.config(images, init=str(tmp_path / "whole"))
  with pytest.raises(UserError, match=r"weights that the model lacks: lm/.*/query/lora_a"):
    build(without, devices=jax.devices()[:1]).create(0)


def test_steps_by_name(first, tmp_path):
  checkpoints = first / "checkpoints"
  steps = {name: find_step(checkpoints, name) for name in (None, "best", "newest", 2)}
  assert steps == {None: 1, "best": 1, "newest": 2, 2: 2}
  assert load_model(first).step == 1 and load_model(first, step="newest").step == 2
  with pytest.raises(UserError, match=r"no complete checkpoint of step 7 .* there are 1, 2"):
    find_step(checkpoints, 7)
  with pytest.raises(UserError, match="of step bst"):
    open_sources(f"{first}@bst")
  unchosen = tmp_path / "run"
  shutil.copytree(first, unchosen)
  config = json.loads((first / "config.json").read_text())
  config["best"]["metric"] = ""
  (unchosen / "config.json").write_text(json.dumps(config))
  assert find_step(unchosen / "checkpoints") == 2
  with pytest.raises(UserError, match="chooses no best step"):
    find_step(unchosen / "checkpoints", "best")


def test_what_does_not_fit_is_named(first, images, tmp_path):
  with pytest.raises(UserError, match=r"there is no file .*nowhere"):
    open_sources(str(tmp_path / "nowhere"))
  with pytest.raises(UserError, match=r"no complete checkpoint in .*; there is none"):
    open_sources(str(tmp_path))
  fewer = nano.config(images, init=str(first), model__lm__mlp_width="4")
  with pytest.raises(UserError, match=r"has shape .* in .*checkpoints/1 but .* in the model"):
    build(fewer, devices=jax.devices()[:1]).create(0)
