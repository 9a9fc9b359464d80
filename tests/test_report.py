"""The report of a run: complete, self-contained, safe, and possible at any moment."""

import html.parser
import json
import math
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medflax.report import fewshot_table, write_report
from medflax.report.plots import BLUE, Series, line_chart, ticks
from medflax.report.run import read_run
from medflax.utils import UserError

SHOTS = (0, 1, 2, 4, 8)
WORDS = ("dax", "wug", "blick", "zorp", "fep", "tove")
FINDINGS = ("round opacity", "wedge", "ring lesion", "calcification", "effusion")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
  return make_workdir(tmp_path_factory.mktemp("run"))


def make_workdir(path: pathlib.Path, seed: int = 0) -> pathlib.Path:
  """A workdir as a run on the phantoms leaves it."""
  rng = np.random.default_rng(seed)
  config = {
    "name": "flamingo_med",
    "variant": "tiny",
    "seed": seed,
    "data": {"source": "phantom", "image_size": [32, 32]},
    "train": {"num_steps": 1200, "batch_size": 64},
    "optimizer": {"lr": 1e-3, "schedule": "cosine"},
  }
  _write_json(path / "config.json", config)
  environment = {
    "git": "0123456789ab",
    "python": "3.11.7",
    "jax": "0.10.2",
    "device": "cpu",
    "num_devices": 1,
    "parameters": 1_234_567,
    "trainable_parameters": 1_234_567,
  }
  _write_json(path / "environment.json", environment)

  final = {0: 0.49, 1: 0.64, 2: 0.79, 4: 0.93, 8: 0.97}
  lines = []
  for step in range(10, 1201, 10):
    loss = 0.35 + 2.6 * math.exp(-step / 180) + 0.12 * rng.standard_normal()
    scalars = {"train/loss": loss, "train/samples_per_s": 402 + rng.normal(0, 9)}
    lines.append({"step": step, **scalars, "train/data_wait": 0.011, "train/seconds": step / 5})
    seen = {"data/binding/documents": 41 * step, "data/binding/tokens": 977 * step}
    lines.append({"step": step, **seen, "data/tokens": 977 * step, "data/token_slots": 1024 * step})
    if step % 300 == 0:
      learnt = 1 - math.exp(-step / 260)
      values = {k: 0.5 + (value - 0.5) * learnt for k, value in final.items()}
      names = {f"binding/{k}shot/exact_match": value for k, value in values.items()}
      lines.append({"step": step, "perplexity/loss": loss + 0.04, **names})
  _write_lines(path / "metrics.jsonl", lines)

  metrics = {}
  for shots, value in final.items():
    metrics[f"binding/{shots}shot/exact_match"] = _measurement(value)
    metrics[f"binding/{shots}shot/exact_match@shuffled"] = _measurement(rng.normal(0.5, 0.01))
    metrics[f"binding/{shots}shot/exact_match@no_image"] = _measurement(rng.normal(0.5, 0.01))
    metrics[f"binding/{shots}shot/chance"] = _measurement(0.5)
    metrics[f"binding/{shots}shot/majority"] = _measurement(0.07)
  folder = path / "evals/binding/1200"
  samples = [_binding_sample(rng, folder, index) for index in range(40)]
  _write_evaluation(folder, "binding", metrics, samples)

  folder = path / "evals/volumes/1200"
  metrics = {f"volumes/{k}shot/exact_match": _measurement(0.9 + k / 100) for k in (0, 4)}
  metrics |= {f"volumes/{k}shot/chance": _measurement(0.2) for k in (0, 4)}
  samples = [_volume_sample(rng, folder, index) for index in range(6)]
  _write_evaluation(folder, "volumes", metrics, samples)

  samples = [{"id": f"binding-val-{i:05d}", "group": f"g{i}", "nll": 1.5} for i in range(3)]
  metrics = {"perplexity/loss": _measurement(0.41), "perplexity/per_token": _measurement(1.507)}
  _write_evaluation(path / "evals/perplexity/1200", "all", metrics, samples)
  _write_lines(
    path / "skipped.jsonl",
    [{"line": 17, "id": "case-0031", "reason": "images/ct-17.png: the PNG ends early"}],
  )
  _write_lines(path / "noted.jsonl", [{"path": "ct/series-3", "notes": "gantry tilt 12.0°"}])
  return path


