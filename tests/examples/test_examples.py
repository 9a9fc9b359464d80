"""The scripts in examples/, on made-up data laid out like the real."""

import importlib.util
import json
import pathlib
import sys

import nibabel
import numpy as np
import PIL.Image
import pytest

from medflax.data.export import convert_main
from medflax.data.folder import FolderDataset
from medflax.data.manifest import SPLITS

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def run(monkeypatch, name, source, target):
  spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  monkeypatch.setitem(sys.modules, name, module)
  spec.loader.exec_module(module)
  monkeypatch.setattr(sys, "argv", [f"{name}.py", "--from", str(source), "--to", str(target)])
  convert_main(module.__doc__, module.convert)


def snapshot(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(target):
  return [json.loads(line) for line in (target / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture
def medpix(tmp_path):
  source = tmp_path / "medpix"
  for folder in ("images", "vqa_templated"):
    (source / folder).mkdir(parents=True)
  planes = ["Axial", "Sagittal", "Coronal", "Transverse", "3D Reconstruction", "Photograph"]
  descriptions, questions = [], {"train": [], "dev": []}
  for i in range(60):
    case, image = f"MPX{i // 2:04}", f"MPX{i // 2:04}_synpic{i}"
    descriptions.append(
      {
        "Type": "MR" if i % 3 else "CT",
        "U_id": case,
        "image": image,
        "Description": {
          "Plane": planes[i % 6],
          "Modality": "MR" if i % 3 else "CT",
          "Caption": f"A lesion,\n{i} mm." + 50 * " or" if i % 2 else None,
        },
        "Location Category": "Head",
      }
    )
    questions["dev" if i >= 50 else "train"].append({"case_id": case})
    PIL.Image.fromarray(np.full((300, 20 + i), 4 * i, np.uint8)).save(
      source / "images" / f"{image}.jpg"
    )
  (source / "Descriptions.json").write_text(json.dumps(descriptions))
  for split, content in questions.items():
    (source / "vqa_templated" / f"{split}.json").write_text(json.dumps(content))
  return source


def test_medpix(monkeypatch, capsys, medpix, tmp_path):
  before, target = snapshot(medpix), tmp_path / "out" / "medpix"
  run(monkeypatch, "medpix_manifest", medpix, target)
  assert snapshot(medpix) == before
  by_id = {row["id"]: row for row in rows(target)}
  # Modality and, where there is one, caption but for photographs; plane of the four planes' names.
  assert len(by_id) == 50 + 20 + 40
  assert by_id["MPX0001_synpic3-plane"]["answer"] == "axial"
  assert by_id["MPX0001_synpic3-modality"]["answer"] == "CT"
  assert by_id["MPX0001_synpic3-caption"]["answer"] == "A lesion, 3 mm." + 36 * " or"
  closed = [row for row in by_id.values() if row["task"] != "caption"]
  assert all(row["answer"] in row["choices"] for row in closed)
  test = {row["group"] for row in by_id.values() if row["split"] == "test"}
  assert test == {f"MPX{case:04}" for case in range(25, 30)}
  with PIL.Image.open(target / by_id["MPX0001_synpic3-plane"]["images"][0]) as image:
    assert max(image.size) == 256
  data = FolderDataset(target, (8, 8), (4, 8, 8))
  assert data.tasks == ("vqa", "caption", "modality", "plane")
  out = capsys.readouterr().out
  assert "majority" in out
  assert " different ones" in out
  assert max(map(len, out.splitlines())) <= 100


@pytest.fixture
def hippocampus(tmp_path):
  """Twenty boxes, anterior (1) in front of posterior (2), some stored back to front."""
  source, rng = tmp_path / "task04", np.random.default_rng(0)
  for folder in ("imagesTr", "labelsTr"):
    (source / folder).mkdir(parents=True)
  for i in range(20):
    shape = tuple(rng.integers(6, 12, 3))
    mask = np.zeros(shape, np.uint8)
    mask[1 : 2 + i % 4, 1:3] = 2
    mask[1 : 2 + i // 5, 3:5] = 1
    volume = rng.random(shape).astype(np.float32) + 1 + mask
    affine = np.eye(4)
    if i % 2:  # the same anatomy, with the posterior end last in the file
      mask, volume, affine[1, 1] = mask[:, ::-1], volume[:, ::-1], -1
    for folder, array in (("imagesTr", volume), ("labelsTr", mask)):
      nibabel.save(nibabel.Nifti1Image(array, affine), source / folder / f"hippocampus_{i}.nii.gz")
  (source / "imagesTr" / "._hippocampus_1.nii.gz").touch()  # left by the archive
  return source


def test_hippocampus(monkeypatch, capsys, hippocampus, tmp_path):
  before, target = snapshot(hippocampus), tmp_path / "out"
  run(monkeypatch, "hippocampus_manifest", hippocampus, target)
  assert snapshot(hippocampus) == before
  found = rows(target)
  cases = {split: {r["group"] for r in found if r["split"] == split} for split in SPLITS}
  assert [len(cases[split]) for split in SPLITS] == [12, 2, 6]
  assert len(set.union(*cases.values())) == 20
  for split in SPLITS:
    answers = [r["answer"] for r in found if (r["split"], r["task"]) == (split, "direction")]
    assert answers.count("top") == answers.count("bottom") > 0
  data = FolderDataset(target, (8, 8), (12, 12, 12))
  assert data.tasks == ("vqa", "direction", "larger", "size")
  larger = {r["id"]: r["answer"] for r in found if r["task"] == "larger"}
  for name, answer in larger.items():
    i = int(name.split("_")[1].split("-")[0])
    assert answer == ("anterior" if i // 5 > i % 4 else "posterior")
  sizes = [r["answer"] for r in found if (r["split"], r["task"]) == ("train", "size")]
  assert set(sizes) == {"small", "medium", "large"}
  assert "majority" in capsys.readouterr().out


def test_the_anterior_part_is_where_the_exported_volume_shows_it(
  monkeypatch, hippocampus, tmp_path
):
  target = tmp_path / "out"
  run(monkeypatch, "hippocampus_manifest", hippocampus, target)
  data = FolderDataset(target, (8, 8), (12, 12, 12))
  for split in SPLITS:
    samples = data.samples("direction", split)
    for sample in (samples[i] for i in range(len(samples))):
      slices = sample.media[0].array[..., 0].astype(float)
      # Posterior voxels were made the brightest, anterior ones next.
      rows_of_posterior = np.argwhere(slices > 0.9 * slices.max())[:, 1].mean()
      rows_of_all = np.argwhere(slices > 0)[:, 1].mean()
      assert sample.answer == ("top" if rows_of_posterior > rows_of_all else "bottom")


@pytest.mark.parametrize("name", ["medpix", "hippocampus"])
def test_nothing_is_overwritten_and_mistakes_take_one_line(
  monkeypatch, capsys, tmp_path, request, name
):
  source, target = request.getfixturevalue(name), tmp_path / "target"

  def fails(source, target):
    with pytest.raises(SystemExit) as caught:
      run(monkeypatch, f"{name}_manifest", source, target)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message

  assert "--from needs" in fails(tmp_path / "nowhere", target)
  assert not target.exists()
  assert "inside the source" in fails(source, source / "out")
  target.mkdir()
  (target / "mine.txt").write_text("precious")
  assert "not an empty folder" in fails(source, target)
  assert [path.read_text() for path in target.iterdir()] == ["precious"]
