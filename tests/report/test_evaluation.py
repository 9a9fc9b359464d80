"""The page of an evaluation: every number and every answer of its folder, and nothing else."""

import json
import re

import pytest

from medflax.report.evaluation import write_evaluation
from medflax.report.gallery import OTHER
from medflax.report.results import few_shot, read_evaluation
from medflax.utils import UserError
from tests.report import made

ATTACK = "</script><script>alert(1)</script><!--<img src=//evil onerror=alert(1)>\u2028\"'&amp;"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return made.make_scored_evaluation(tmp_path_factory.mktemp("evals") / "plane/400")


@pytest.fixture(scope="module")
def content(folder):
  return write_evaluation(folder).read_text("utf-8")


def test_page_is_one_self_contained_file(folder, content):
  page = made.Page(content)
  assert not page.loads
  assert all(link.startswith("#") for link in page.links)
  assert page.tags.count("script") == 2
  assert not {"link", "iframe", "object"} & set(page.tags)
  assert not page.unbalanced
  assert not page.open
  assert write_evaluation(folder).read_text("utf-8") == content


def test_page_shows_every_part(content):
  for text in (
    "plane: after 4 examples it answers 91.0% of 30 held-out questions right",
    *("images shown", "images shuffled", "no image", "text only", "chance", "majority"),
    "sd 0.040, 2 seeds",
    "plane: cider",
    "Head",  # a slice
    "calibration error",
    "<summary>plane, 4 shots</summary>",
    "stop string",
    "medpix_plane",
    "type beam, num_beams 5, max_new_tokens 8",
    "nearest_last",
    "Question: {question} Answer:",
    "leaves out 3 of 512",
  ):
    assert text in content, text


def test_measurements_by_slice_condition_and_seeds(folder):
  grids = {(grid.slice, grid.metric): grid for grid in few_shot(read_evaluation(folder))}
  assert set(grids) == {
    ("", "exact_match"),
    ("", "cider"),
    ("Head", "exact_match"),
    ("Spine", "exact_match"),
  }
  scores = grids["", "exact_match"]
  assert scores.shots == [0, 4]
  assert list(scores.values) == ["image", "shuffled", "no_image", "text_only"]
  assert scores.seeds["image"][4].n == 2
  assert scores.seeds["image"][4].stderr == 0.04
  assert set(scores.baselines) == {"chance", "majority"}
  assert not grids["", "cider"].baselines  # which are shares of right answers


def test_confusion_counts_every_answer_once(folder, content):
  samples = [s for s in read_evaluation(folder).answers if s["condition"] == "image"]
  [matrix, _] = re.findall(r"<summary>plane, . shots</summary>.*?</table>", content)
  shown = [int(n) for n in re.findall(r'prediction=[^"]*">(\d+)</a>', matrix)]
  assert sum(shown) == sum(s["num_shots"] == 4 for s in samples)
  assert matrix.count('class="hit"') == 3
  # "Axial" is the answer axial; "oblique, I think" is none.
  [other] = re.findall(r"answer=axial&amp;prediction=%28other%29\">(\d+)<", matrix)
  assert int(other) == 2


def test_cards_hold_what_was_asked_and_answered(folder, content):
  data = made.Page(content).data
  samples = read_evaluation(folder).answers
  assert len(data["cards"]) == len(samples)
  assert all(card["media"] for card in data["cards"][:6])  # those with pictures come first
  assert len(data["support"]) == 4 + 3  # four examples with pictures; two are the same without
  facets = {facet["name"]: facet["values"] for facet in data["facets"]}
  assert facets["verdict"] == ["right", "wrong"]
  assert facets["shots"] == ["0", "4"]
  assert facets["prediction"] == [OTHER, "axial", "coronal", "sagittal"]
  assert facets["age"][:2] == ["40", "41"]
  assert "task" not in facets  # there is one only
  sample = next(s for s in samples if s["condition"] == "shuffled" and s["num_shots"] == 4)
  [card] = [
    card
    for card in data["cards"]
    if card["head"] == "plane, 4 shots, images shuffled, seed 0" and card["id"] == sample["id"]
  ]
  assert ["model", sample["prediction"], "right" if sample["correct"] else "wrong"] in card["rows"]
  probabilities = [probability for _, probability, _ in card["candidates"]]
  assert probabilities == sorted(probabilities, reverse=True)
  assert [data["support"][index]["answer"] for index in card["support"]] == [
    shot["answer"] for shot in sample["support"]
  ]


def test_an_answer_cannot_break_out_of_the_data(folder, tmp_path):
  path = tmp_path / "plane/400"
  sample = read_evaluation(folder).answers[0]
  sample |= dict.fromkeys(("id", "group", "task", "question", "prediction", "stop"), ATTACK)
  sample |= {"answer": ATTACK + "\ud800", "meta": {ATTACK: [ATTACK]}, "choices": [ATTACK]}
  sample["candidates"] = [{"text": ATTACK, "logprob": 0.0, "probability": 1.0}]
  sample["support"] = [{"id": ATTACK, "question": ATTACK, "answer": ATTACK, "media": []}]
  results = json.loads((folder / "results.json").read_text())
  metrics = {f"plane/{ATTACK.replace('/', '-')}/0shot/exact_match": made.measurement(0.5)}
  made.write_json(
    path / "results.json", results | {"metrics": metrics, "notes": [ATTACK], ATTACK: ATTACK}
  )
  (path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
  page = made.Page(content := write_evaluation(path).read_text("utf-8"))
  assert page.tags.count("script") == 2
  assert content.count("<script") == content.count("</script") == 2
  assert not {"img", "onerror"} & {*page.tags, *page.attributes}
  [card] = page.data["cards"]
  assert card["id"] == ATTACK
  assert ["model", ATTACK, "wrong"] in card["rows"]


def test_perplexity_and_missing_samples_make_a_page_without_answers(tmp_path):
  folder = made.make_workdir(tmp_path) / "evals/perplexity/1200"
  page = made.Page(content := write_evaluation(folder).read_text("utf-8"))
  assert "perplexity/per_token" in content
  assert not page.scripts
  (folder / "samples.jsonl").unlink()
  assert write_evaluation(folder).read_text("utf-8") == content


def test_ten_thousand_answers(tmp_path):
  folder = made.make_scored_evaluation(tmp_path / "plane/400")
  lines = (folder / "samples.jsonl").read_text("utf-8")
  (folder / "samples.jsonl").write_text(lines * -(-10_000 // lines.count("\n")))
  page = made.Page(content := write_evaluation(folder).read_text("utf-8"))
  assert len(page.data["cards"]) >= 10_000
  assert len(content) < 12e6
  assert page.tags.count("article") == 0  # the browser makes those that are looked at


def test_other_folders_are_named(tmp_path):
  with pytest.raises(UserError, match=re.escape(f"{tmp_path} holds no results.json")):
    write_evaluation(tmp_path)
