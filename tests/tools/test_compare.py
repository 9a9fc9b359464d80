"""Comparisons of runs: what is paired, counted, refused and written."""

import json

import numpy as np
import pytest

from medflax.tools import compare
from medflax.tools.paired_runs import parse_systems
from medflax.utils import UserError


def write_run(folder, rates, *, name="binding", step=100, seeds=(0,), shots=(0, 4), **changes):
  """A run whose answers are right at one rate for each number of shots; 60 questions."""
  rng = np.random.default_rng([*folder.name.encode(), *name.encode()])
  lines = []
  for seed in seeds:
    for k, rate in zip(shots, rates, strict=True):
      for condition in ("image", "shuffled"):
        for index in range(60):
          right = bool(rng.random() < rate)
          lines.append(
            {
              "id": f"q{index}",
              "group": f"patient {index // 2}",
              "task": "binding",
              "num_shots": k,
              "condition": condition,
              "seed": seed,
              "question": f"What is {index}?",
              "answer": "a mass",
              "prediction": "a mass" if right else "no",
              "correct": right,
              "scores": {"exact_match": float(right), "token_f1": 0.5 + 0.5 * right},
              "meta": {"organ": "lung" if index < 20 else "heart"},
            }
            | changes.get("line", {})
          )
  into = folder / "evals" / name / str(step)
  into.mkdir(parents=True)
  lines = lines[changes.get("skip", 0) :]
  (into / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  results = {"step": step, "git": "", "scorers": changes.get("scorers", {}), "metrics": {}}
  (into / "results.json").write_text(json.dumps(results))
  return folder


def run(*argv):
  return compare.main(list(map(str, argv)))


def rows_of(comparison, **fields):
  return [row for row in comparison["rows"] if fields.items() <= row.items()]


def test_two_runs(tmp_path, capsys):
  a, b = write_run(tmp_path / "a", [0.4, 0.4]), write_run(tmp_path / "b", [0.4, 0.9])
  assert run(a, f"better={b}", "--slice-by", "organ", "--to", tmp_path / "out") == 0
  out = capsys.readouterr().out
  assert out.startswith("| evaluation | shots | condition | metric | n |")
  assert "better − " in out and "left out" not in out
  written = json.loads((tmp_path / "out" / "compare.json").read_text())
  assert written["systems"] == [str(a), "better"] and written["left_out"] == {}
  [row] = rows_of(written, num_shots=4, metric="exact_match", slice="")
  assert row["name"] == "binding" and row["condition"] == "image"
  assert [value["n"] for value in row["values"]] == [60, 60]
  difference = row["difference"]
  assert difference["value"] == pytest.approx(row["values"][1]["value"] - row["values"][0]["value"])
  assert difference["ci95"][0] > 0.2 and difference["p"] < 0.01
  assert row["differences"] == [None, difference] and row["mcnemar"] == difference["mcnemar"]
  counts = row["mcnemar"]["only_b"] - row["mcnemar"]["only_a"]
  assert counts / 60 == pytest.approx(difference["value"])
  [same] = rows_of(written, num_shots=0, metric="exact_match", slice="")
  assert same["difference"]["ci95"][0] < 0 < same["difference"]["ci95"][1]
  every = [r["difference"]["p_holm"] - r["difference"]["p"] for r in written["rows"]]
  assert min(every) >= 0 and max(every) > 0
  parts = [r["values"][0]["n"] for r in rows_of(written, num_shots=4, metric="token_f1")]
  assert parts == [60, 40, 20]
  [partly] = rows_of(written, num_shots=4, metric="token_f1", slice="")
  assert partly["mcnemar"] is None
  assert {path.name for path in (tmp_path / "out").iterdir()} == {
    *("compare.json", "compare.md", "compare.html")
  }
  assert "disagreements" not in written
  assert "What is" in (tmp_path / "out" / "compare.html").read_text()
  assert (tmp_path / "out" / "compare.md").read_text() in out
  assert run(a, b, "--to", tmp_path / "out") == 2
  assert "holds a comparison; name another folder" in capsys.readouterr().err


def test_the_same_run_differs_by_nothing(tmp_path):
  a = write_run(tmp_path / "a", [0.4, 0.6])
  comparison = compare.compare({"a": [a], "again": [a]})
  assert {row["difference"]["value"] for row in comparison["rows"]} == {0}
  assert {row["difference"]["p"] for row in comparison["rows"]} == {1}
  assert comparison["disagreements"] == []
  assert comparison == compare.compare({"a": [a], "again": [a]})


def test_several_seeds_are_averaged_by_question(tmp_path):
  runs = {
    name: [write_run(tmp_path / f"{name}{seed}", [rate, rate]) for seed in range(3)]
    for name, rate in (("a", 0.4), ("b", 0.7))
  }
  comparison = compare.compare(runs, metrics=["exact_match"])
  single = [compare.compare({"a": [run], "b": [run]}) for run in runs["a"]]
  [row] = rows_of(comparison, num_shots=4)
  means = [rows_of(c, num_shots=4, metric="exact_match")[0]["values"][0]["value"] for c in single]
  assert row["values"][0]["value"] == pytest.approx(np.mean(means)) == row["seeds"][0]["value"]
  assert row["seeds"][0]["stderr"] == pytest.approx(np.std(means, ddof=1))
  assert row["seeds"][0]["n"] == 3 and row["values"][0]["n"] == 60
  assert row["mcnemar"] is None and row["difference"]["p"] < 0.01


def test_draws_of_the_demonstrations_are_averaged_too(tmp_path):
  a = write_run(tmp_path / "a", [0.5, 0.5], seeds=(0, 1, 2))
  b = write_run(tmp_path / "b", [0.5, 0.5])
  [row, *_] = compare.compare({"a": [a], "b": [b]}, metrics=["exact_match"])["rows"]
  assert row["seeds"][0]["n"] == 3 and row["seeds"][1] is None


def test_the_newest_step_and_a_folder_of_one_evaluation(tmp_path):
  a = write_run(tmp_path / "a", [0.0, 0.0], step=90)
  write_run(a, [1.0, 1.0], step=800)
  b = write_run(tmp_path / "b", [1.0, 1.0], name="rices")
  comparison = compare.compare({"a": [a], "b": [b / "evals" / "rices" / "100"]})
  assert {row["name"] for row in comparison["rows"]} == {"binding / rices"}
  assert {value["value"] for row in comparison["rows"] for value in row["values"]} == {1}


def test_three_systems_are_compared_with_the_first(tmp_path, capsys):
  runs = {name: [write_run(tmp_path / name, [0.5, 0.5])] for name in "abc"}
  comparison = compare.compare(runs, metrics=["exact_match"], conditions=["shuffled"])
  assert [len(row["differences"]) for row in comparison["rows"]] == [3, 3]
  assert {row["condition"] for row in comparison["rows"]} == {"shuffled"}
  head, line, *_ = compare.table(comparison).split("\n")
  assert head.count("McNemar") == 2 and head.count("|") == line.count("|")


def test_what_is_left_out_is_counted(tmp_path, capsys):
  a = write_run(tmp_path / "a", [0.5, 0.5])
  b = write_run(tmp_path / "b", [0.5, 0.5], skip=7)
  write_run(a, [0.5, 0.5], name="vqa")
  write_run(a, [0.5, 0.5], name="caption")
  write_run(b, [0.5, 0.5], name="vqa")
  comparison = compare.compare({"a": [a], "b": [b]})
  assert comparison["left_out"] == {
    "evaluations that not all runs have": ["caption"],
    "binding: answers to questions that not all were asked": {"a": 7, "b": 0},
  }
  assert rows_of(comparison, name="binding", num_shots=0)[0]["values"][0]["n"] == 53
  assert run(a, b, "--eval", "binding") == 0
  assert 'left out: binding: answers to questions that not all were asked: {"a' in (
    capsys.readouterr().out.replace(str(a), "a")
  )


@pytest.mark.parametrize(
  ("changes", "argv", "message"),
  [
    ({"line": {"question": "Why?"}}, [], "'q0' of binding has not the same question in all runs"),
    ({"line": {"id": "q"}}, [], "was asked twice"),
    ({"line": {"task": "other"}}, [], "have no question in common"),
    ({"name": "vqa"}, ["--eval", "bindign"], "has no evaluation 'bindign'; did you mean"),
    ({"line": {"scores": {"bleu1": 0.5}}}, ["--metric", "bleu1"], "not all answers have the score"),
    ({"scorers": {"exact_match": "v2"}}, [], "exact_match is v1 in one run and v2 in another"),
    ({}, ["--condition", "blank"], "no answers under blank"),
    ({}, ["--slice-by", "id"], "60 values are too many"),
  ],
)
def test_what_cannot_be_compared_says_so(tmp_path, capsys, changes, argv, message):
  a = write_run(tmp_path / "a", [0.5, 0.5], scorers={"exact_match": "v1"})
  b = write_run(tmp_path / "b", [0.5, 0.5], **changes)
  for folder in (a, b):
    path = next(folder.glob("evals/*/*/samples.jsonl"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line | {"meta": {"id": line["id"]}} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert run(a, b, *argv) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_systems_have_names_and_runs(tmp_path):
  odd = tmp_path / "lr=1,seed=0"
  odd.mkdir()
  systems = parse_systems(["a=x,y", str(odd), "z"])
  assert [(name, list(map(str, runs))) for name, runs in systems.items()] == [
    ("a", ["x", "y"]),
    (str(odd), [str(odd)]),
    ("z", ["z"]),
  ]
  with pytest.raises(UserError, match="too few runs: 1, not 2 or more"):
    parse_systems(["a"])
  with pytest.raises(UserError, match="two systems are called a"):
    parse_systems(["a=x", "a=y"])


def test_a_folder_that_is_no_run_says_so(tmp_path, capsys):
  assert run(tmp_path / "none", tmp_path) == 2
  assert "none is no folder" in capsys.readouterr().err
  assert run(f"x={tmp_path}", tmp_path) == 2
  assert "has no evaluation with answers" in capsys.readouterr().err
