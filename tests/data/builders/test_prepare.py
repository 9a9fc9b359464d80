import dataclasses
import fcntl
import functools
import hashlib
import json
import pathlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflax.data.builders import BUILDERS, store
from medflax.data.builders import prepare as prepare_lib
from medflax.data.builders.base import Builder, Record, Rejected, images
from medflax.data.builders.prepare import prepare, shortfalls
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE
from medflax.data.manifest import hash_split
from medflax.data.prepared import PreparedDataset
from medflax.utils import UserError

ROWS = 23


def rows(source):
  return source.rows("table.jsonl")


def records(row):
  name = row.text("image")
  yield Record(
    id=f"r{row.number}",
    split=hash_split(name),
    task="one",
    question="What?",
    answer=row.text("answer"),
    group=name,
    media=images(*row.items("more"), name),
  )


TOY = Builder(
  name="toy",
  version="1",
  url="https://example.org",
  licence="CC0",
  layout="table.jsonl",
  group="image",
  tasks=("one",),
  media=(IMAGE,),
  rows=rows,
  records=records,
  published={"train": 18, "rows": ROWS, "images": 11},
)


@pytest.fixture
def layout(source, write, picture):
  for i in range(10):
    picture(f"{i}.png", i, broken=i == 4)
  lines = [{"image": f"{i % 10}.png", "answer": str(i)} for i in range(ROWS)]
  lines[5]["answer"] = ""
  lines[6]["more"] = ["4.png"]
  lines[7]["more"] = ["8.png", "9.png"]
  write("table.jsonl", "\n".join(map(json.dumps, lines)))
  return source


def contents(root: pathlib.Path) -> dict[str, str]:
  files = sorted(path for path in root.rglob("*") if path.is_file())
  return {
    path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in files
  }


def test_a_restart_ends_with_the_same_bytes_and_keeps_what_was_done(layout, tmp_path, monkeypatch):
  prepare(TOY, layout, tmp_path / "whole", chunk_rows=4)
  whole = contents(tmp_path / "whole")
  loaded: list[str] = []

  def load(path, kind, index, *, stop, real=store.load_media):
    loaded.append(path.name)
    if len(loaded) == stop:
      raise KeyboardInterrupt
    return real(path, kind, index)

  target = tmp_path / "parts"
  for stop in (3, 6, 2):
    loaded.clear()
    monkeypatch.setattr(store, "load_media", functools.partial(load, stop=stop))
    with pytest.raises(KeyboardInterrupt):
      prepare(TOY, layout, target, chunk_rows=4)
    with pytest.raises(UserError, match="is unfinished"):
      PreparedDataset(target, (8, 8), (4, 8, 8))
  loaded.clear()
  monkeypatch.setattr(store, "load_media", functools.partial(load, stop=0))
  prepare(TOY, layout, target, chunk_rows=4)
  assert contents(target) == whole
  assert "0.png" not in loaded and len(loaded) < 10
  assert not (target / store.CHUNKS).exists()


def test_the_same_source_gives_the_same_bytes_and_another_does_not(layout, tmp_path, write):
  for name in ("a", "b"):
    prepare(TOY, layout, tmp_path / name)
  assert contents(tmp_path / "a") == contents(tmp_path / "b")
  write("table.jsonl", (layout / "table.jsonl").read_text().replace('"8"', '"88"'))
  other = prepare(TOY, layout, tmp_path / "c")
  assert other["version"] != json.loads((tmp_path / "a/dataset.json").read_text())["version"]


def test_a_source_that_has_changed_meanwhile_is_told(layout, tmp_path, write, monkeypatch):
  monkeypatch.setattr(prepare_lib._Writer, "finish", lambda self: {})
  prepare(TOY, layout, tmp_path / "t", chunk_rows=4)
  write("table.jsonl", (layout / "table.jsonl").read_text().replace('"1"', '"one"'))
  before = contents(tmp_path / "t")
  with pytest.raises(UserError, match=r"is not what .* was begun with"):
    prepare(TOY, layout, tmp_path / "t", chunk_rows=4)
  assert contents(tmp_path / "t") == before


