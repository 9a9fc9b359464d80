import json

import numpy as np
import pytest

from medflax.data.tokenizer import load_tokenizer
from medflax.tools import lengths
from tests import nano


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  root = nano.write_images(tmp_path_factory.mktemp("images"))
  rows = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
  for i, row in enumerate(rows):
    row["answer"] = "a red square" if i else "red " * 40  # one is far from the others
  (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return root


def test_room_is_for_most_answers(images):
  found = lengths.measure(nano.config(images), limit=100)["vqa"]
  count = lambda text: len(load_tokenizer().spans(text)[0])
  answers = np.array([count(("red " * 40).strip())] + [count("a red square")] * 7)
  answer = found[lengths.ANSWER]
  assert (answer.count, answer.longest) == (8, answers.max())
  assert answer.mean == pytest.approx(answers.mean()) and answer.std == pytest.approx(answers.std())
  assert answer.room(2.0) == int(np.ceil(answers.mean() + 2 * answers.std())) < answer.longest
  assert answer.room(9.0) == answer.longest
  question = found[lengths.QUESTION]
  assert question.std == 0 and question.room(3.0) == question.longest == count("Colour?")


def test_the_command_tells_fields_to_set(images, capsys):
  config = f"--config={nano.CONFIG}:data=folder"
  assert lengths.main([config, f"--config.data.root={images}", "--std=2"]) == 0
  out = capsys.readouterr().out
  assert "vqa" in out and "--config.data.max_tokens=" in out and "max_new_tokens=" in out
  assert lengths.main([config]) == 2
  assert capsys.readouterr().err.startswith("error: ")
