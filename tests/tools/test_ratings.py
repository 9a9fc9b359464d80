"""Blinded ratings: what the page shows and hides, and what is read back."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from medflax.tools import ratings
from medflax.utils import UserError

QUESTIONS = 12


@pytest.fixture
def runs(tmp_path):
  """Two runs on the same questions; a third of their answers are the same, one is markup."""
  return {name: [_run(tmp_path / name, name)] for name in ("alpha", "beta")}


def _run(folder, name):
  into = folder / "evals" / "slake" / "7"
  (into / "media").mkdir(parents=True)
  Image.fromarray(np.zeros((4, 4), np.uint8)).save(into / "media" / "x.png")
  lines = []
  for i in range(QUESTIONS):
    for shots in (0, 4):
      same = i % 3 == 0
      lines.append(
        {
          "id": f"q{i}",
          "group": f"patient {i // 2}",
          "task": "vqa",
          "num_shots": shots,
          "condition": "image",
          "seed": 0,
          "question": f"What is {i}?",
          "answer": "a <mass>",
          "prediction": f"same {i} " if same else f"<b>{name[0]}</b>{i} with {shots}",
          "correct": False,
          "scores": {"exact_match": 0.0},
          "media": ["media/x.png"] if i < 6 and name == "beta" else [],
        }
      )
  (into / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (into / "results.json").write_text(json.dumps({"step": 7, "metrics": {}}))
  return folder


def _rate(key, rater, score):
  """A file of ratings: `score(question, system)`, where answers are alike the first system's."""
  scores = {}
  for q, question in enumerate(key["questions"]):
    for system, place in reversed(list(enumerate(question["places"]))):
      scores[f"{q}.{place}"] = score(q, system)
  return {"ratings": key["ratings"], "rater": rater, "scores": scores}


def test_the_page_has_all_answers_and_no_names(runs, tmp_path):
  told = ratings.make(runs, tmp_path / "to", seed=3)
  assert told == {"questions": 12, "answers": 20, "questions without a picture": 6}
  page = (tmp_path / "to" / "ratings.html").read_text()
  assert "alpha" not in page and "beta" not in page and "patient" not in page
  assert (
    "a &lt;mass&gt;" in page and "&lt;b&gt;a&lt;/b&gt;1 with 4" in page and "with 0" not in page
  )
  assert page.count('<input type="radio"') == 20 * 11
  assert page.count('<img alt="" src="data:image/png;base64,') == 6
  key = json.loads((tmp_path / "to" / "key.json").read_text())
  shown = re.findall(r'<div class="rated"><p>(.*?)</p>', page)
  starts = np.cumsum([0, *[len(set(q["places"])) for q in key["questions"]]])
  for start, question in zip(starts, key["questions"], strict=False):
    mine, theirs = (shown[start + place] for place in question["places"])
    number = question["id"][1:]
    assert (mine == theirs == f"same {number}") or (
      mine.startswith("&lt;b&gt;a&lt;/b&gt;" + number) and theirs.startswith("&lt;b&gt;b")
    )
  firsts = {tuple(q["places"]) for q in key["questions"]}
  assert firsts == {(0, 0), (0, 1), (1, 0)}  # the order is drawn for each question


def test_questions_that_one_run_alone_was_asked_are_told(runs, tmp_path):
  samples = runs["beta"][0] / "evals" / "slake" / "7" / "samples.jsonl"
  samples.write_text("".join(samples.read_text().splitlines(keepends=True)[2:]))
  told = ratings.make(runs, tmp_path / "to")
  assert told["questions"] == QUESTIONS - 1
  left_out = told["left out: slake: answers to questions that not all were asked"]
  assert left_out == {"alpha": 2, "beta": 0}
  alone = ratings.make({"alpha": runs["alpha"]}, tmp_path / "alone")
  assert alone["questions"] == alone["answers"] == QUESTIONS


