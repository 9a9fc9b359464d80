"""The report of a run: complete, self-contained, safe, and possible at any moment."""

import json
import pathlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax.report import fewshot_table, write_report
from medflax.report.plots import BLUE, Series, line_chart, ticks
from medflax.report.run import read_run
from medflax.utils import UserError
from tests.report import made


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
  return made.make_workdir(tmp_path_factory.mktemp("run"))


def test_report_is_one_self_contained_file(workdir):
  path = write_report(workdir)
  assert path == workdir / "report.html"
  page = made.Page(content := path.read_text("utf-8"))
  assert not page.loads  # the pictures are in the data of the gallery
  assert page.data["pictures"]
  assert set(page.scripts) == {"application/json", ""}
  assert not {"link", "iframe", "object"} & set(page.tags)
  assert "@import" not in content
  assert "url(" not in content
  assert not page.unbalanced
  assert not page.open


def test_report_links_to_the_pages_of_evaluations(workdir):
  page = made.Page(write_report(workdir).read_text("utf-8"))
  links = [link for link in page.links if not link.startswith("#")]
  assert links == ["evals/binding/1200/report.html", "evals/volumes/1200/report.html"]
  assert all((workdir / link).is_file() for link in links)


def test_report_shows_every_part(workdir):
  page = write_report(workdir).read_text("utf-8")
  for text in (
    "flamingo_med · tiny",
    "1,200",
    "1.23 M",
    "0.930",  # binding at 4 shots
    "images shuffled",
    "no image",
    "chance",
    "majority",
    "leaves out 3 of 512",
    "Training loss",
    "perplexity/per_token",
    "✓ right",
    "✗ wrong",
    "Which finding does this volume show?",
    "the PNG ends early",
    "<th>binding</th><td>49,200</td><td>1,172,400</td>",  # documents and tokens
    "packing filled 95.4% of its tokens.",
    "0123456789ab",
    "&quot;schedule&quot;: &quot;cosine&quot;",
    "<th>jax</th><td>0.10.2</td>",
  ):
    assert text in page, text
  pictures = made.Page(page).data["pictures"]
  assert any(picture["wide"] for picture in pictures)  # the strip of a volume's slices
  assert not all(picture["wide"] for picture in pictures)


def test_same_files_same_report(workdir):
  assert write_report(workdir).read_bytes() == write_report(workdir).read_bytes()


def test_markup_and_odd_characters_in_data_are_text(tmp_path):
  made.make_workdir(tmp_path)
  attack = "<script>alert(1)</script>\u2028<img src=//evil>\"'"
  folder = tmp_path / "evals/binding/1200"
  sample = json.loads((folder / "samples.jsonl").read_text("utf-8").split("\n")[3])
  keys = ("id", "task", "question", "answer", "prediction")
  sample |= dict.fromkeys(keys, attack) | {"choices": [attack, attack]}
  sample["support"] = [shot | {"question": attack, "answer": attack} for shot in sample["support"]]
  made.write_lines(folder / "samples.jsonl", [sample])
  for name in ("skipped", "noted"):
    made.write_lines(tmp_path / f"{name}.jsonl", [{"id": attack, attack: attack}])
  config = json.loads((tmp_path / "config.json").read_text()) | {"name": attack}
  made.write_json(tmp_path / "config.json", config)
  for path in (write_report(tmp_path), folder / "report.html"):
    page = made.Page(path.read_text("utf-8"))
    assert page.tags.count("script") == 2
    assert "alert" not in page.scripts[""]
    assert not page.loads
    assert not {"img", "onerror"} & {*page.tags, *page.attributes}
    [card] = [card for card in page.data["cards"] if card["id"] == attack]
    assert ["answer", attack, ""] in card["rows"]


def test_report_without_anything_but_a_config(tmp_path):
  made.write_json(tmp_path / "config.json", {"name": "empty"})
  page = write_report(tmp_path).read_text("utf-8")
  assert "No few-shot evaluation has finished yet" in page
  assert fewshot_table(tmp_path) == ""


