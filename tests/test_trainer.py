import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from medflax import report, trainer
from medflax.build import Parts
from medflax.checkpoint import read_state
from medflax.utils import UserError
from tests import nano

ROOT = pathlib.Path(__file__).resolve().parent.parent
EVALS = "{'ppl': {'type': 'perplexity', 'every': 4, 'task': 'vqa', 'num_shots': 0}}"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return nano.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
  """All runs here share programs, which take most of their time to compile."""
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
  yield
  jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
  """Reports have their own tests."""
  monkeypatch.setattr(report, "write_report", lambda workdir: workdir / "report.html")
  monkeypatch.setattr(report, "fewshot_table", lambda workdir: "the table")


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
  """An uninterrupted run."""
  workdir = tmp_path_factory.mktemp("runs") / "a"
  return nano.train(nano.config(images, evals=EVALS), workdir)


def train_until(step, config, workdir, number, monkeypatch):
  """Trains, with a signal to this process as soon as `step` steps have been made."""
  take = trainer.Window.add

  def add(self, metrics):
    take(self, metrics)
    add.steps += 1
    if add.steps == step:
      signal.raise_signal(number)  # at once, and to this thread

  add.steps = 0
  monkeypatch.setattr(trainer.Window, "add", add)
  trainer.train(config, workdir, command="the command")
  monkeypatch.setattr(trainer.Window, "add", take)


