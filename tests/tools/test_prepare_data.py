import json

import numpy as np
import PIL.Image
import pytest

from medflax.tools import prepare_data


@pytest.fixture
def source(tmp_path):
  """Three questions of SLAKE about two images, one of which is missing."""
  root = tmp_path / "source"
  (root / "imgs/x1").mkdir(parents=True)
  PIL.Image.fromarray(np.zeros((6, 6), np.uint8)).save(root / "imgs/x1/source.jpg")
  rows = [
    {
      "qid": i,
      "img_name": f"{image}/source.jpg",
      "question": "Q?",
      "answer": "A",
      "q_lang": "en",
      "answer_type": "OPEN",
    }
    for i, image in enumerate(["x1", "x1", "x2"])
  ]
  (root / "train.json").write_text(json.dumps(rows))
  (root / "test.json").write_text(json.dumps([rows[0] | {"qid": 9}]))
  return root


def run(*arguments):
  return prepare_data.main([str(argument) for argument in arguments])


def test_it_says_what_is_there_and_what_is_not(source, tmp_path, capsys):
  assert run("slake_en", "--from", source, "--to", tmp_path / "out") == 0
  first, *rest = capsys.readouterr().out.splitlines()
  assert first.startswith("slake_en 1.0-")
  assert first.endswith(": 2 train, 1 test, 1 images")
  assert rest == [
    "licence: none stated (https://www.med-vqa.com/slake)",
    "rejected: 1 records or rows, listed in rejected.jsonl",
    "differs: train: 3 of the 4,919 published",
    "differs: val: 0 of the 1,053 published (not found: validate.json)",
    "differs: test: 1 of the 1,061 published",
    "shared: 1 groups (image) lie in both of train/test",
  ]


def test_mistakes_are_told_in_one_line(source, tmp_path, capsys):
  assert run("slake", "--from", source, "--to", tmp_path / "out") == 2
  assert run("slake_en", "--from", source) == 2
  assert run("slake_en", "--from", tmp_path / "none", "--to", tmp_path / "out") == 2
  unknown, incomplete, absent = capsys.readouterr().err.splitlines()
  assert unknown.startswith("error: unknown data set 'slake'; did you mean 'slake_")
  assert incomplete.startswith("error: --from and --to are needed; --from holds train.json")
  assert "is not a folder" in absent


def test_without_a_name_all_are_listed(capsys):
  assert run() == 0
  out = capsys.readouterr().out
  assert "vqa_rad " in out and "med_qa " in out


def test_an_interruption_says_how_to_go_on(source, tmp_path, capsys, monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(prepare_data, "prepare", interrupted)
  assert run("slake_en", "--from", source, "--to", tmp_path / "out") == 130
  assert capsys.readouterr().err == "interrupted; the same command goes on\n"
