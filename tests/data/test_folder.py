import dataclasses
import json
import os
import pickle

import nibabel
import numpy as np
import PIL.Image
import pytest

from medflax.data import folder, support
from medflax.data.folder import FolderDataset
from medflax.utils import UserError

SIZES = {"image_size": (8, 8), "volume_size": (4, 8, 8)}


def write(root, records):
  lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
  (root / "manifest.jsonl").write_text("\n".join(lines))


def record(i, **fields):
  return {
    "images": f"{i}.png",
    "question": "How bright?",
    "answer": str(i % 4),
    "id": f"r{i}",
    **fields,
  }


@pytest.fixture
def root(tmp_path):
  """Forty grey images of one question each, brightness by number, two images a patient."""
  for i in range(40):
    PIL.Image.fromarray(np.full((6, 6), i * 5, np.uint8)).save(tmp_path / f"{i}.png")
  write(tmp_path, [record(i, group=f"p{i // 2}", site="A") for i in range(40)])
  return tmp_path


def load(root, **options):
  return FolderDataset(root, **SIZES, **options)


def error(root, **options):
  with pytest.raises(UserError) as caught:
    load(root, **options)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def all_samples(data):
  splits = [data.samples("vqa", split) for split in ("train", "val", "test")]
  return [samples[i] for samples in splits for i in range(len(samples))]


def test_samples_carry_what_the_manifest_says(root):
  data = load(root)
  assert data.tasks == ("vqa",)
  assert data.skipped == []
  samples = all_samples(data)
  assert len(samples) == 40
  for sample in samples:
    i = int(sample.id[1:])
    assert (sample.question, sample.answer) == ("How bright?", str(i % 4))
    assert (sample.task, sample.group, sample.meta) == ("vqa", f"p{i // 2}", {"site": "A"})
    assert sample.source.dataset == root.name
    assert sample.source.version == data.version
    assert sample.media[0].array.shape == (8, 8, 3)
    assert (sample.media[0].array == i * 5).all()


def test_texts_and_names_of_media_need_no_decoding(root, monkeypatch):
  monkeypatch.setattr("medflax.data.folder.CACHE_BYTES", 0)
  samples = load(root).samples("vqa", "train")
  decoded = [samples[i] for i in range(len(samples))]
  names = [samples.media_keys(i) for i in range(len(samples))]
  monkeypatch.setattr("medflax.data.folder.read_kind", None)
  for i, sample in enumerate(decoded):
    assert samples.text(i) == dataclasses.replace(sample, media=())
    assert len(samples.media_keys(i)) == len(sample.media)
  assert len(set(names)) > 1


def test_groups_do_not_straddle_splits(root):
  splits = {}
  for sample in all_samples(load(root)):
    splits.setdefault(sample.group, set()).add(sample.source.split)
  assert all(len(names) == 1 for names in splits.values())


def test_the_splits_do_not_depend_on_the_seed_but_the_episodes_do(root):
  one, two = load(root), load(root, seed=1)
  assert one.samples("vqa", "test").groups == two.samples("vqa", "test").groups
  support = [
    [[s.id for s in e.support] for e in data.episodes("vqa", "test", 3)] for data in (one, one, two)
  ]
  assert support[0] == support[1] != support[2]


def test_support_comes_from_the_training_split(root):
  data = load(root)
  episodes = data.episodes("vqa", "test", (1, 3), 1000)
  assert len(episodes) == len(data.samples("vqa", "test"))
  for episode in episodes:
    assert episode.query.source.split == "test"
    assert {sample.source.split for sample in episode.support} == {"train"}
  training = data.episodes("vqa", "train", 2)
  assert len(training) == support.TRAIN_PASSES * len(data.samples("vqa", "train"))
  assert all(
    sample.group != training[i].query.group for i in range(50) for sample in training[i].support
  )


def test_tasks_are_subsets_of_all_rows(root):
  tasks = ["plane", "side", None, "vqa"]
  write(root, [record(i, task=tasks[i % 4]) for i in range(40)])
  data = load(root)
  assert data.tasks == ("vqa", "plane", "side")
  for episode in data.episodes("plane", "train", 2, 20):
    assert {sample.task for sample in (episode.query, *episode.support)} == {"plane"}
  assert len(data.samples("vqa", "train")) > len(data.samples("plane", "train"))
  with pytest.raises(UserError, match="'plan'; did you mean 'plane'"):
    data.episodes("plan", "train", 0)


def test_volumes_and_images_in_one_row(root):
  nibabel.save(
    nibabel.Nifti1Image(np.random.default_rng(0).random((4, 4, 4)), np.eye(4)), root / "v.nii"
  )
  write(root, [record(i, volumes=["v.nii"], split="train") for i in range(3)])
  sample = load(root).samples("vqa", "train")[0]
  assert [(media.kind, media.array.shape) for media in sample.media] == [
    ("image", (8, 8, 3)),
    ("volume", (4, 8, 8, 1)),
  ]