def metrics(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_state(a, b, step):
  left, right = read_state(a / "checkpoints", step), read_state(b / "checkpoints", step)
  assert left.keys() == right.keys()
  assert any(path.startswith("trainable/") for path in left)
  for path, value in left.items():
    np.testing.assert_array_equal(value, right[path], err_msg=path)


def test_a_run_leaves_the_promised_files(finished, images):
  config = json.loads((finished / "config.json").read_text())
  assert config["train"]["num_steps"] == 6 and config["data"]["root"] == str(images)
  environment = json.loads((finished / "environment.json").read_text())
  assert environment["parameters"] == environment["trainable_parameters"] > 1000
  assert environment["jax"] == jax.__version__
  lines = metrics(finished)
  assert [line["step"] for line in lines if "train/loss" in line] == [2, 4, 6]
  assert [line["step"] for line in lines if "ppl/perplexity" in line] == [4, 6]
  expected = {"loss", "lr", "grad_norm", "samples_per_s", "data_wait", "bad_steps", "seconds"}
  expected |= {"tokens_per_s", "media_per_s", "step_seconds", "save_wait", "mfu", "recompilations"}
  assert expected <= {name.removeprefix("train/") for name in lines[-2]}
  assert 0 < lines[-2]["train/mfu"] < 1 and lines[-2]["memory/host_gib"] > 0
  assert lines[-2]["train/recompilations"] == 0
  assert lines[-2]["train/bad_steps"] == 0 and lines[-2]["train/loss"] < 8
  assert list((finished / "tensorboard").iterdir())
  # keep=2 of the saves at 2, 4 and 6
  assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["4", "6"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_is_bit_identical(
  number, finished, images, tmp_path, monkeypatch, capsys
):
  config = nano.config(images, evals=EVALS)
  train_until(3, config, tmp_path / "b", number, monkeypatch)
  out = capsys.readouterr().out
  assert f"stopped by {signal.Signals(number).name} at step 3" in out
  assert "to go on:\n  the command\n" in out
  assert (tmp_path / "b/checkpoints/3").is_dir()
  trainer.train(config, tmp_path / "b", command="")
  assert "resumed from step 3" in capsys.readouterr().out
  assert_same_state(finished, tmp_path / "b", 6)
  assert [x["step"] for x in metrics(tmp_path / "b") if "train/loss" in x] == [2, 4, 6]


def test_a_finished_run_is_left_alone(finished, images, capsys):
  before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
  trainer.train(nano.config(images, evals=EVALS), finished, command="")
  out = capsys.readouterr().out
  assert "has finished" in out and "the table" in out
  assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}


def test_a_missing_evaluation_is_made_up_for(finished, images):
  results = finished / "evals/ppl/6/results.json"
  before = json.loads(results.read_text())
  results.unlink()
  trainer.train(nano.config(images, evals=EVALS), finished, command="")
  assert json.loads(results.read_text())["metrics"] == before["metrics"]
  assert [x["step"] for x in metrics(finished) if "ppl/perplexity" in x] == [4, 6]


def test_another_config_is_shown_and_refused_unless_allowed(finished, images, tmp_path, capsys):
  workdir = tmp_path / "c"
  shutil.copytree(finished, workdir)
  other = {"train__log_every": "3", "evals": EVALS.replace("4", "2")}
  with pytest.raises(UserError, match=r"evals\.ppl\.every: 4 -> 2; train\.log_every: 2 -> 3"):
    trainer.train(nano.config(images, **other), workdir, command="")
  before = (workdir / "evals/ppl/6/results.json").stat().st_mtime_ns
  allowed = nano.config(images, **other, checkpoint__allow_config_change="true")
  trainer.train(allowed, workdir, command="")
  assert "config changed: train.log_every: 2 -> 3" in capsys.readouterr().out
  assert json.loads((workdir / "config.json").read_text())["train"]["log_every"] == 3
  assert (workdir / "evals/ppl/6/results.json").stat().st_mtime_ns > before


# As more training only lessens it, the first perplexity is the highest, and no later one is better.
WORST_FIRST = {
  "evals": "{'ppl': {'type': 'perplexity', 'every': 1, 'task': 'vqa', 'num_shots': 0},"
  " 'end': {'type': 'perplexity', 'every': 0, 'task': 'vqa', 'num_shots': 0}}",
  **{"best__metric": "ppl/perplexity", "best__mode": "max", "best__patience": "2"},
  "checkpoint__keep": "1",
}


def test_a_run_ends_early_keeps_its_best_step_and_judges_it(images, tmp_path, monkeypatch, capsys):
  config = nano.config(images, **WORST_FIRST)
  whole = nano.train(config, tmp_path / "whole")
  assert "ppl/perplexity is no better than at step 1: training ends" in capsys.readouterr().out
  assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["1", "3"]
  assert sorted(p.name for p in (whole / "evals/ppl").iterdir()) == ["1", "2", "3"]
  (judged,) = (whole / "evals/end").iterdir()
  value = lambda path: next(iter(json.loads(path.read_text())["metrics"].values()))["value"]
  assert judged.name == "1"
  assert value(judged / "results.json") == value(whole / "evals/ppl/1/results.json")
  assert value(judged / "results.json") > value(whole / "evals/ppl/3/results.json")

  trainer.train(config, whole, command="")
  assert "has finished" in capsys.readouterr().out
  (judged / "results.json").unlink()
  trainer.train(config, whole, command="")  # the best step is not the newest: it is read again
  assert value(judged / "results.json") == value(whole / "evals/ppl/1/results.json")

  train_until(2, config, tmp_path / "killed", signal.SIGTERM, monkeypatch)
  (tmp_path / "killed/evals/ppl/3").mkdir(parents=True)  # of a run that got further, unsaved
  results = (whole / "evals/ppl/3/results.json").read_text()
  (tmp_path / "killed/evals/ppl/3/results.json").write_text(results)
  trainer.train(config, tmp_path / "killed", command="")
  for step in (1, 3):
    assert_same_state(whole, tmp_path / "killed", step)
  assert (tmp_path / "killed/evals/end/1/results.json").exists()


def test_a_foreign_or_locked_folder_is_refused_untouched(images, tmp_path):
  (tmp_path / "thesis.tex").write_text("years of work")
  with pytest.raises(UserError, match=r"not a run .*thesis\.tex"):
    trainer.train(nano.config(images), tmp_path, command="")
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
  with pytest.raises(UserError, match="is a file"):
    trainer.train(nano.config(images), tmp_path / "thesis.tex" / "run", command="")


def test_non_finite_losses_end_the_run_with_a_line(images, tmp_path, monkeypatch):
  put = Parts.put
  poison = lambda parts, batch: put(parts, batch | {"loss_mask": batch["loss_mask"] * np.nan})
  monkeypatch.setattr(Parts, "put", poison)
  config = nano.config(images, evals=EVALS, train__max_bad_steps="2")
  with pytest.raises(UserError, match=r"step 2: .* not finite 2 times in a row"):
    trainer.train(config, tmp_path / "d", command="")


def test_dry_run_makes_nothing(images, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  trainer.dry_run(nano.config(images, trainable="connector/.*"))
  out = capsys.readouterr().out
  for text in ("connector/latents", "media/image", "[2, 3, 8, 8, 3]", "optimiser", "data 1 ·"):
    assert text in out
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_kill_and_resume(tmp_path, images):
  """benchmarks/kill_resume.py with a few kills."""
  script = ROOT / "benchmarks" / "kill_resume.py"
  command = nano.command(images, tmp_path / "unused", train__num_steps="60")[3:-1]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, script, "--kills=3", f"--workdir={tmp_path}", "--", *command],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "bit-identical" in done.stdout
