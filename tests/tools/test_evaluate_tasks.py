"""Offline evaluations on tasks: from prepared folders, with nothing done twice or replaced."""

import json

import numpy as np
import PIL.Image
import pytest

from medflax.data.builders import BUILDERS
from medflax.data.builders.prepare import prepare
from medflax.tasks import evaluation
from medflax.tools.evaluate import main
from tests import nano

ANSWERS = {"OPEN": ("liver", "left lung"), "CLOSED": ("Yes", "CT")}
SHORT = ["--set", "decoding.max_new_tokens=2", "--set", "batch_size=4", "--set", "num_pictured=0"]


@pytest.fixture(scope="module")
def slake(tmp_path_factory):
  """SLAKE with 24 questions about 12 images."""
  source = tmp_path_factory.mktemp("source")
  splits: dict[str, list] = {"train": [], "validate": [], "test": []}
  for i in range(24):
    name = f"x{i // 2}/source.jpg"
    (source / "imgs" / name).parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((8, 8), 20 * (i // 2), np.uint8)).save(source / "imgs" / name)
    kind = ("OPEN", "CLOSED")[i % 2]
    row = {"qid": i, "img_name": name, "question": "What is it?", "q_lang": "en"}
    row |= {"answer": ANSWERS[kind][i // 2 % 2], "answer_type": kind, "content_type": "Organ"}
    splits["train" if i < 12 else "validate" if i < 16 else "test"].append(row)
  for split, rows in splits.items():
    (source / f"{split}.json").write_text(json.dumps(rows))
  target = tmp_path_factory.mktemp("prepared") / "slake_en"
  prepare(BUILDERS["slake_en"], source, target)
  return target


@pytest.fixture(scope="module")
def workdir(slake, tmp_path_factory):
  """A run that evaluated a task when it ended."""
  images = nano.write_images(tmp_path_factory.mktemp("images"))
  workdir = tmp_path_factory.mktemp("runs") / "a"
  changes = {"decoding.max_new_tokens": 2, "batch_size": 4, "num_pictured": 0}
  section = evaluation("slake_en/llava_med_closed", slake, changes)
  return nano.train(
    nano.config(images, evals=str({"task": section}), train__num_steps="2"), workdir
  )


def asked(workdir, slake, *flags):
  data = ["--data", f"slake_en={slake}"]
  return main([str(workdir), "--tasks=slake_en/llava_med_closed", *data, *SHORT, *flags])


@pytest.fixture(scope="module")
def results(workdir, slake, tmp_path_factory):
  to = tmp_path_factory.mktemp("to")
  assert asked(workdir, slake, "--to", str(to)) == 0
  return to / "evals" / "slake_en-llava_med_closed" / "2"


def test_it_scores_what_the_loop_scored(workdir, results):
  before = workdir / "evals" / "task" / "2"
  assert (results / "samples.jsonl").read_bytes() == (before / "samples.jsonl").read_bytes()
  one, other = (json.loads((x / "results.json").read_text()) for x in (before, results))
  named = {name.split("/", 1)[1]: value for name, value in one.pop("metrics").items()}
  metrics = {name.split("/", 1)[1]: value for name, value in other.pop("metrics").items()}
  assert metrics == named and "0shot/likelihood_accuracy" in metrics
  assert one.pop("git") and other.pop("git")  # work may go on between the two
  assert one == other


def test_it_asks_closed_questions_with_the_candidates_of_the_annotation(results):
  lines = [json.loads(line) for line in (results / "samples.jsonl").read_text().splitlines()]
  assert {line["meta"]["answer_type"] for line in lines} == {"closed"}
  assert {x["text"] for line in lines for x in line["candidates"]} == set(ANSWERS["CLOSED"])
  found = json.loads((results / "results.json").read_text())
  assert found["protocol"]["name"] == "slake_en/llava_med_closed"
  assert found["protocol"]["version"] == "1 with decoding.max_new_tokens=2"
  assert (results / "report.html").exists()


def test_what_was_evaluated_is_told_and_not_done_again(workdir, slake, results, capsys):
  before = {path: path.stat().st_mtime_ns for path in results.glob("*.json*")}
  to = str(results.parents[2])
  assert asked(workdir, slake, "--to", to) == 0
  assert "slake_en-llava_med_closed/0shot/exact_match" in capsys.readouterr().out
  assert {path: path.stat().st_mtime_ns for path in results.glob("*.json*")} == before


def test_another_evaluation_replaces_nothing(workdir, slake, results, capsys):
  to = str(results.parents[2])
  assert asked(workdir, slake, "--to", to, "--set", "num_episodes=2") == 2
  error = capsys.readouterr().err
  assert "is another evaluation of slake_en-llava_med_closed (evaluation.num_episodes" in error
  assert "choose another --to" in error


def test_a_config_file_gets_the_weights_of_a_run(workdir, slake, results, tmp_path):
  overrides = json.loads((workdir / "config.json").read_text())
  flags = {**nano.OVERRIDES, "data.root": overrides["data"]["root"], "train.num_steps": "2"}
  given = [f"--config.{name}={text}" for name, text in flags.items()]
  config = ["--config", f"{nano.CONFIG}:data=folder", "--checkpoint", str(workdir)]
  tasks = ["--tasks=slake_en/llava_med_closed", "--data", f"slake_en={slake}", *SHORT]
  assert main([*config, *given, *tasks, "--to", str(tmp_path)]) == 0
  samples = tmp_path / "evals" / "slake_en-llava_med_closed" / "2" / "samples.jsonl"
  assert samples.read_bytes() == (results / "samples.jsonl").read_bytes()


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--tasks=slake_en/oficial"], "unknown task 'slake_en/oficial'; did you mean 'slake_en/off"),
    (["--tasks=slake_en/official"], "is about slake_en: give its prepared folder, --data slake_en"),
    (["--tasks=slake_en/official", "--data", "slake_en"], "--data slake_en needs a value"),
    (["--tasks=slake_zh/official", "--data", "slake_zh={slake}"], "that folder is of slake_en"),
    (["--tasks=slake_en/official", "--set", "shots=3"], "unknown field of an evaluation 'shots'"),
    (["--set", "num_shots=1"], "--set num_shots=1 is for --tasks"),
    (["--checkpoint", "x"], "has its own checkpoints"),
    (["--config", "x.py"], "give either a workdir or --config"),
    (["--tasks=slake_en/official", "--set", "decoding=1"], "--set decoding.FIELD=VALUE"),
  ],
)
def test_mistakes_are_one_line(workdir, slake, flags, message, capsys):
  assert main([str(workdir), *(flag.format(slake=slake) for flag in flags)]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert message in error
