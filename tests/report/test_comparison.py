"""The page of a comparison: differences and who is right."""

import re

from medflax.report.comparison import write_comparison
from medflax.report.plots import BLUE, GREY, ORANGE, Bar, forest_chart
from tests.report import made
from tests.report.test_evaluation import ATTACK

SYSTEMS = ["random", "nearest"]


def comparison(**changes) -> dict:
  """Two systems at two numbers of shots, in one slice, and one measurement that is not paired."""
  rows = [
    _row(0.10, (0.04, 0.16)),
    _row(-0.08, (-0.12, -0.03), num_shots=4),
    _row(0.01, (-0.03, 0.05), num_shots=4, slice="Head"),
    _row(0.0, (-0.01, 0.01), num_shots=4, condition="no_image"),
    _row(0.0, (0, 0), metric="cider") | {"difference": None, "mcnemar": None},
    _row(0.0, (0, 0), metric="accuracy", mcnemar={"only_a": 8, "only_b": 9, "p": None}),
  ]
  disagreement = {
    "id": "q1",
    "task": "plane",
    "num_shots": 4,
    "condition": "image",
    "question": "Which plane?",
    "answer": "axial",
    "predictions": ["axial", ""],
    "correct": [True, False],
  }
  return {
    "systems": SYSTEMS,
    "rows": rows,
    "left_out": {"only in random": ["caption"]},
    "disagreements": [disagreement],
  } | changes


def _row(difference, ci95, **changes) -> dict:
  return {
    "name": "vqa",
    "num_shots": 0,
    "condition": "image",
    "metric": "exact_match",
    "slice": "",
    "values": [made.measurement(0.5), made.measurement(0.5 + difference)],
    "difference": {"value": difference, "ci95": list(ci95), "p": 0.0004},
    "mcnemar": {"only_a": 17, "only_b": 4, "p": 0.007},
  } | changes


def test_page_shows_every_number(tmp_path):
  path = write_comparison(tmp_path / "compare.html", comparison())
  page = made.Page(content := path.read_text("utf-8"))
  for text in (
    "random against nearest",
    "exact match of nearest differs by +0.100 from that of random (+0.040 to +0.160, p &lt; 0.001)",
    "nearest − random",
    "vqa/Head, 4 shots",
    "vqa, 4 shots, no image",
    "17 / 4",
    "p 0.007",
    "<td>8 / 9</td>",
    "caption",
  ):
    assert text in content, text
  [card] = page.data["cards"]
  assert card["verdict"][1] == "right: random"
  assert card["rows"][2:] == [["random", "axial", "right"], ["nearest", "(nothing)", "wrong"]]
  assert not page.loads
  assert not page.unbalanced


def test_page_without_disagreements_runs_no_script(tmp_path):
  plain = {key: value for key, value in comparison().items() if key != "disagreements"}
  page = made.Page(write_comparison(tmp_path / "a.html", plain).read_text("utf-8"))
  assert not page.scripts


def test_names_of_systems_and_evaluations_are_text(tmp_path):
  rows = [_row(0.1, (0, 0.2), name=ATTACK, metric=ATTACK, slice=ATTACK, condition=ATTACK)]
  given = comparison(systems=[ATTACK, ATTACK + "2"], rows=rows, left_out={ATTACK: ATTACK})
  content = write_comparison(tmp_path / "a.html", given).read_text("utf-8")
  assert content.count("<script") == 2
  assert "img" not in made.Page(content).tags


def test_intervals_are_drawn_where_they_are():
  bars = [Bar("up", 2, 1, 3, BLUE), Bar("down", -2, -3, -1, ORANGE), Bar("none", 0, -1, 1, GREY)]
  chart = forest_chart(bars, title="t", x_label="x", reference=0.0)
  ends = [
    (color, float(low), float(high))
    for low, high, color in re.findall(r'd="M([\d.]+) [\d.]+H([\d.]+)M.*?stroke="(#\w+)"', chart)
  ]
  [zero] = re.findall(r'class="axis" d="M([\d.]+) ', chart)
  assert [color for color, _, _ in ends] == [BLUE, ORANGE, GREY]
  assert ends[0][1] > float(zero) > ends[1][2]
  assert ends[2][1] < float(zero) < ends[2][2]
