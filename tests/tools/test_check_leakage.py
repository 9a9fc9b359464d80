"""Planted copies of every kind are found, and nothing else is."""

import csv
import json

import nibabel
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

from medflax.data.builders import BUILDERS
from medflax.data.builders.prepare import prepare
from medflax.data.folder import FolderDataset
from medflax.data.prepared import PreparedDataset
from medflax.leakage import check, embed
from medflax.leakage.sides import open_parts
from medflax.pretrained import open_clip
from medflax.pretrained.checkpoint import under
from medflax.pretrained.leaves import abstract_leaves
from medflax.pretrained.mapping import to_theirs
from medflax.tools import check_leakage, import_weights
from tests.leakage.pictures import COPIES, CROPS, scan, volume

SAME = "Is there an effusion on this side of the chest?"
FOREIGN = "<img src=x onerror=alert(1)>"


def write(root, rows):
  (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return root


def save(root, name, array):
  path = root / name
  if name.endswith(".png"):
    PIL.Image.fromarray(array).save(path)
  else:  # written so that it is read as (D, H, W)
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), np.diag([-1, -1, 1, 1])), path)


def row(name, split, group="", **other):
  field = "images" if name.endswith(".png") else "volumes"
  stem = name.split(".")[0]
  values = dict(id=stem, split=split, group=group or stem, question=f"What is {stem}?", answer="x")
  return {field: name, **values, **other}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
  """A folder whose test split holds a copy `KIND-N` of training image N for every kind."""
  root = tmp_path_factory.mktemp("planted")
  kinds = {"same": lambda p: p, **COPIES, **CROPS}
  rows = []
  for seed in range(len(kinds) + 1):
    save(root, f"{seed}.png", scan(seed))
    rows.append(row(f"{seed}.png", "train", question=FOREIGN))
  for seed, (kind, change) in enumerate(kinds.items()):
    save(root, f"{kind}-{seed}.png", change(scan(seed)))
    rows.append(row(f"{kind}-{seed}.png", "test"))
  for seed in range(100, 104):
    save(root, f"{seed}.png", scan(seed))
    rows.append(row(f"{seed}.png", "test"))
  # Another picture of the patient of a picture that leaks.
  save(root, "99.png", scan(99))
  rows.append(row("99.png", "train", group="0"))
  for seed in (0, 1, 2):
    save(root, f"v{seed}.nii", volume(seed))
    rows.append(row(f"v{seed}.nii", "train"))
  save(root, "vcrop-0.nii", volume(0)[1:-1, 2:-1, 1:-2])
  save(root, "v9.nii", volume(9))
  save(root, "slice.png", volume(1)[10])
  rows += [row("vcrop-0.nii", "test"), row("v9.nii", "test"), row("slice.png", "test")]
  return write(root, rows)


def run(out, *flags):
  assert check_leakage.main([*map(str, flags), "--to", str(out)]) == 0
  return json.loads((out / "leakage.json").read_text())


def ids(found, reasons):
  """(training id, evaluated id) of the pairs that have one of the reasons."""
  return {
    (train["id"], evaluated["id"])
    for pair in found["pairs"]
    if reasons & pair["reasons"].keys()
    for train in pair["train"]
    for evaluated in pair["eval"]
  }


def listed(path):
  return {
    line["id"]: line["reasons"].split() for line in csv.DictReader(path.read_text().splitlines())
  }


def test_planted_copies(planted, tmp_path, capsys):
  out = tmp_path / "out"
  found = run(out, f"{planted}:train", "--against", f"{planted}:test", "--slices")
  copies = {kind: str(seed) for seed, kind in enumerate(("same", *COPIES, *CROPS))}
  pairs = {(seed, f"{kind}-{seed}") for kind, seed in copies.items()}
  assert ids(found, {"pixels"}) == {("0", "same-0")}
  exact = {("0", "same-0")} | {(copies[kind], f"{kind}-{copies[kind]}") for kind in COPIES}
  assert exact <= ids(found, {"phash"})
  assert ids(found, {"pixels", "phash", "crop"}) == pairs | {("v0", "vcrop-0")}
  assert ids(found, {"slice"}) == {("v1", "slice")}
  train = listed(out / "leakage.csv")
  assert set(train) == {*copies.values(), "v0", "v1", "99"}
  assert train["99"] == ["company"]
  assert set(listed(out / "leakage_eval.csv")) == {pair[1] for pair in pairs} | {"vcrop-0", "slice"}
  page = (out / "report.html").read_text()
  assert FOREIGN not in page and "&lt;img src=x" in page
  assert page.count("<article") == len(found["pairs"]) and "http" not in page.split("<main>")[1]
  assert "to leave out: 12 of" in capsys.readouterr().out