@pytest.mark.parametrize(
  "part", ["metrics.jsonl", "environment.json", "skipped.jsonl", "evals/binding/1200/samples.jsonl"]
)
def test_report_without_one_part(tmp_path, part):
  (made.make_workdir(tmp_path) / part).unlink()
  assert not made.Page(write_report(tmp_path).read_text("utf-8")).unbalanced


def test_report_without_the_pictures(tmp_path):
  for picture in made.make_workdir(tmp_path).glob("evals/*/*/media/*.png"):
    picture.unlink()
  page = made.Page(write_report(tmp_path).read_text("utf-8"))
  assert not page.data["pictures"]
  assert {card["verdict"][1] for card in page.data["cards"]} == {"✓ right", "✗ wrong"}


def test_foreign_or_damaged_workdirs_are_named(tmp_path):
  with pytest.raises(UserError, match=re.escape("holds no config.json")):
    write_report(tmp_path)
  made.make_workdir(tmp_path)
  results = tmp_path / "evals/binding/1200/results.json"
  results.write_text('{"metrics": {"a": 1}}')
  with pytest.raises(UserError, match=re.escape(str(results))):
    write_report(tmp_path)
  results.write_text('{"metr')
  with pytest.raises(UserError, match="not JSON"):
    write_report(tmp_path)


def test_scalars_of_a_resumed_run(tmp_path):
  made.write_json(tmp_path / "config.json", {})
  lines = ['{"step": 2, "train/loss": 5}', '{"step": 1, "train/loss": 3}', '{"step": 2, "tra']
  lines += ['{"step": 2, "train/loss": 2.5}', '{"step": 3, "train/loss": NaN}']
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  run = read_run(tmp_path)
  assert run.scalars == {"train/loss": [(1, 3), (2, 2.5)]}
  assert run.torn == 1
  assert "left out: 1" in write_report(tmp_path).read_text("utf-8")


def test_newest_evaluation_counts_by_number_not_by_text(tmp_path):
  made.make_workdir(tmp_path)
  older = {"binding/4shot/exact_match": made.measurement(0.1)}
  made.write_evaluation_files(tmp_path / "evals/binding/900", "binding", older, [])
  assert [e.step for e in read_run(tmp_path).evaluations] == [1200, 1200, 1200]


def test_terminal_table(workdir):
  lines = fewshot_table(workdir).splitlines()
  assert max(map(len, lines)) <= 100
  assert lines[0].split()[:2] == ["binding", "(exact"]
  assert re.search(r"images shown +0\.490 ±\.043", lines[1])
  assert "images shuffled" in lines[2]
  assert "no image" in lines[3]
  assert lines[4].split() == ["chance", *["0.500"] * 5]
  assert lines[5].split() == ["majority", *["0.070"] * 5]


@given(st.lists(st.integers(0, 64), min_size=1, max_size=14, unique=True))
def test_terminal_table_holds_any_number_of_shots(tmp_path_factory, shots):
  path = tmp_path_factory.mktemp("run")
  made.write_json(path / "config.json", {})
  name = "a_rather_long_name_of_an_evaluator"
  metrics = {f"{name}/{k}shot/exact_match": made.measurement(k / 64) for k in shots}
  made.write_evaluation_files(path / f"evals/{name}/1", "binding", metrics, [])
  table = fewshot_table(path)
  assert max(map(len, table.splitlines())) <= 100
  assert table.count("±") == len(shots)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_rising_and_inside(low, span):
  marks = ticks(low, high := low + span)
  assert len(marks) <= 7
  assert marks == sorted(set(marks))
  slack = 1e-6 * max(abs(low), abs(high), 1)
  assert all(low - slack <= mark <= high + slack for mark in marks)


def test_chart_of_a_single_point_and_of_a_constant():
  for x, y in (([3], [0.5]), ([1, 2], [0.0, 0.0])):
    chart = line_chart([Series("a<b", x, y, BLUE)], title="t", x_label="x", y_label="y")
    assert "a&lt;b" in chart
    assert "nan" not in chart
