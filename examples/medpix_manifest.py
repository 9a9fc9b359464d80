"""MedPix 2.0 as a folder data set: modality, plane and caption of CT and MR images.

  python examples/medpix_manifest.py --from MEDPIX_DIR --to data/medpix
  python -m medflax.main --config=configs/flamingo_med.py:variant=small,data=folder \
    --config.data.root=data/medpix

MEDPIX_DIR holds Descriptions.json, images/ and vqa_templated/{train,dev}.json (Siragusa et al.,
"MedPix 2.0", 2025). The official dev cases become the test split; a tenth of the official training
cases, by a hash of their names, becomes the validation split. Groups are cases. Images are copied,
scaled down to at most 256 pixels a side. Photographs, drawings and gross pathology are left out;
views that are none of the three planes get no question about the plane, images without a caption
none to describe it. Of a caption of more than 40 words its first ones are kept.
"""

import collections
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import PIL.Image
import tqdm

from medflax.data.export import convert_main, start_folder, write_manifest
from medflax.utils import UserError

MAX_SIDE = 256
MAX_WORDS = 40  # of a caption
MODALITIES = ("CT", "MR")
PLANES = {
  "Axial": "axial",
  "Transverse": "axial",
  "Sagittal": "sagittal",
  "Coronal": "coronal",
}
NOT_A_SCAN = ("Photograph", "Gross Pathology", "Drawing")


def official_splits(source: pathlib.Path) -> dict[str, str]:
  """The split of every case: `train` and `val` from the official train, `test` from its dev."""
  splits = {}
  for official in ("train", "dev"):
    for question in _load(source / "vqa_templated" / f"{official}.json"):
      splits[question["case_id"]] = "test" if official == "dev" else "train"
  for case, split in splits.items():
    if split == "train" and hashlib.sha256(case.encode()).digest()[0] < 256 / 10:
      splits[case] = "val"
  return splits


def records(image: dict[str, Any], split: str) -> Iterator[dict[str, Any]]:
  """The manifest's rows about one entry of Descriptions.json."""
  description, name = image["Description"], image["image"]
  plane, modality = description["Plane"], description["Modality"]
  if plane in NOT_A_SCAN or modality in NOT_A_SCAN:
    return
  shared = {
    "images": [f"images/{name}.jpg"],
    "group": image["U_id"],
    "split": split,
    "location": image["Location Category"],
  }
  yield {
    "id": f"{name}-modality",
    "task": "modality",
    "question": "Which imaging modality is this, CT or MR?",
    "answer": image["Type"],
    "choices": MODALITIES,
    **shared,
  }
  if plane in PLANES:
    yield {
      "id": f"{name}-plane",
      "task": "plane",
      "question": "Which plane does this image show: axial, sagittal or coronal?",
      "answer": PLANES[plane],
      "choices": sorted(set(PLANES.values())),
      **shared,
    }
  if caption := " ".join((description.get("Caption") or "").split()[:MAX_WORDS]):
    yield {
      "id": f"{name}-caption",
      "task": "caption",
      "question": "What does this image show?",
      "answer": caption,
      **shared,
    }


def convert(source: pathlib.Path, target: pathlib.Path) -> list[dict[str, Any]]:
  """Writes the folder data set and returns the rows of its manifest."""
  splits = official_splits(source)
  images = _load(source / "Descriptions.json")
  rows = [row for image in images for row in records(image, splits[image["U_id"]])]
  target = start_folder(source, target)
  (target / "images").mkdir()
  for path in tqdm.tqdm(sorted({row["images"][0] for row in rows}), "images", disable=None):
    try:
      with PIL.Image.open(source / path) as image:
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        image.convert("RGB").save(target / path, quality=90)
    except OSError as error:
      raise UserError(f"{path} cannot be read ({error}); download the data set again") from None
  write_manifest(target, rows)
  left_out = len(images) - len({row["images"][0] for row in rows})
  print(f"{len(rows)} questions on {len(images) - left_out} images ({left_out} left out), ", end="")
  print(f"cases: {dict(collections.Counter(splits.values()))}")
  return rows


def _load(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text())
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror}); --from needs MedPix 2.0") from None


if __name__ == "__main__":
  convert_main(__doc__, convert)