def test_the_most_media_of_a_row_are_told(root):
  assert load(root).media_per_sample == {"image": 1, "volume": 0}
  write(root, [record(i, images=[f"{3 * i + j}.png" for j in range(i + 1)]) for i in range(3)])
  assert load(root).media_per_sample == {"image": 3, "volume": 0}


def test_a_small_folder_is_decoded_once_and_a_large_one_on_demand(root, monkeypatch):
  kept = load(root)
  monkeypatch.setattr(folder, "CACHE_BYTES", 40 * 8 * 8 * 3 - 1)
  lean = load(root)
  np.testing.assert_array_equal(
    kept.samples("vqa", "test")[0].media[0].array, lean.samples("vqa", "test")[0].media[0].array
  )
  for path in root.glob("*.png"):
    path.unlink()
  assert len(all_samples(kept)) == 40
  with pytest.raises(UserError, match=r"\.png cannot be read"):
    all_samples(lean)


def test_workers_get_the_data_set_without_its_cache(root):
  data = load(root)
  copy = pickle.loads(pickle.dumps(data))
  assert len(pickle.dumps(data)) < 20_000
  assert len(all_samples(copy)) == len(all_samples(data)) == 40


def spoil(root):
  """Spoils a file or a row in every way the loader tells apart; returns line numbers."""
  noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
  PIL.Image.fromarray(noise).save(root / "3.png")
  (root / "3.png").write_bytes((root / "3.png").read_bytes()[:-2000])
  nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), np.nan), np.eye(4)), root / "nan.nii.gz")
  (root / "fake.dcm").write_text("not a picture")
  records = [record(i, group=f"p{i // 2}") for i in range(40)]
  records[5] = '{"images": "5.png", '
  records[7] = record(7, images="gone.png")
  records[9] = record(9, volumes="nan.nii.gz")
  records[11] = record(11, images="fake.dcm")
  records[13] = record(13, images="../13.png")
  records[15] = record(15, answer="")
  write(root, records)
  return [4, 6, 8, 10, 12, 14, 16]


def test_the_first_bad_row_is_named(root):
  spoil(root)
  message = error(root)
  assert message.startswith("manifest.jsonl line 6: is not valid JSON")
  assert "3 more bad rows" in message  # files are only decoded once the rows are right


@pytest.mark.parametrize(
  ("line", "words"),
  [
    (4, "line 4: 3.png is truncated"),
    (10, "line 10: nan.nii.gz holds 64 NaN"),
    (12, "line 12: fake.dcm is not a DICOM file"),
    (14, "line 14: '../13.png' leads out"),
    (16, "line 16: `answer` is empty"),
  ],
)
def test_each_bad_row_has_its_line(root, line, words):
  spoil(root)
  spoiled = (root / "manifest.jsonl").read_text().split("\n")
  write(root, [spoiled[i] if i == line - 1 else record(i, images="0.png") for i in range(40)])
  message = error(root)
  assert words in message
  assert "on_bad_sample=skip" in message


def test_bad_rows_can_be_skipped_and_are_listed(root):
  lines = spoil(root)
  data = load(root, on_bad_sample="skip")
  assert [row["line"] for row in data.skipped] == lines
  assert "truncated" in data.skipped[0]["reason"]
  assert [row["id"] for row in data.skipped][:3] == ["r3", "", "r7"]
  assert len(all_samples(data)) == 40 - len(lines)
  json.dumps(data.skipped)


def test_leaks_are_refused_even_when_bad_rows_are_skipped(root):
  write(root, [record(0, split="train"), record(1, split="test", images=["1.png", "0.png"])])
  assert "manifest.jsonl: lines 1 (train) and 2 (test) share" in error(root, on_bad_sample="skip")


def test_nothing_usable_is_an_error(root):
  write(root, ["{}", "{"])
  assert "no usable row, the first (line 1)" in error(root, on_bad_sample="skip")
  write(root, [""])
  assert "no usable row" in error(root)


def test_options_and_folders_are_checked(root):
  assert "did you mean 'skip'" in error(root, on_bad_sample="skp")
  assert "--config.data.root" in error("")
  assert "does not exist" in error(root / "nowhere")
  os.remove(root / "manifest.jsonl")
  assert "has no readable manifest.jsonl" in error(root)


def test_empty_splits_are_named(root):
  write(root, [record(i, split="train") for i in range(4)])
  data = load(root)
  with pytest.raises(UserError, match=r"split 'test' \(4 train, 0 val, 0 test in all\)"):
    data.episodes("vqa", "test", 0)
  with pytest.raises(UserError, match="no split 'tests'; did you mean 'test'"):
    data.episodes("vqa", "tests", 0)


def test_zero_shots_need_no_training_data(root):
  write(root, [record(i, split="test") for i in range(4)])
  assert len(load(root).episodes("vqa", "test", 0)) == 4
