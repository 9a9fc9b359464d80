"""Archives that are still packed are pointed at, with the folder that they belong in."""

import io
import json
import tarfile
import zipfile

import pytest

from medflax.data.builders.archives import find_archives, unpack_hint
from medflax.utils import UserError


def pack(path, *members):
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".zip":
    with zipfile.ZipFile(path, "w") as archive:
      for name in members:
        archive.writestr(name, b"x")
  else:
    with tarfile.open(path, "w:gz") as archive:
      for name in members:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())


@pytest.mark.parametrize(
  ("archives", "wanted", "hint"),
  [
    ({}, "imgs/x1/source.jpg", ""),
    ({"imgs.zip": ["imgs/x1/source.jpg"]}, "imgs/x1/source.jpg", "imgs.zip where it is"),
    ({"imgs.zip": ["imgs/", "imgs/x1/a.jpg"]}, "imgs/x1/a.jpg", "imgs.zip where it is"),
    ({"images.zip": ["PMC1.jpg"]}, "images/PMC1.jpg", "images.zip into images/"),
    ({"NLMCXR_png.tgz": ["./CXR1.png"]}, "NLMCXR_png/CXR1.png", "NLMCXR_png.tgz into NLMCXR_png/"),
    ({"imgs.zip": ["x1/source.jpg"]}, "imgs/x1/source.jpg", "imgs.zip into imgs/"),
    ({"a/images.zip": ["figures/a.jpg"]}, "images/a.jpg", "a/images.zip where it is"),
    ({"files.tar.gz": ["files/a.jpg"]}, "files/a.jpg", "files.tar.gz where it is"),
    (
      {"test_images.zip": ["test/b.jpg"], "train_images.zip": ["train/a.jpg"]},
      "train_images/train/a.jpg",
      "train_images.zip into train_images/",
    ),
    ({"VQA-Med-2019/Train.zip": ["Train/a.jpg"]}, "a.jpg", "VQA-Med-2019/Train.zip where it is"),
    ({"Slake1.0.zip": ["Slake1.0/train.json"]}, "train.json", "Slake1.0.zip where it is"),
  ],
)
def test_the_archive_and_its_place(tmp_path, archives, wanted, hint):
  for name, members in archives.items():
    pack(tmp_path / name, *members)
  found = find_archives(tmp_path)
  assert found == sorted(archives)
  assert unpack_hint(tmp_path, found, wanted) == (hint and f"unpack {hint}")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x1f\x8b\x08broken"])
@pytest.mark.parametrize("name", ["images.zip", "images.tgz"])
def test_broken_archives_are_pointed_at_too(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  assert unpack_hint(tmp_path, [name], "images/a.jpg") == f"unpack {name} where it is"


def test_a_build_says_what_to_unpack(source, write, build):
  pack(source / "Slake1.0.zip", "Slake1.0/train.json")
  with pytest.raises(UserError, match=r"train\.json.* not found.*; unpack Slake1\.0\.zip where it"):
    build("slake_en")
  row = dict(qid=1, img_name="x1/source.jpg", question="Q?", answer="A", q_lang="en")
  row |= dict(answer_type="OPEN", content_type="Organ")
  write("train.json", json.dumps([row]))
  pack(source / "imgs.zip", "x1/source.jpg")
  with pytest.raises(
    UserError, match=r"'imgs/x1/source.jpg' does not exist; unpack imgs\.zip into imgs/"
  ):
    build("slake_en")
