"""Collecting: what is told of finished runs, how surely, and what is missing."""

import csv
import io
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from experiments import collect
from experiments.measure import measure
from experiments.study import load
from medflax.report.results import read_evaluation
from medflax.tools.compare import compare
from medflax.workdir import opened
from tests.experiments.fake_main import finish
from tests.report.made import Page

FILES = {
  *("table.csv", "table.md", "report.html", "collected.json"),
  *("binding_exact_match.svg", "binding_exact_match_difference.svg"),
  *("binding_loss.svg", "binding_loss_difference.svg"),
}


@pytest.fixture
def folder(tmp_path):
  return tmp_path / "out"


def finished(study, folder, *, but=()):
  """The study with all its runs finished, but for those of some numbers."""
  loaded = load(str(study), folder)
  for index, run in enumerate(loaded.runs):
    if index not in but:
      with opened(run.workdir, run.config, {"trainable_parameters": 1234}):
        finish(run.workdir, run.config)
  return loaded


def run(study, folder, *argv):
  return collect.main([str(study), f"--workdir={folder}", *map(str, argv)])


def files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_is_written_and_the_same_again(study, folder, capsys):
  finished(study, folder)
  assert run(study, folder) == 0
  out = capsys.readouterr().out
  written = files(folder / "collected")
  assert written.keys() == FILES
  assert written["table.md"].decode() in out and "report.html" in out and "Missing" not in out
  assert run(study, folder) == 0
  assert files(folder / "collected") == written
  assert run(study, folder, "--to", folder / "other") == 0
  assert files(folder / "other") == written
  page = Page(written["report.html"].decode())
  assert not page.unbalanced and not page.loads and not page.links
  for name in FILES:
    if name.endswith(".svg"):
      root = ET.fromstring(written[name])
      assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_the_numbers(study, folder):
  loaded = finished(study, folder)
  rows = {(row.tag[11:], row.metric[8:]): row for row in measure(loaded).rows}
  assert len(rows) == 6
  values = {
    r.workdir.name[11:]: read_evaluation(r.workdir / "evals/binding/1000").metrics
    for r in loaded.runs
  }
  of = {
    tag: [values[f"{tag},seed={s}"]["binding/4shot/exact_match"].value for s in (0, 1)]
    for tag in ("prev_image", "next_image")
  }
  row, base = rows["next_image", "4shot/exact_match"], rows["prev_image", "4shot/exact_match"]
  assert row.score.value == pytest.approx(np.mean(of["next_image"])) and row.score.n == 40
  assert row.seeds.stderr == pytest.approx(np.std(of["next_image"], ddof=1)) and row.seeds.n == 2
  steps = np.subtract(of["next_image"], of["prev_image"])
  assert row.difference.value == pytest.approx(steps.mean())
  assert row.difference_seeds.value == pytest.approx(steps.mean())
  half = 12.706 * steps.std(ddof=1) / 2**0.5  # Student's of one degree of freedom
  assert row.difference_seeds.ci95[1] - steps.mean() == pytest.approx(half, abs=1e-3)
  assert base.difference is base.difference_seeds is base.p_holm is None
  expected = compare(
    {
      tag: [r.workdir for r in loaded.runs if r.tag.endswith(tag)]
      for tag in ("prev_image", "next_image")
    },
    evals=["binding"],
    metrics=["exact_match"],
  )["rows"]
  [four] = [r for r in expected if r["num_shots"] == 4]
  assert row.p == four["difference"]["p"] and row.score.ci95 == tuple(four["values"][1]["ci95"])
  zero = rows["next_image", "0shot/exact_match"]
  assert row.p_holm == pytest.approx(min(1.0, 2 * row.p)) and zero.p_holm >= zero.p
  loss = rows["next_image", "loss"]
  assert loss.p is None and loss.difference is None
  assert loss.difference_seeds.value == pytest.approx(-0.3)
  assert (row.trained, row.seconds) == (1234, 90.0)


def test_the_best_step_counts_where_runs_choose_one(study, folder):
  """Not the last one, though there an evaluation had its turn again."""
  last = finished(study, folder / "last")
  overrides = [("best.metric", "perplexity/loss"), ("evals.binding.every", "500")]
  best = load(str(study), folder / "best", overrides)
  for run in best.runs:
    with opened(run.workdir, run.config, {"trainable_parameters": 1234}):
      finish(run.workdir, run.config, 0.1)
      finish(run.workdir, run.config, judged=600)
  assert measure(best).rows == measure(last).rows


def test_what_is_missing_is_listed(study, folder, capsys):
  loaded = finished(study, folder, but=(2, 3))
  with opened(loaded.runs[3].workdir, loaded.runs[3].config, {}):
    pass
  assert run(study, folder) == 0
  out = capsys.readouterr().out
  assert "- media_rule=prev_image,seed=1: missing\n" in out
  assert "- media_rule=next_image,seed=1: unfinished\n" in out
  assert "one seed" in out
  index = json.loads((folder / "collected/collected.json").read_text())
  assert len(index["missing"]) == 2
  rows = list(csv.DictReader(io.StringIO((folder / "collected/table.csv").read_text())))
  assert {row["num_seeds"] for row in rows} == {"1"} and {row["seeds_sd"] for row in rows} == {""}
  assert float(rows[3]["p"]) <= float(rows[3]["p_holm"])


def test_without_the_baseline_there_are_no_tests(study, folder, capsys):
  finished(study, folder, but=(0, 2))
  assert run(study, folder) == 0
  rows = list(csv.DictReader(io.StringIO((folder / "collected/table.csv").read_text())))
  assert {row["run"] for row in rows} == {"media_rule=next_image"}
  assert {row["difference"] for row in rows} == {""} and rows[1]["score"] != ""


def test_other_files_are_not_overwritten(study, folder, capsys):
  finished(study, folder)
  other = folder / "collected"
  other.mkdir()
  (other / "table.csv").write_text("mine")
  assert run(study, folder) == 2
  assert "holds something else (not rules's results); name another" in capsys.readouterr().err
  assert files(other) == {"table.csv": b"mine"}
  (other / "table.csv").unlink()
  assert run(study, folder) == 0
  (other / "notes.txt").write_text("mine")
  assert run(study, folder) == 2
  assert "holds something else (notes.txt)" in capsys.readouterr().err
  (other / "notes.txt").unlink()
  study.write_text(study.read_text().replace(', "binding/loss"', ""))
  assert run(study, folder) == 0
  assert files(other).keys() == {name for name in FILES if "loss" not in name}


def test_nothing_to_collect_is_an_error(study, folder, capsys):
  assert run(study, folder) == 2
  assert "none of 4 runs" in capsys.readouterr().err
  finished(study, folder)
  study.write_text(study.read_text().replace("binding/loss", "binding/los"))
  assert run(study, folder) == 2
  err = capsys.readouterr().err
  assert "unknown metric of " in err and "did you mean 'binding/loss'?" in err
