import json

import fsspec
import pytest

from medflax.data.remote import fetch, is_remote
from medflax.utils import UserError

SHARD = "train-00000.array_record"
INFO = {
  "name": "made",
  "version": "1-abc",
  "records": {"train": 1},
  "shards": {"train": [{"file": SHARD, "records": 1}]},
}


@pytest.fixture
def files():
  """A prepared data set in a store of fsspec's own, in memory."""
  files = fsspec.filesystem("memory")
  contents = {
    "dataset.json": json.dumps(INFO),
    SHARD: "shard",
    "index/train.json": "{}",
    "noted.jsonl": "",
  }
  for name, text in contents.items():
    files.pipe(f"/bucket/made/{name}", text.encode())
  yield files
  files.rm("/bucket", recursive=True)


def test_a_copy_is_complete_and_made_once(files, tmp_path):
  copy = fetch("memory://bucket/made", tmp_path)
  found = {str(p.relative_to(copy)): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
  assert copy == tmp_path / "made-1-abc"
  assert found == {
    "dataset.json": json.dumps(INFO).encode(),
    SHARD: b"shard",
    "index/train.json": b"{}",
    "noted.jsonl": b"",
  }
  (copy / "index/train.json").unlink()
  (copy / SHARD).write_text("kept")
  files.pipe("/bucket/made/index/train.json", b"again")
  fetch("memory://bucket/made", tmp_path)
  assert (copy / SHARD).read_text() == "kept"
  assert (copy / "index/train.json").read_text() == "again"


def test_what_is_missing_is_told_and_leaves_nothing(files, tmp_path):
  files.rm(f"/bucket/made/{SHARD}")
  with pytest.raises(UserError, match=f"is no prepared data set: it lacks .*{SHARD}"):
    fetch("memory://bucket/made", tmp_path)
  assert not (tmp_path / "made-1-abc/dataset.json").exists()
  assert {p.name for p in tmp_path.rglob("*") if p.is_file()} <= {"train.json", "noted.jsonl"}
  with pytest.raises(UserError, match=r"it lacks .*dataset\.json"):
    fetch("memory://bucket/other", tmp_path)


def test_a_cache_is_needed_and_so_is_the_stores_package(tmp_path):
  with pytest.raises(UserError, match=r"data\.cache must name one"):
    fetch("memory://bucket/made", "")
  with pytest.raises(UserError, match="s3fs"):
    fetch("s3://bucket/made", tmp_path)


def test_only_urls_are_remote():
  assert is_remote("gs://bucket/a")
  assert not is_remote("/data/a")
  assert not is_remote("a:b/c")
