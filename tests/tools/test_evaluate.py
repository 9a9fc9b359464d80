"""Evaluating offline is evaluating in the loop, on a checkpoint of one's choice."""

import shutil

import pytest

from medflax.tools.evaluate import main
from tests import nano

EVALS = (
  "{'ask': {'type': 'fewshot_vqa', 'every': 0, 'task': 'vqa', 'num_shots': (0, 1), 'split': 'test',"
  " 'batch_size': 4, 'decoding': {'max_new_tokens': 2}, 'num_pictured': 1},"
  " 'ppl': {'type': 'perplexity', 'every': 0, 'task': 'vqa', 'num_shots': 0, 'batch_size': 4}}"
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  images = nano.write_images(tmp_path_factory.mktemp("images"))
  workdir = tmp_path_factory.mktemp("runs") / "a"
  return nano.train(nano.config(images, evals=EVALS, train__ema="0.9"), workdir)


def files(folder):
  return {path.relative_to(folder): path.read_bytes() for path in folder.glob("*/6/*.json*")}


def test_offline_results_are_the_loops(workdir, capsys):
  before = files(workdir / "evals")
  assert len(before) == 4
  shutil.rmtree(workdir / "evals")
  assert main([str(workdir)]) == 0
  assert files(workdir / "evals") == before
  assert "ask/1shot/exact_match@no_image" in capsys.readouterr().out


def test_one_evaluator_of_an_earlier_step(workdir):
  assert main([str(workdir), "--step", "4", "--eval", "ppl"]) == 0
  assert [path.parent.name for path in (workdir / "evals").glob("*/4")] == ["ppl"]
  results = [workdir / "evals" / "ppl" / step / "results.json" for step in ("4", "6")]
  assert results[0].read_bytes() != results[1].read_bytes()


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--step", "5"], "no complete checkpoint of step 5 in"),
    (["--eval", "asks"], "unknown evaluator 'asks'; did you mean 'ask'?"),
  ],
)
def test_what_is_not_there_is_told_in_one_line(workdir, flags, message, capsys):
  assert main([str(workdir), *flags]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert message in error


def test_a_folder_that_is_no_run(tmp_path, capsys):
  assert main([str(tmp_path)]) == 2
  assert "is not a run" in capsys.readouterr().err