def test_the_trainer_leaves_them_out(planted, tmp_path, caplog):
  run(tmp_path / "out", f"{planted}:train", "--against", f"{planted}:test", "--by", "sample")
  path = tmp_path / "out" / "leakage.csv"
  gone = set(listed(path))
  with path.open("a") as file:
    file.write(f"{planted.name},train,nobody,,,\nanother,train,1,,,\n")
  caplog.set_level("INFO")
  data = FolderDataset(planted, (16, 16), (4, 8, 8), exclude=path)
  left = {data.samples("vqa", "train")[i].id for i in range(len(data.samples("vqa", "train")))}
  assert "99" in left and not gone & left
  assert {bad["id"] for bad in data.skipped} == gone
  assert f"{len(gone)} of 30 samples of {planted.name} are left out" in caplog.text
  assert f"lists 1 ids that {planted.name} does not have: nobody" in caplog.text


def test_groups_and_texts(tmp_path):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
  for seed in range(4):
    save(tmp_path / "a", f"{seed}.png", scan(seed))
  save(tmp_path / "b", "9.png", scan(9))
  asked = dict(question=SAME, answer="Yes")
  a = [
    row("0.png", "train", group="p", **asked),
    row("1.png", "test", group="p"),
    row("2.png", "test", group="q", question=SAME.upper(), answer=" yes"),
    {"images": "3.png", "split": "train", "question": "Q", "answer": "x", "id": "3"},
  ]
  write(tmp_path / "a", a)
  write(tmp_path / "b", [row("9.png", "test", group="p")])
  train, against = f"{tmp_path}/a:train", [f"{tmp_path}/a:test", f"{tmp_path}/b"]
  found = run(tmp_path / "one", train, "--against", *against)
  assert not found["pairs"]
  groups = {(g["reason"], g["group"]): [s["id"] for s in g["eval"]] for g in found["groups"]}
  assert groups == {("group", "p"): ["1"], ("group_name", "p"): ["9"]}
  assert [[s["id"] for s in text["eval"]] for text in found["texts"]] == [["2"]]
  assert set(listed(tmp_path / "one" / "leakage.csv")) == {"0"}
  found = run(tmp_path / "two", train, "--against", *against, "--exclude", "text")
  assert listed(tmp_path / "two" / "leakage.csv") == {"0": ["text"]}
  assert set(listed(tmp_path / "two" / "leakage_eval.csv")) == {"2"}