def _measurement(value: float, n: int = 512) -> dict:
  stderr = math.sqrt(abs(value * (1 - value)) / n)
  ci95 = [value - 1.96 * stderr, value + 1.96 * stderr]
  return {"value": value, "stderr": stderr, "ci95": ci95, "n": n}


def _binding_sample(rng: np.random.Generator, folder: pathlib.Path, index: int) -> dict:
  shots = SHOTS[index % len(SHOTS)]
  pair = [str(word) for word in rng.choice(WORDS, 2, replace=False)]
  question = "What is this called? Choose one of the two words."
  support = [
    {
      "id": f"s{index}-{shot}",
      "question": question,
      "answer": pair[shot % 2],
      "media": [_picture(rng, folder, f"{index}-s{shot}", finding=shot % 2)],
    }
    for shot in range(shots)
  ]
  right = bool(rng.random() < 0.5 + shots / 20)
  return {
    "id": f"binding-test-{index:05d}",
    "group": f"g{index}",
    "task": "binding",
    "num_shots": shots,
    "condition": "image",
    "question": question,
    "answer": pair[0],
    "prediction": pair[0] if right else pair[1],
    "correct": right,
    "stop": "end",
    "choices": pair,
    "meta": {},
    "media": [_picture(rng, folder, f"{index}-q", finding=0)],
    "support": support,
  }


def _volume_sample(rng: np.random.Generator, folder: pathlib.Path, index: int) -> dict:
  right = index % 3 > 0
  answer = str(rng.choice(FINDINGS))
  return {
    **_binding_sample(rng, folder, 0),
    "id": f"volume-test-{index:05d}",
    "task": "vqa",
    "num_shots": 0,
    "question": "Which finding does this volume show?",
    "answer": answer,
    "prediction": answer if right else "ring",
    "correct": right,
    "choices": list(FINDINGS),
    "support": [],
    "media": [_picture(rng, folder, f"v{index}", finding=index % 2, slices=8)],
  }


def _picture(
  rng: np.random.Generator, folder: pathlib.Path, stem: str, *, finding: int, slices: int = 1
) -> str:
  """A body, and in it a bright disc (finding 0) or ring (finding 1)."""
  y, x = np.mgrid[-1:1:48j, -1:1:48j]
  center_x, center_y = rng.uniform(-0.35, 0.35, 2)
  strip = []
  for depth in np.linspace(-0.5, 0.5, slices) if slices > 1 else [0.0]:
    body = np.hypot(x / 0.85, y / 0.7) < 1
    radius = np.hypot(x - center_x, y - center_y) + abs(depth) * 0.4
    shape = radius < 0.26 if finding == 0 else (radius > 0.16) & (radius < 0.3)
    noise = rng.normal(0, 9, x.shape)
    strip.append(np.clip(18 + 70 * body + 110 * (shape & body) + noise, 0, 255))
  (folder / "media").mkdir(parents=True, exist_ok=True)
  name = f"media/{stem}.png"
  Image.fromarray(np.concatenate(strip, axis=1).astype(np.uint8)).save(folder / name)
  return name


def _write_evaluation(folder: pathlib.Path, task: str, metrics: dict, samples: list) -> None:
  step = int(folder.name)
  results = {"task": task, "task_version": "1", "step": step, "git": "0123456789ab"}
  results |= {"metrics": metrics, "notes": ["8shot@shuffled leaves out 3 of 512 questions"]}
  _write_json(folder / "results.json", results)
  _write_lines(folder / "samples.jsonl", samples)


def _write_json(path: pathlib.Path, content: dict) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def _write_lines(path: pathlib.Path, records: list[dict]) -> None:
  path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")


class _Links(html.parser.HTMLParser):
  """Collects what a page loads, its scripts, and the tags that are not closed in order."""

  def __init__(self):
    super().__init__()
    self.loads, self.tags, self.open, self.unbalanced = [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
    if tag not in ("meta", "img", "br"):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)

  def handle_endtag(self, tag):
    if not self.open or self.open.pop() != tag:
      self.unbalanced.append(tag)


def _parse(page: str) -> _Links:
  links = _Links()
  links.feed(page)
  links.close()
  return links


