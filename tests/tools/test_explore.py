"""The contact sheet shows what a data set holds and warns of what is wrong with it."""

import json
import re

import numpy as np
import PIL.Image
import pytest

from medflax.data.browse import browse
from medflax.data.survey import survey
from medflax.tools import explore

MARKUP = "<script>alert(1)</script> is it?"


def save(root, rows):
  rng = np.random.default_rng(0)
  for row in rows:
    for name in row["images"]:
      if not (root / name).exists():
        PIL.Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(root / name)
  (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return root


def row(number, split="train", **other):
  values = dict(images=[f"{number}.png"], question="Is it so?", answer="no", group=f"p{number}")
  return {**values, "id": f"id-{number}", "split": split, **other}


@pytest.fixture
def folder(tmp_path):
  rows = [
    row(0, question=MARKUP, answer="yes", scanner="A & B"),
    row(1, "test", group="p0", answer="a long answer in words", task="why"),
    row(2, "test", images=["2.png", "0.png"]),
    row(3),
    row(4, "val"),
  ]
  return save(tmp_path, rows)


def test_counts(folder):
  found = survey(browse(str(folder)), num_drawn=10)
  assert found.tasks == {"train": {"vqa": 2}, "val": {"vqa": 1}, "test": {"why": 1, "vqa": 1}}
  assert found.types == {"closed": 4, "open": 1}
  assert found.answers == {"yes": 1, "no": 3, "a long answer in words": 1}
  assert sorted(found.answer_words) == [1, 1, 1, 1, 5]
  assert found.openings["is it"] == 4
  assert found.sizes == {"image": {"30 × 40": 6}}
  assert found.meta == {"scanner": {"A & B": 1}}
  assert [item.sample.id for item in found.drawn] == [f"id-{n}" for n in (0, 3, 4, 1, 2)]


def test_warnings(folder):
  PIL.Image.fromarray(np.full((30, 40), 7, np.uint8)).save(folder / "3.png")
  (folder / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n")
  with (folder / "manifest.jsonl").open("a") as file:
    file.write("{}\n")
  said = "\n".join(survey(browse(str(folder)), num_drawn=10).warnings)
  assert "groups in more than one split: 1 (p0)" in said
  assert "rows that cannot be used: 1, the first (line 6)" in said
  assert "cannot be read: 1 of the 5 drawn, the first: 4.png" in said
  assert "a single value: 1 of the 5 drawn (id-3)" in said


def test_keys_that_are_no_categories_are_not_counted(tmp_path, monkeypatch):
  monkeypatch.setattr("medflax.data.survey._MOST_VALUES", 3)
  rows = [row(n, images=["0.png"], note=f"n{n}", plane=("", "axial")[n % 2]) for n in range(6)]
  rows = [{**values, "age": None, "view": ""} for values in rows]
  found = survey(browse(str(save(tmp_path, rows))), num_drawn=1)
  assert found.meta == {"plane": {"axial": 3}}


def test_one_answer_for_nearly_all(tmp_path):
  rows = [row(n, images=["0.png"], group=None, answer="no" if n else "yes") for n in range(40)]
  said = survey(browse(str(save(tmp_path, rows))), num_drawn=1).warnings
  assert any("task vqa: 97.5% of 40 answers are 'no'" in line for line in said)
  assert any("no sample names its group" in line for line in said)


def test_only_the_drawn_are_read(tmp_path):
  save(tmp_path, [row(n, images=["0.png"]) for n in range(1)])
  rows = [row(n, ("train", "test")[n % 2], images=[f"{n}.png"]) for n in range(30)]
  for name in range(30):
    (tmp_path / f"{name}.png").write_bytes(b"broken")
  (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  first, again, other = (
    [item.sample.id for item in survey(browse(str(tmp_path)), num_drawn=8, seed=seed).drawn]
    for seed in (0, 0, 1)
  )
  assert first == again != other
  assert len(first) == 8 and sum(int(name[3:]) % 2 for name in first) == 4


def test_the_page(folder, tmp_path, capsys):
  target = tmp_path / "sheet.html"
  assert explore.main([str(folder), "--to", str(target)]) == 0
  page = target.read_text()
  assert MARKUP not in page and "&lt;script&gt;alert(1)" in page
  assert page.count("<article") == 5 and page.count("data:image/png;base64,") == 6
  assert not re.search(r'(src|href)="(?!data:image/png)', page)
  assert "<option>why</option>" in page and "A &amp; B" in page
  assert "note: groups in more than one split" in capsys.readouterr().out
  assert explore.main([str(folder), "--to", str(target)]) == 2
  assert "exists; remove it" in capsys.readouterr().err


def test_phantoms_show_images_and_volumes(tmp_path):
  target = tmp_path / "sheet.html"
  assert explore.main(["phantom", "--to", str(target), "--samples", "28"]) == 0
  page = target.read_text()
  assert page.count("<article") == 28 and page.count('class="card wide"') > 4
  assert "Sizes: volumes" in page


def test_mistakes(tmp_path, capsys):
  assert explore.main([str(tmp_path), "--to", str(tmp_path / "a.html")]) == 2
  assert "is no data" in capsys.readouterr().err