def test_everything_is_counted(layout, tmp_path):
  summary = prepare(TOY, layout, tmp_path / "t", chunk_rows=4)
  lines = (tmp_path / "t" / store.REJECTED).read_text().splitlines()
  rejected = [json.loads(line) for line in lines]
  # Row 6 has no answer; rows 5, 15 and 7 need the broken image.
  assert [(item["place"], item["id"]) for item in rejected] == [
    ("table.jsonl row 5", "r5"),
    ("table.jsonl row 6", ""),
    ("table.jsonl row 7", "r7"),
    ("table.jsonl row 15", "r15"),
  ]
  assert sum(summary["records"].values()) == ROWS - 4
  assert summary["rows"] == ROWS
  assert summary["media"] == {"images": 9}
  assert summary["media_per_sample"] == {"image": 3}
  assert summary["absent"] == []
  differing = shortfalls(summary)
  assert "images: 9 of the 11 published" in differing
  assert not any(line.startswith("rows") for line in differing)
  data = PreparedDataset(tmp_path / "t", (8, 8), (4, 8, 8))
  [several] = [s for split in data.splits for s in data.samples("one", split) if s.id == "r8"]
  assert [int(media.array.max()) for media in several.media] == [8, 9, 7]


def test_a_medium_is_stored_once_as_it_was(layout, tmp_path):
  prepare(TOY, layout, tmp_path / "t", chunk_rows=4)
  data = PreparedDataset(tmp_path / "t", (8, 8), (4, 8, 8))
  stored = [data._shards["media"][i] for i in range(9)]
  originals = {(layout / f"{i}.png").read_bytes() for i in range(10) if i != 4}
  assert {content.split(b"\n", 1)[1] for content in stored} == originals


@pytest.mark.parametrize("name", ["../out.png", "/etc/passwd", "link.png", "way/in.png", "a\0.png"])
def test_no_path_leads_out_of_the_source(layout, tmp_path, write, picture, name):
  PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "out.png")
  (tmp_path / "elsewhere").mkdir()
  PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "elsewhere/in.png")
  (layout / "link.png").symlink_to(tmp_path / "out.png")
  (layout / "way").symlink_to(tmp_path / "elsewhere")
  lines = [{"image": name, "answer": "secret"}, {"image": "1.png", "answer": "fine"}]
  write("table.jsonl", "\n".join(map(json.dumps, lines)))
  summary = prepare(TOY, layout, tmp_path / "t")
  assert sum(summary["records"].values()) == 1
  [rejected] = (tmp_path / "t" / store.REJECTED).read_text().splitlines()
  assert "leads out" in rejected or "not a usable path" in rejected


def test_a_table_that_leads_out_is_refused(tmp_path, source):
  (tmp_path / "table.jsonl").write_text('{"image": "1.png", "answer": "a"}')
  (source / "table.jsonl").symlink_to(tmp_path / "table.jsonl")
  with pytest.raises(UserError, match=r"holds no toy \(table.jsonl not found\)"):
    prepare(TOY, source, tmp_path / "t")


def test_nothing_is_overwritten_and_nothing_written_elsewhere(layout, tmp_path):
  before = contents(layout)
  with pytest.raises(UserError, match="lies inside the source"):
    prepare(TOY, layout, layout / "t")
  (tmp_path / "full").mkdir()
  (tmp_path / "full/mine.txt").write_text("keep")
  with pytest.raises(UserError, match="is not an empty folder"):
    prepare(TOY, layout, tmp_path / "full")
  prepare(TOY, layout, tmp_path / "t")
  done = contents(tmp_path / "t")
  with pytest.raises(UserError, match="holds a prepared data set"):
    prepare(TOY, layout, tmp_path / "t")
  assert contents(tmp_path / "t") == done
  assert contents(layout) == before
  assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "source", "t"]
  with pytest.raises(UserError, match="is not a folder"):
    prepare(TOY, tmp_path / "nothing", tmp_path / "u")


