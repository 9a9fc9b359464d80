import dataclasses
import json
import os

import hypothesis
import pytest
from hypothesis import strategies as st

from medflax.data.manifest import SPLITS, Row, assign_splits, group_rows, parse_manifest
from medflax.utils import UserError

GOOD = {"images": ["a.png"], "question": "What?", "answer": "this"}


@pytest.fixture
def root(tmp_path):
  root = tmp_path / "root"
  (root / "images").mkdir(parents=True)
  (root / "ct/series3").mkdir(parents=True)
  for name in ("a.png", "images/b.jpg", "v.nii.gz", "ct/series3/IM1"):
    (root / name).touch()
  (tmp_path / "outside.png").touch()
  return root


def parse(root, *records):
  lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
  return parse_manifest(b"\n".join(lines), root)


def reason(root, record):
  rows, bad = parse(root, record)
  assert rows == []
  assert len(bad) == 1
  assert "\n" not in bad[0].reason
  return bad[0].reason


def test_a_full_row(root):
  record = GOOD | {
    "images": "images/b.jpg",
    "volumes": ["v.nii.gz"],
    "id": "one",
    "choices": ["this", "that"],
    "group": "p1",
    "split": "val",
    "task": "plane",
    "age": 61,
    "site": None,
  }
  rows, bad = parse(root, record)
  assert not bad
  assert rows == [
    Row(
      line=1,
      id="one",
      media=(("image", "images/b.jpg"), ("volume", "v.nii.gz")),
      question="What?",
      answer="this",
      choices=("this", "that"),
      task="plane",
      group="p1",
      split="val",
      meta={"age": 61, "site": None},
    )
  ]


def test_a_byte_order_mark_empty_lines_and_windows_line_ends_are_fine(root):
  line = json.dumps(GOOD).encode()
  rows, bad = parse_manifest(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n", root)
  assert not bad
  assert [row.id for row in rows] == ["line-1", "line-3"]


@pytest.mark.parametrize(
  ("record", "words"),
  [
    (b'{"question": "What?", ', "not valid JSON"),
    (b'"a string"', "not a JSON object"),
    (b"\xff\xfe{}", "UTF-8"),
    (b"[" * 100_000, "JSON"),
    (b'{"n": ' + b"9" * 10_000 + b"}", "JSON"),
    (GOOD | {"images": []}, "no media"),
    ({"image": "a.png", "question": "q", "answer": "a"}, "under 'image'"),
    ({"images": "a.png", "question": "q", "anwser": "a"}, "has no `answer`; is it under 'anwser'"),
    (GOOD | {"answer": ""}, "`answer` is empty"),
    (GOOD | {"answer": " \t"}, "`answer` is empty"),
    (GOOD | {"answer": 3}, "`answer` is 3, not a string"),
    (GOOD | {"question": None}, "has no `question`"),
    (GOOD | {"images": [["a.png"]]}, "`images` is"),
    (GOOD | {"images": {"a.png": 1}}, "`images` is"),
    (GOOD | {"choices": ["that"]}, "none of its `choices`"),
    (GOOD | {"split": "dev"}, "has split 'dev'"),
    (GOOD | {"id": 7}, "`id` is 7"),
    (GOOD | {"images": "missing.png"}, "'missing.png' does not exist"),
    (GOOD | {"images": "images"}, "'images' is a folder; name a file"),
    (GOOD | {"volumes": "ct/series4/"}, "'ct/series4/' does not exist"),
    (GOOD | {"volumes": ".."}, "leads out of the data folder"),
    (GOOD | {"images": "../outside.png"}, "leads out of the data folder"),
    (GOOD | {"images": "images/../../outside.png"}, "leads out of the data folder"),
    (GOOD | {"images": "/etc/passwd"}, "leads out of the data folder"),
    (GOOD | {"images": "a\0.png"}, "not a usable path"),
    (GOOD | {"images": "x" * 5000}, "not a usable path"),
    (GOOD | {"images": "a\nb.png"}, "does not exist"),
  ],
)
def test_bad_rows_are_told_apart(root, record, words):
  assert words in reason(root, record)


@pytest.mark.parametrize("path", ["ct/series3", "ct/series3/", "./ct//series3/."])
def test_a_volume_may_be_a_folder_and_an_image_may_not(root, path):
  rows, bad = parse(root, {"volumes": [path], "question": "What?", "answer": "this"})
  assert not bad
  assert rows[0].media == (("volume", "ct/series3"),)
  both = {"volumes": path, "images": path, "question": "What?", "answer": "this"}
  assert "is a folder; name a file" in reason(root, both)


def test_a_folder_that_leads_out_by_a_link_is_refused(root):
  (root.parent / "elsewhere").mkdir()
  os.symlink(root.parent / "elsewhere", root / "ct/series4")
  row = {"volumes": ["ct/series4"], "question": "What?", "answer": "this"}
  assert "leads out" in reason(root, row)


def test_a_slice_stays_with_its_series():
  rows = [
    Row(line, str(line), (medium,), "q", "a")
    for line, medium in enumerate(
      [("volume", "ct/s3"), ("image", "ct/s3/IM1"), ("image", "ct/s4/IM1"), ("image", "ct/s4/IM2")]
    )
  ]
  assert group_rows(rows) == ["ct/s3", "ct/s3", "ct/s4/IM1", "ct/s4/IM2"]


def test_links_may_lead_around_the_folder_but_not_out_of_it(root):
  os.symlink(root / "a.png", root / "images/inside.png")
  os.symlink(root.parent / "outside.png", root / "images/out.png")
  os.symlink(root.parent, root / "up")
  rows, _ = parse(root, GOOD | {"images": "images/inside.png"})
  assert rows[0].media == (("image", "a.png"),)
  for path in ("images/out.png", "up/outside.png"):
    assert "leads out" in reason(root, GOOD | {"images": path})
  os.symlink("circle.png", root / "circle.png")
  reason(root, GOOD | {"images": "circle.png"})


def test_duplicate_ids_name_the_first_line(root):
  rows, bad = parse(root, GOOD | {"id": "x"}, GOOD, GOOD | {"id": "x"})
  assert [row.line for row in rows] == [1, 2]
  assert (bad[0].line, bad[0].id) == (3, "x")
  assert "that of line 1" in bad[0].reason


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("a.png"),
  lambda children: (
    st.lists(children, max_size=3)
    | st.dictionaries(st.sampled_from([*GOOD, "volumes", "split", "choices", "x"]), children)
  ),
  max_leaves=8,
)