def test_unreadable_files_are_listed(tmp_path):
  save(tmp_path, "0.png", scan(0))
  (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
  write(tmp_path, [row("0.png", "train"), row("1.png", "test")])
  found = run(tmp_path / "out", f"{tmp_path}:train", "--against", f"{tmp_path}:test")
  assert [bad["id"] for bad in found["unreadable"]] == ["1"]
  assert "Not readable" in (tmp_path / "out" / "report.html").read_text()


def test_pictures_are_capped(tmp_path):
  for seed in range(6):
    save(tmp_path, f"{seed}.png", scan(seed % 3))
  rows = [row(f"{seed}.png", "train" if seed < 3 else "test") for seed in range(6)]
  write(tmp_path, rows)
  flags = (f"{tmp_path}:train", "--against", f"{tmp_path}:test", "--pictures", 2)
  found = run(tmp_path / "out", *flags)
  page = (tmp_path / "out" / "report.html").read_text()
  assert len(found["pairs"]) == 3 and page.count("<article") == 2
  assert "1 more pairs are in leakage.json" in page


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["{0}:train", "--against", "{0}:train"], "is on both sides"),
    (["{0}:train", "--against", "{0}:tset"], "has no split 'tset'; did you mean 'test'"),
    (["{0}/none", "--against", "{0}:test"], "is no data: give a folder with manifest.jsonl"),
    (["{0}:train", "--against", "{0}:test", "--exclude", "hash"], "did you mean 'phash'"),
    (["{0}:train", "--against", "{0}:test", "--tower", "{0}"], "has no config.json"),
  ],
)
def test_mistakes_are_told_in_one_line(planted, tmp_path, flags, message, capsys):
  argv = [flag.format(planted) for flag in flags]
  assert check_leakage.main([*argv, "--to", str(tmp_path / "out")]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_findings_are_not_overwritten(tmp_path, capsys):
  (tmp_path / "leakage.csv").write_text("mine")
  assert check_leakage.main(["a", "--against", "b", "--to", str(tmp_path)]) == 2
  assert "leakage.csv exists" in capsys.readouterr().err


def test_the_shipped_tower_is_the_configs():
  from configs.flamingo_med import get_config

  tower = get_config().model.tower.to_dict()
  plain = lambda value: json.loads(json.dumps(value))
  assert plain(embed.PHANTOM_FIELDS) == {
    k: v for k, v in plain(tower).items() if k in embed.PHANTOM_FIELDS
  }


@pytest.fixture
def tower(tmp_path):
  """A CLIP of random weights in open_clip's file, imported."""
  sizes = dict(width=64, layers=1, patch_size=4, image_size=8, mlp_ratio=2)
  section = open_clip.config_from_open_clip(dict(vision_cfg=sizes, quick_gelu=True))
  rng = np.random.default_rng(0)
  ours = {
    path: rng.normal(0, 0.1, leaf.shape).astype(np.float32)
    for path, leaf in abstract_leaves({"tower": section}).items()
  }
  theirs = to_theirs(under("tower", open_clip.mapping(section)), ours)
  file = tmp_path / "clip.safetensors"
  safetensors.numpy.save_file({k: np.ascontiguousarray(x) for k, x in theirs.items()}, file)
  assert import_weights.main(["open_clip", str(file), "--to", str(tmp_path / "clip")]) == 0
  return tmp_path / "clip"


@pytest.fixture
def prepared(tmp_path):
  """Folders of two builders; the second shows training images 0 and, scaled, 1 of the first."""
  source = tmp_path / "source"
  (source / "imgs").mkdir(parents=True)
  pictures = {("train", "en", i): scan(i) for i in range(6)}
  pictures |= {("test", "zh", 10): scan(0), ("test", "zh", 11): COPIES["half"](scan(1))}
  pictures |= {("test", "zh", i): scan(i) for i in (20, 21)}
  rows = {"train": [], "test": []}
  for (split, language, i), picture in pictures.items():
    save(source / "imgs", f"{i}.png", picture)
    asked = dict(qid=i, img_name=f"{i}.png", question=f"What is {i}?", answer="x")
    rows[split].append(
      {**asked, "q_lang": language, "answer_type": "OPEN", "content_type": "Organ"}
    )
  for split, listed in rows.items():
    (source / f"{split}.json").write_text(json.dumps(listed))
  names = ("slake_en", "slake_zh")
  for name in names:
    prepare(BUILDERS[name], source, tmp_path / name)
  return [tmp_path / name for name in names]


def test_an_imported_tower_and_prepared_folders(tower, prepared, tmp_path):
  train, evaluated = prepared
  flags = (f"{train}:train", "--against", evaluated, "--tower", tower, "--embedding", 0.9998)
  found = run(tmp_path / "out", *flags)
  copies = {("0", "10"), ("1", "11")}
  assert ids(found, {"embedding"}) == ids(found, {"pixels", "phash"}) == copies
  found = run(tmp_path / "alone", *flags, "--exclude", "embedding")
  path = tmp_path / "alone" / "leakage.csv"
  assert listed(path) == {"0": ["embedding"], "1": ["embedding"]}
  left = PreparedDataset(train, (16, 16), (4, 8, 8), exclude=path)
  assert left.splits == {"train": 4} and {row["id"] for row in left.skipped} == {"0", "1"}
  path = tmp_path / "alone" / "leakage_eval.csv"
  assert PreparedDataset(evaluated, (16, 16), (4, 8, 8), exclude=path).splits == {"test": 2}


def test_a_tower_that_takes_all_for_copies_is_refused(prepared, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(check, "_FEW", 10)
  flags = [f"{prepared[0]}:train", "--against", str(prepared[1]), "--embedding", "-1"]
  assert check_leakage.main([*flags, "--to", str(tmp_path / "out")]) == 2
  error = capsys.readouterr().err
  assert "more than 10 pairs of images alike by --embedding -1.0, too many to be copies" in error


def test_embeddings_of_the_shipped_tower():
  embedder = embed.TowerEmbedder()
  [part] = open_parts(["phantom:val"])
  samples = part.collection.splits["val"]
  media = [samples[i].media[0] for i in (0, 1, 0)]
  vectors = embedder(media[0].kind, np.stack([embedder.prepare(item) for item in media]))
  assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
  assert vectors[0] @ vectors[2] > 0.9999 > vectors[0] @ vectors[1]