def test_the_same_seed_gives_the_same_files(runs, tmp_path):
  for to in ("a", "b"):
    ratings.make(runs, tmp_path / to, shots=0, number=5, seed=1)
  for name in ("ratings.html", "key.json"):
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
  ratings.make(runs, tmp_path / "c", shots=0, number=5, seed=2)
  assert (tmp_path / "c" / "key.json").read_bytes() != (tmp_path / "a" / "key.json").read_bytes()


def test_ratings_come_back_to_their_runs(runs, tmp_path, capsys):
  ratings.make(runs, tmp_path, seed=0)
  key = json.loads((tmp_path / "key.json").read_text())
  better = lambda q, system: 4 + 3 * system * (len(set(key["questions"][q]["places"])) > 1)
  paths = []
  for rater, more in (("ann", 0), ("bob", 1)):
    paths.append(tmp_path / f"{rater}.json")
    paths[-1].write_text(json.dumps(_rate(key, rater, lambda q, s, m=more: better(q, s) + m)))
  out = tmp_path / "out.json"
  assert ratings.main(["read", str(tmp_path / "key.json"), *map(str, paths), "--to", str(out)]) == 0
  found = json.loads(out.read_text())
  assert found["systems"]["alpha"]["value"] == pytest.approx(4.5)
  assert found["systems"]["beta"]["value"] == pytest.approx(6.5)
  difference = found["differences"]["beta − alpha"]
  assert difference["value"] == pytest.approx(2) and difference["n"] == QUESTIONS
  low, high = found["systems"]["beta"]["ci95"]
  assert 0 <= low < 6.5 < high <= 10
  assert difference["p"] == pytest.approx(2 / 2**6)  # six patients, all for beta
  assert found["raters"]["bob"] == {"answers": 20, "mean": pytest.approx(6.2)}
  assert 0.5 < found["agreement"] < 1
  told = capsys.readouterr().out
  assert "beta: 6.50 [" in told and "p 0.031" in told and "rater ann: 20 answers, 5.20" in told


def test_questions_that_are_not_rated_in_full_are_counted(runs, tmp_path):
  ratings.make(runs, tmp_path, seed=0)
  key = json.loads((tmp_path / "key.json").read_text())
  given = _rate(key, "ann", lambda q, system: 5)
  del given["scores"]["0.0"]
  found = ratings.read(key, {"ann.json": given})
  assert found["left out"] == {"questions not rated in full": 1}
  assert found["agreement"] is None and "none to tell" in ratings.table(found)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"ratings": "other"}, "x is not of the page"),
    ({"scores": {}}, "x: no rater's name or no scores"),
    ({"scores": {"0.0": 11}}, "x: 0.0=11 is no answer of the page with 0 to 10"),
    ({"scores": {"99.0": 5}}, "x: 99.0=5 is no answer"),
    ({"scores": {"0.0": True}}, "x: 0.0=True is no answer"),
    ({"scores": {"0.0": 5}}, "no question has all its answers rated"),
  ],
)
def test_files_that_are_no_ratings(change, message):
  key = {
    "ratings": "it",
    "systems": ["a", "b"],
    "questions": [{"id": "q", "group": "", "places": [1, 0]}],
  }
  with pytest.raises(UserError, match=message):
    ratings.read(key, {"x": {"ratings": "it", "rater": "ann", "scores": {}} | change})


def test_nobody_is_counted_twice_and_nothing_replaced(runs, tmp_path, capsys):
  ratings.make(runs, tmp_path)
  key = json.loads((tmp_path / "key.json").read_text())
  given = _rate(key, "ann", lambda q, system: 5)
  with pytest.raises(UserError, match="y: there are two files of 'ann'"):
    ratings.read(key, {"x": given, "y": given})
  command = ["make", *(f"{name}={run[0]}" for name, run in runs.items()), "--to", str(tmp_path)]
  assert ratings.main(command) == 2
  assert "is there already; name another folder" in capsys.readouterr().err
  assert ratings.main([*command[:-1], str(tmp_path / "x"), "--shots", "3"]) == 2
  assert "slake has answers with 0, 4 examples, not with 3" in capsys.readouterr().err