def test_report_is_one_self_contained_file(workdir):
  path = write_report(workdir)
  assert path == workdir / "report.html"
  links = _parse(page := path.read_text("utf-8"))
  assert links.loads
  assert all(load.startswith("data:image/png;base64,") for load in links.loads)
  assert not {"script", "link", "iframe"} & set(links.tags)
  assert "@import" not in page
  assert "url(" not in page
  assert not links.unbalanced
  assert not links.open


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
  assert 'class="media wide"' in page  # the strip of a volume's slices


def test_same_files_same_report(workdir):
  assert write_report(workdir).read_bytes() == write_report(workdir).read_bytes()


def test_markup_and_odd_characters_in_data_are_text(tmp_path):
  make_workdir(tmp_path)
  attack = "<script>alert(1)</script>\u2028<img src=//evil>\"'"
  folder = tmp_path / "evals/binding/1200"
  sample = json.loads((folder / "samples.jsonl").read_text("utf-8").split("\n")[3])
  keys = ("id", "task", "question", "answer", "prediction")
  sample |= dict.fromkeys(keys, attack) | {"choices": [attack, attack]}
  sample["support"] = [shot | {"question": attack, "answer": attack} for shot in sample["support"]]
  _write_lines(folder / "samples.jsonl", [sample])
  for name in ("skipped", "noted"):
    _write_lines(tmp_path / f"{name}.jsonl", [{"id": attack, attack: attack}])
  config = json.loads((tmp_path / "config.json").read_text()) | {"name": attack}
  _write_json(tmp_path / "config.json", config)
  links = _parse(page := write_report(tmp_path).read_text("utf-8"))
  assert "script" not in links.tags
  assert all(load.startswith("data:image/png") for load in links.loads)
  assert page.count("&lt;script&gt;alert(1)") >= 8


def test_report_without_anything_but_a_config(tmp_path):
  _write_json(tmp_path / "config.json", {"name": "empty"})
  page = write_report(tmp_path).read_text("utf-8")
  assert "No few-shot evaluation has finished yet" in page
  assert fewshot_table(tmp_path) == ""


@pytest.mark.parametrize(
  "part", ["metrics.jsonl", "environment.json", "skipped.jsonl", "evals/binding/1200/samples.jsonl"]
)
def test_report_without_one_part(tmp_path, part):
  (make_workdir(tmp_path) / part).unlink()
  links = _parse(write_report(tmp_path).read_text("utf-8"))
  assert not links.unbalanced


def test_report_without_the_pictures(tmp_path):
  for picture in make_workdir(tmp_path).glob("evals/*/*/media/*.png"):
    picture.unlink()
  page = write_report(tmp_path).read_text("utf-8")
  assert "data:image/png" not in page
  assert "✗ wrong" in page


def test_foreign_or_damaged_workdirs_are_named(tmp_path):
  with pytest.raises(UserError, match=re.escape("holds no config.json")):
    write_report(tmp_path)
  make_workdir(tmp_path)
  results = tmp_path / "evals/binding/1200/results.json"
  results.write_text('{"metrics": {"a": 1}}')
  with pytest.raises(UserError, match=re.escape(str(results))):
    write_report(tmp_path)
  results.write_text('{"metr')
  with pytest.raises(UserError, match="not JSON"):
    write_report(tmp_path)


def test_scalars_of_a_resumed_run(tmp_path):
  _write_json(tmp_path / "config.json", {})
  lines = ['{"step": 2, "train/loss": 5}', '{"step": 1, "train/loss": 3}', '{"step": 2, "tra']
  lines += ['{"step": 2, "train/loss": 2.5}', '{"step": 3, "train/loss": NaN}']
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  run = read_run(tmp_path)
  assert run.scalars == {"train/loss": [(1, 3), (2, 2.5)]}
  assert run.torn == 1
  assert "left out: 1" in write_report(tmp_path).read_text("utf-8")


def test_newest_evaluation_counts_by_number_not_by_text(tmp_path):
  make_workdir(tmp_path)
  older = {"binding/4shot/exact_match": _measurement(0.1)}
  _write_evaluation(tmp_path / "evals/binding/900", "binding", older, [])
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
  _write_json(path / "config.json", {})
  name = "a_rather_long_name_of_an_evaluator"
  metrics = {f"{name}/{k}shot/exact_match": _measurement(k / 64) for k in shots}
  _write_evaluation(path / f"evals/{name}/1", "binding", metrics, [])
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
