"""The image is seen, or it is told that it is not."""

import dataclasses

import jax
import pytest

from medflax.loading import Loaded, load_model
from medflax.tools.image_sensitivity import CHANGES, image_sensitivity, main, told
from tests import nano

EVALS = (
  "{'ppl': {'type': 'perplexity', 'every': 9, 'task': 'vqa', 'num_shots': 0, 'batch_size': 4},"
  " 'ask': {'type': 'fewshot_vqa', 'every': 9, 'task': 'vqa', 'num_shots': (0, 1), 'split': 'test',"
  " 'batch_size': 4, 'num_pictured': 0, 'decoding': {'max_new_tokens': 2}}}"
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  images = nano.write_images(tmp_path_factory.mktemp("images"))
  workdir = tmp_path_factory.mktemp("runs") / "a"
  config = nano.config(images, evals=EVALS, train__num_steps="2", checkpoint__every="2")
  return nano.train(config, workdir, evaluates=False)


class Blind(Loaded):
  """With shut gates: the text alone decides."""

  def params(self):
    shut = lambda path, x: x * 0 if "gate" in jax.tree_util.keystr(path) else x
    return jax.tree_util.tree_map_with_path(shut, super().params())


class Open(Loaded):
  """With gates wide open, which training would open."""

  def params(self):
    wide = lambda path, x: x * 0 + 3 if "gate" in jax.tree_util.keystr(path) else x
    return jax.tree_util.tree_map_with_path(wide, super().params())


def as_one(cls, loaded):
  return cls(**{f.name: getattr(loaded, f.name) for f in dataclasses.fields(loaded)})


def test_a_model_with_shut_gates_does_not_see(workdir):
  changes = image_sensitivity(as_one(Blind, load_model(workdir)), num_shots=1)
  assert changes.keys() == CHANGES.keys()
  for change in changes.values():
    assert (change.questions, change.answers, change.largest) == (4, 0, 0)
  assert told(changes).endswith("answers do not depend on the image")


def test_a_model_with_open_gates_sees(workdir):
  changes = image_sensitivity(as_one(Open, load_model(workdir)), "ask", num_questions=3)
  assert all(change.questions == 3 and change.largest > 1e-2 for change in changes.values())
  assert told(changes).endswith("answers depend on the image")


def test_the_verdict_and_its_status(workdir, capsys):
  status = main([str(workdir), "--questions", "2", "--shots", "0"])
  verdict = capsys.readouterr().out.splitlines()[-1]
  said = {0: "answers depend on the image", 1: "answers do not depend on the image"}
  assert verdict == said[status]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--eval", "ppl"], "unknown evaluator that asks 'ppl'"),
    (["--step", "7"], "no complete checkpoint of step 7"),
  ],
)
def test_mistakes_are_one_line(workdir, flags, message, capsys):
  assert main([str(workdir), *flags]) == 2
  assert message in capsys.readouterr().err