def test_two_processes_do_not_write_one_folder(layout, tmp_path):
  folder = tmp_path / "t" / store.CHUNKS
  folder.mkdir(parents=True)
  with (folder / prepare_lib.LOCK).open("a") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="is being prepared by another process"):
      prepare(TOY, layout, tmp_path / "t")
  prepare(TOY, layout, tmp_path / "t")


def test_a_source_without_a_usable_record_leaves_nothing(source, tmp_path, write):
  write("table.jsonl", '{"image": "gone.png", "answer": "a"}')
  with pytest.raises(UserError, match=r"no usable record, the first: 'gone\.png' does not exist"):
    prepare(TOY, source, tmp_path / "t")
  assert not any((tmp_path / "t").iterdir())


VALID = Record("a", "train", "one", "What?", "yes", "g", images("1.png"))


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"answer": ""}, "has no answer"),
    ({"question": ""}, "has no question"),
    ({"group": ""}, "has no id, group or split"),
    ({"choices": ("no",)}, "answer 'yes' is none of its choices"),
    ({"task": "two"}, "has an undeclared task 'two'"),
    ({"answer_type": "closed"}, "has an undeclared answer type 'closed'"),
    ({"media": (("volume", "v.nii"),)}, "has an undeclared medium 'v.nii' 'volume'"),
    ({"split": "media"}, "has the split 'media', which is reserved"),
    ({"split": "a/b"}, "has the split 'a/b', which is no plain name"),
  ],
)
def test_records_keep_to_what_is_declared(source, change, reason):
  builder = dataclasses.replace(
    TOY,
    rows=lambda source: [Row("t", 1, {})],
    records=lambda row: [dataclasses.replace(VALID, **change)],
  )
  [[item]] = builder.read(SourceFolder(source))
  assert item == Rejected("t row 1", "a", change.get("split", "train"), reason)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_folder_of_something_else_is_refused(name, source, tmp_path, write):
  write("readme.txt", "nothing here")
  with pytest.raises(UserError, match=rf"holds no {name} \(") as caught:
    prepare(BUILDERS[name], source, tmp_path / "t")
  assert BUILDERS[name].layout in str(caught.value)
  assert not any((tmp_path / "t").iterdir())


def test_every_builder_is_declared_in_full():
  for name, builder in BUILDERS.items():
    assert builder.name == name
    assert builder.url.startswith("http") and builder.version and builder.layout and builder.group
    assert builder.tasks and builder.answers
    assert set(builder.answers) <= {"open", "closed"}
    assert all(count > 0 for count in builder.published.values())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_tables_are_told_and_never_crash(tmp_path_factory, data):
  """Flips, cuts and inserted bytes, in every format of tables."""
  root = tmp_path_factory.mktemp("damaged")
  name, options, content = data.draw(
    st.sampled_from(
      [
        ("t.json", {}, b'[{"a": "1"}, {"a": "2"}]'),
        ("t.jsonl", {}, b'{"a": "1"}\n{"a": "2"}\n'),
        ("t.csv", {}, b'a,b\n1,2\n"x, y",3\n'),
        ("t.txt", {"columns": ("a", "b")}, b"1\t2\n3\t4\n"),
        ("t.pkl", {}, b"\x80\x04]\x94}\x94\x8c\x01a\x94\x8c\x011\x94sa."),
      ]
    )
  )
  position = data.draw(st.integers(0, len(content) - 1))
  damage = data.draw(st.binary(max_size=4))
  kept = data.draw(st.integers(0, 2))
  (root / name).write_bytes(content[:position] + damage + content[position + kept :])
  message, found = "", []
  try:
    found = list(SourceFolder(root).rows(name, **options))
  except UserError as error:
    message = str(error)
  assert not message or name in message
  assert "\n" not in message
  assert all(row.problem or isinstance(row.fields, dict) for row in found)
