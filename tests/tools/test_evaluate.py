"""Evaluating offline is evaluating in the loop, on a checkpoint of one's choice."""

import shutil
import signal
import subprocess
import sys
import time

import pytest

from medflax.evals.progress import FILE
from medflax.tools.evaluate import main
from tests import nano

# Prompts of two lengths: a second program is compiled when the first answers are kept.
# `again` shows images of `ask`, in another order, and at more steps.
EVALS = (
  "{'ask': {'type': 'fewshot_vqa', 'every': 0, 'task': 'vqa', 'num_shots': (0, 6), 'split': 'test',"
  " 'batch_size': 4, 'decoding': {'max_new_tokens': 2}, 'num_pictured': 1},"
  " 'again': {'type': 'fewshot_vqa', 'every': 2, 'task': 'vqa', 'num_shots': (3,), 'split': 'test',"
  " 'batch_size': 4, 'decoding': {'max_new_tokens': 2}, 'num_pictured': 0,"
  " 'candidates': 'choices', 'controls': ('shuffled',)},"
  " 'ppl': {'type': 'perplexity', 'every': 0, 'task': 'vqa', 'num_shots': 0, 'batch_size': 4}}"
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  images = nano.write_images(tmp_path_factory.mktemp("images"))
  workdir = tmp_path_factory.mktemp("runs") / "a"
  return nano.train(nano.config(images, evals=EVALS, train__ema="0.9"), workdir)


def files(folder, pattern):
  paths = [*folder.glob(f"{pattern}/results.json"), *folder.glob(f"{pattern}/samples.jsonl")]
  return {path.relative_to(folder): path.read_bytes() for path in paths}


def test_offline_results_are_the_loops(workdir, tmp_path, capsys):
  assert main([str(workdir), "--to", str(tmp_path)]) == 0
  of_loop = files(workdir / "evals", "*/6")
  assert len(of_loop) == 6
  assert files(tmp_path / "evals", "*/6") == of_loop
  assert "ask/6shot/exact_match@no_image" in capsys.readouterr().out


@pytest.mark.parametrize("step", ["4", "6"])
def test_an_evaluator_alone_answers_as_after_others(workdir, tmp_path, step):
  assert main([str(workdir), "--step", step, "--eval", "again", "--to", str(tmp_path)]) == 0
  of_loop = files(workdir / "evals", f"again/{step}")
  assert len(of_loop) == 2
  assert files(tmp_path / "evals", f"again/{step}") == of_loop


@pytest.mark.slow
def test_after_a_kill_it_goes_on_to_the_same_bytes(workdir):
  folder = workdir / "evals" / "ask" / "6"
  names = ("results.json", "samples.jsonl")
  before = {name: (folder / name).read_bytes() for name in names}
  shutil.rmtree(folder)
  command = [sys.executable, "-m", "medflax.tools.evaluate", str(workdir), "--eval", "ask"]
  count = lambda: (folder / FILE).read_bytes().count(b"\n") if (folder / FILE).exists() else 0
  with subprocess.Popen(command) as process:
    while process.poll() is None and count() < 2:  # a fingerprint, then a line for each batch
      time.sleep(0.001)
    process.kill()
  assert process.returncode == -signal.SIGKILL
  assert count() >= 2 and not any((folder / name).exists() for name in names)
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert "goes on after" in done.stdout + done.stderr
  assert {name: (folder / name).read_bytes() for name in names} == before
  assert not (folder / FILE).exists()


def test_one_evaluator_of_an_earlier_step(workdir):
  before = set((workdir / "evals").glob("*/4"))
  assert main([str(workdir), "--step", "4", "--eval", "ppl"]) == 0
  assert set((workdir / "evals").glob("*/4")) - before == {workdir / "evals" / "ppl" / "4"}
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
