"""Asking Visual Med-Alpaca from the command line."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from medflax import config as config_lib
from medflax.data.phantoms.charts import draw_chart, render_chart
from medflax.experts.templates import PROMPTS
from medflax.tools import ask
from tests import nano

CONFIG = nano.CONFIG.with_name("visual_med_alpaca.py")
OVERRIDES = {
  "model.lm.width": "8",
  "model.lm.depth": "1",
  "model.lm.heads": "2",
  "model.lm.kv_heads": "2",
  "model.lm.mlp_width": "8",
  "data.packing_bins": "2",
  "train.num_steps": "1",
  "train.batch_size": "2",
  "evals": "{}",
}
SHAPES = "call:tests.tools.test_ask:shapes"


def shapes(images):
  return [f"{image.shape[0]} rows" for image in images]


def fails(images):
  raise ValueError("no weights")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  config = config_lib.load_config(str(CONFIG), list(OVERRIDES.items()))
  config_lib.validate(config)
  return nano.train(config, tmp_path_factory.mktemp("runs") / "alpaca")


@pytest.fixture(scope="module")
def chart(tmp_path_factory):
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp("images") / "chart.png"
  Image.fromarray(render_chart(draw_chart(rng), (96, 120), rng)).save(path)
  return path


def run(workdir, *flags):
  return ask.main([str(workdir), *map(str, flags)])


def test_parts_and_answer_are_told(workdir, chart, capsys):
  experts = ["--experts", f"plot={SHAPES}"]
  question = ["--question", "Which bar is the highest?", "--image", chart]
  assert run(workdir, *question, *experts, "--show-parts", "--max-new-tokens", 4) == 0
  out, err = capsys.readouterr()
  image, expert, *prompt, answer = out.splitlines()
  assert image.startswith(f"image   {chart}: plot, ")
  assert expert == "expert  96 rows"
  fields = dict(question="Which bar is the highest?", caption="96 rows")
  whole = PROMPTS["image"].format(**fields).splitlines()
  assert [line.removeprefix("prompt").strip() for line in prompt] == whole
  assert answer.startswith("answer  ") and not err


def test_what_fails_is_one_line_and_the_answer_goes_on(workdir, chart, capsys):
  question = ["--question", "Which?", "--image", chart, "--image", "no.png"]
  experts = ["--experts", "plot=call:tests.tools.test_ask:fails"]
  assert run(workdir, *question, *experts) == 0
  out, err = capsys.readouterr()
  assert out.startswith("answer  ") and out.count("\n") == 1
  assert err.splitlines() == [
    f"{chart}: the expert for plot failed: no weights",
    "no.png: no.png cannot be read (No such file or directory); check the path",
  ]
  assert run(workdir, "--question", "Which?", "--image", chart) == 0
  assert "is taken for plot, and there is no expert for it" in capsys.readouterr().err


def test_a_run_of_ones_own_is_an_expert(workdir, chart, capsys):
  """It takes no images, which is one line; a run that does is used by hand in the docs."""
  question = ["--question", "Which?", "--image", chart, "--experts", f"plot=run:{workdir}"]
  assert run(workdir, *question) == 0
  assert "the expert for plot failed: the model takes no image" in capsys.readouterr().err


def test_many_questions_of_a_file(workdir, chart, tmp_path, capsys):
  rows = [
    {"question": "Which bar?", "image": str(chart)},
    {"question": "What is a cyst?"},
    {"question": "Which?", "images": [str(chart), "none.png"], "expert": "radiology"},
  ]
  asked, told = tmp_path / "asked.jsonl", tmp_path / "told.jsonl"
  asked.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
  experts = ["--experts", f"plot={SHAPES}", "--experts", f"radiology={SHAPES}"]
  command = ["--from", asked, "--to", told, *experts, "--max-new-tokens", 2]
  assert run(workdir, *command) == 0
  out, err = capsys.readouterr()
  assert out == f"{told}: 3 answers\n"
  assert err.startswith(str(tmp_path / "none.png")) and err.count("\n") == 1
  first, second, third = map(json.loads, told.read_text().splitlines())
  assert first["parts"][0]["kind"] == "plot" and first["parts"][0]["shown"] == "96 rows"
  assert second["parts"] == [] and "### Input:" not in second["prompt"]
  assert [part["probability"] for part in third["parts"]] == [1.0, 1.0]
  assert all(isinstance(row["answer"], str) and row["stop"] for row in (first, second, third))
  assert run(workdir, *command) == 2
  assert "exists; remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "give either --question or --from FILE"),
    (["--from", "no.jsonl"], "--from no.jsonl cannot be read"),
    (["--question", "a", "--from", "b"], "give either --question or --from"),
    (["--question", "a", "--experts", "plot"], "write KIND=TYPE:WHERE"),
    (["--question", "a", "--experts", "plot=gti:x"], "did you mean 'git'"),
    (["--question", "a", "--expert", "plot"], "unknown expert 'plot'"),
    (["--question", "a", "--classifier", "no"], "no is no classifier that"),
    (["--question", "a", "--max-new-tokens", "192"], "do not go with rows of 192"),
    (["--question", "why " * 200], "the question takes"),
  ],
)
def test_mistakes_are_one_line(workdir, flags, message, capsys):
  assert run(workdir, *flags) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert message in error


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "line 1: is no JSON"),
    ("[]", "line 1: is no JSON object"),
    ('{"question": 1}', "needs a question"),
    ('{"image": "a"}', "needs a question"),
    ('{"question": "a", "images": "b"}', "needs a question, and texts"),
    ('{"question": "a", "imag": "b"}', "did you mean 'image'"),
  ],
)
def test_bad_lines_are_named(tmp_path, line, message):
  path = pathlib.Path(tmp_path / "a.jsonl")
  path.write_text(line)
  with pytest.raises(ask.UserError, match=message):
    ask.read_questions(path)
