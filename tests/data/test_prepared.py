import dataclasses
import json
import pickle
import shutil

import ml_collections
import numpy as np
import PIL.Image
import pytest

from medflax import workdir
from medflax.data import DATASETS
from medflax.data.builders import BUILDERS
from medflax.data.builders.prepare import prepare
from medflax.data.documents import Dataset
from medflax.data.mixture import Mixture
from medflax.data.prepared import PreparedDataset
from medflax.utils import UserError

SIZES = ((8, 8), (4, 8, 8))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Forty questions about twenty images, three quarters of them for training."""
  source = tmp_path_factory.mktemp("source")
  (source / "imgs").mkdir()
  splits: dict[str, list] = {"train": [], "validate": [], "test": []}
  for i in range(40):
    image = f"x{i // 2}"
    (source / "imgs" / image).mkdir(exist_ok=True)
    PIL.Image.fromarray(np.full((6, 6), i // 2, np.uint8)).save(source / "imgs" / image / "s.png")
    row = {
      "qid": i,
      "img_name": f"{image}/s.png",
      "question": "Q?",
      "answer": "A",
      "q_lang": "en",
      "answer_type": "OPEN" if i % 2 else "CLOSED",
      "content_type": "Organ" if i % 4 < 2 else "Plane",
    }
    splits["train" if i < 30 else "validate" if i < 34 else "test"].append(row)
  for split, rows in splits.items():
    (source / f"{split}.json").write_text(json.dumps(rows))
  target = tmp_path_factory.mktemp("prepared") / "slake"
  prepare(BUILDERS["slake_en"], source, target)
  return target


def load(root, **options):
  return PreparedDataset(root, *SIZES, **options)


def test_it_is_a_dataset(root):
  data = load(root)
  assert isinstance(data, Dataset)
  assert (data.name, data.tasks) == ("slake_en", ("vqa", "open", "closed"))
  assert data.version.startswith("1.0-")
  assert data.splits == {"train": 30, "val": 4, "test": 6}
  assert data.media_per_sample == {"image": 1, "volume": 0, "signal": 0}


def test_texts_and_names_of_media_need_no_decoding(root, monkeypatch):
  samples = load(root).samples("closed", "train")
  decoded = [samples[i] for i in range(4)]
  monkeypatch.setattr("medflax.data.builders.store.decode_media", None)
  assert [samples.text(i) for i in range(4)] == [
    dataclasses.replace(sample, media=()) for sample in decoded
  ]
  assert [samples.media_keys(i) for i in range(4)] == [(("image", i),) for i in range(4)]


def test_tasks_and_splits(root):
  data = load(root)
  assert len(data.samples("open", "train")) == 15
  assert {data.samples("closed", "test")[i].task for i in range(3)} == {"closed"}
  with pytest.raises(UserError, match="has no task 'opne'; did you mean 'open'"):
    data.samples("opne", "train")
  with pytest.raises(UserError, match="has no split 'tset'; did you mean 'test'"):
    data.samples("open", "tset")


def test_support_comes_from_the_training_split_and_other_groups(root):
  data = load(root)
  episodes = data.episodes("vqa", "test", (1, 3))
  assert len(episodes) == 6
  for episode in episodes:
    assert episode.query.source.split == "test"
    assert 1 <= len(episode.support) <= 3
    assert {sample.source.split for sample in episode.support} == {"train"}
  training = data.episodes("vqa", "train", 2)
  assert len(training) > 30
  for episode in (training[i] for i in range(60)):
    assert episode.query.group not in {sample.group for sample in episode.support}
    topic = episode.query.meta["content_type"]
    assert {sample.meta["content_type"] for sample in episode.support} == {topic}


def test_episodes_depend_on_the_seed_alone(root):
  def ids(seed):
    episodes = load(root, seed=seed).episodes("vqa", "train", 2)
    return [[s.id for s in (episodes[i].query, *episodes[i].support)] for i in range(20)]

  assert ids(1) == ids(1) != ids(2)


def test_workers_get_a_copy_that_reads_the_same(root):
  data = load(root)
  copy = pickle.loads(pickle.dumps(data))
  first, second = data.samples("vqa", "train")[3], copy.samples("vqa", "train")[3]
  assert first.id == second.id
  assert (first.media[0].array == second.media[0].array).all()


def test_documents_are_for_interleaved_data_sets(root):
  with pytest.raises(UserError, match="holds questions, not documents"):
    load(root).documents("vqa", "train")


def test_the_config_names_it(root):
  class Config:
    image_size, volume_size, transforms = *SIZES, ml_collections.ConfigDict()
    exclude = ""

  Config.root = str(root)
  assert DATASETS["prepared"](Config, 0).name == "slake_en"


def excluding(tmp_path, *lines):
  path = tmp_path / "leakage.csv"
  path.write_text("data,split,id\n" + "".join(f"{line}\n" for line in lines))
  return path


def test_listed_records_are_no_query_and_no_support(root, tmp_path, caplog):
  path = excluding(tmp_path, *(f"slake_en,train,{i}" for i in range(24)), "slake_en,test,34")
  with path.open("a") as file:
    file.write("slake_en,train,nobody\nother,train,29\n")
  caplog.set_level("INFO")
  data = pickle.loads(pickle.dumps(load(root, exclude=path)))
  assert f"{path}: 25 of 40 samples of slake_en are left out" in caplog.text
  assert "lists 1 ids that slake_en does not have: nobody" in caplog.text
  assert data.splits == {"train": 6, "val": 4, "test": 5}
  assert {row["id"] for row in data.skipped} == {*map(str, range(24)), "34"}
  assert data.skipped[-1] == {"split": "test", "id": "34", "reason": f"in {path}"}
  kept = {"train": {str(i) for i in range(24, 30)}, "test": {str(i) for i in range(35, 40)}}
  for split, ids in kept.items():
    samples = data.samples("vqa", split)
    assert {samples[i].id for i in range(len(samples))} == ids
    episodes = data.episodes("vqa", split, 2, 10)
    assert {e.query.id for e in episodes} <= ids
    assert {s.id for e in episodes for s in e.support} <= kept["train"]
  assert not load(root, exclude=excluding(tmp_path, "other,train,29")).skipped


def test_a_list_may_not_leave_nothing(root, tmp_path):
  path = excluding(tmp_path, *(f"slake_en,train,{i}" for i in range(40)))
  with pytest.raises(UserError, match=r"data\.exclude: .* lists all 40 samples of slake_en"):
    load(root, exclude=path)


def test_odd_files_are_told(root, tmp_path):
  assert not load(root).noted
  copy = tmp_path / "copy"
  shutil.copytree(root, copy)
  note = {"path": "ct/s4", "notes": "3 slices missing, 1 gaps at 2.5 mm"}
  (copy / "noted.jsonl").write_text(json.dumps(note) + "\n")
  path = excluding(tmp_path, "slake_en,train,3")
  workdir.write_lists(tmp_path, Mixture({"slake": load(copy, exclude=path)}))
  lists = {name: (tmp_path / f"{name}.jsonl").read_text() for name in workdir.LISTS}
  assert json.loads(lists["noted"]) == {"source": "slake", **note}
  skipped = {"source": "slake", "split": "train", "id": "3", "reason": f"in {path}"}
  assert json.loads(lists["skipped"]) == skipped
  (copy / "noted.jsonl").unlink()
  with pytest.raises(UserError, match=r"lacks noted\.jsonl; prepare it again elsewhere"):
    load(copy)


def test_a_folder_that_is_none_is_told(tmp_path):
  with pytest.raises(UserError, match="does not exist"):
    load(tmp_path / "nothing")
  with pytest.raises(UserError, match=r"is none; run medflax\.tools\.prepare_data"):
    load(tmp_path)


def test_flipped_bits_are_told(root, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(root, copy)
  shard = copy / "media-00000.array_record"
  content = bytearray(shard.read_bytes())
  content[200] ^= 1
  shard.write_bytes(content)
  samples = load(copy).samples("vqa", "train")
  with pytest.raises(UserError, match=r"has damaged media shards \(record 0\)"):
    [samples[i] for i in range(4)]


@pytest.mark.parametrize("damage", ["missing", "short", "swapped"])
def test_damaged_folders_are_told(root, tmp_path, damage):
  copy = tmp_path / "copy"
  shutil.copytree(root, copy)
  shard = copy / "train-00000.array_record"
  if damage == "missing":
    shard.unlink()
  elif damage == "short":
    shard.write_bytes(shard.read_bytes()[:300])
  else:
    shard.write_bytes((copy / "test-00000.array_record").read_bytes())
  with pytest.raises(UserError, match="prepare it again elsewhere"):
    load(copy)