@hypothesis.given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_any_content_gives_rows_or_reasons(root, content):
  rows, bad = parse_manifest(content, root)
  lines = sum(bool(line.strip()) for line in content.split(b"\n"))
  assert len(rows) + len(bad) <= lines
  assert all(row.answer and row.media for row in rows)
  assert all("\n" not in row.reason for row in bad)


# Groups and splits


def made(files, group="", split="", line=1):
  media = tuple(("image", file) for file in files)
  return Row(line, f"r{line}", media, "q", "a", group=group, split=split)


FILES_AND_GROUPS = st.lists(
  st.tuples(st.sets(st.sampled_from("abcdefghij"), min_size=1), st.sampled_from(["", "P", "Q"]))
)


@hypothesis.given(FILES_AND_GROUPS)
@hypothesis.settings(deadline=None)
def test_rows_stay_together_if_and_only_if_a_chain_of_files_and_groups_links_them(drawn):
  labels = group_rows([made(files, group) for files, group in drawn])
  keys = [
    {("file", file) for file in files} | {("group", g)} - {("group", "")} for files, g in drawn
  ]
  for first, label in enumerate(labels):
    linked = set(keys[first])
    while len(grown := linked.union(*(key for key in keys if key & linked))) > len(linked):
      linked = grown
    assert [other == label for other in labels] == [bool(key & linked) for key in keys]
    names = [name for kind, name in linked if kind == "group"]
    assert label == min(names or [name for _, name in linked])


def test_splits_are_80_10_10_by_group_and_stay_when_data_are_added():
  rows = [made([f"{i}"], group=f"p{i // 2}") for i in range(2000)]
  groups = group_rows(rows)
  splits = assign_splits(rows, groups)
  shares = [splits.count(split) / len(rows) for split in SPLITS]
  assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.03)
  assert len(set(zip(groups, splits, strict=True))) == 1000
  assert assign_splits(rows[:1000], groups[:1000]) == splits[:1000]


@hypothesis.given(st.sets(st.text(min_size=1, max_size=3), min_size=3, max_size=12))
def test_three_groups_suffice_for_three_splits(names):
  rows = [made(["f" + name], group=name) for name in sorted(names)]
  assert set(assign_splits(rows, group_rows(rows))) == set(SPLITS)


def test_fewer_than_three_groups_are_refused():
  rows = [made(["a"]), made(["a", "b"]), made(["c"])]
  with pytest.raises(UserError, match=r"2 group\(s\)"):
    assign_splits(rows, group_rows(rows))


def test_given_splits_are_kept_unless_they_leak():
  rows = [made(["a"], split="test", line=1), made(["b"], split="train", line=2)]
  assert assign_splits(rows, group_rows(rows)) == ["test", "train"]
  leak = [*rows, made(["a", "c"], split="train", line=3)]
  with pytest.raises(UserError, match=r"lines 1 \(test\) and 3 \(train\) share .* 'a'"):
    assign_splits(leak, group_rows(leak))
  partial = [*rows, dataclasses.replace(leak[2], split="")]
  with pytest.raises(UserError, match="line 3 has no `split`"):
    assign_splits(partial, group_rows(partial))
