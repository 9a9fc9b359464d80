"""The official text files parse to their published counts.

`MEDFLAX_DATA` names a folder with vqa_rad_text/ (the 1,797 training rows of the public file, and
MEVF's trainset.json), slake_text/ (train and validate), iu_xray_text/ (the tables of Kaggle) and
medpix2/; without it these tests are skipped. Images are not needed.
"""

import collections
import os
import pathlib

import pytest

from medflax.data.builders import BUILDERS
from medflax.data.builders.base import Record
from medflax.data.builders.source import SourceFolder

ROOT = os.environ.get("MEDFLAX_DATA", "")
pytestmark = pytest.mark.skipif(not ROOT, reason="MEDFLAX_DATA names no folder of official files")


def parsed(name, folder):
  """Rows, records by split and by (split, task), and the reasons of rejected rows."""
  rows, splits, tasks, reasons = 0, collections.Counter(), collections.Counter(), []
  for items in BUILDERS[name].read(SourceFolder(pathlib.Path(ROOT, folder))):
    rows += 1
    for item in items:
      if isinstance(item, Record):
        splits[item.split] += 1
        tasks[item.split, item.task] += 1
      else:
        reasons.append(item.reason)
  return rows, splits, tasks, reasons


@pytest.mark.parametrize(
  ("name", "train", "val", "train_open", "val_open"),
  [("slake_en", 4919, 1053, 2976, 631), ("slake_zh", 4916, 1046, 2978, 624)],
)
def test_slake(name, train, val, train_open, val_open):
  _, splits, tasks, reasons = parsed(name, "slake_text")
  # One published question, the open one of qid 1622, has no answer.
  empty = 1 if name == "slake_en" else 0
  assert reasons == ["has an empty 'answer'"] * empty
  assert splits == {"train": train - empty, "val": val}
  assert tasks["train", "open"] == train_open - empty
  assert tasks["val", "open"] == val_open


def test_vqa_rad():
  _, splits, tasks, reasons = parsed("vqa_rad", "vqa_rad_text")
  assert splits == {"train": BUILDERS["vqa_rad"].published["train"]}
  assert tasks == {("train", "closed"): 1027, ("train", "open"): 770}
  assert reasons == []


def test_the_disjoint_split_of_vqa_rad_has_a_tenth_of_the_images():
  _, splits, _, reasons = parsed("vqa_rad_disjoint", "vqa_rad_text")
  assert splits.total() == 1797
  assert 0.05 < splits["test"] / 1797 < 0.15
  assert reasons == []


def test_mevf():
  _, splits, _, reasons = parsed("vqa_rad_mevf", "vqa_rad_text")
  assert splits == {"train": BUILDERS["vqa_rad_mevf"].published["train"]}
  assert reasons == []


def test_iu_xray():
  rows, _, tasks, reasons = parsed("iu_xray", "iu_xray_text")
  assert rows == BUILDERS["iu_xray"].published["rows"]
  by_task = collections.Counter()
  for (_, task), count in tasks.items():
    by_task[task] += count
  assert by_task == {"findings": 3337, "impression": 3820}
  assert {reason.split(" has ")[-1] for reason in reasons} == {"neither findings nor impression"}


def test_medpix():
  _, _, tasks, reasons = parsed("medpix", "medpix2")
  templates = ("modality", "plane", "organ", "abnormality", "contrast", "sequence")
  asked = collections.Counter(
    {split: sum(tasks[split, task] for task in templates) for split in ("train", "val")}
  )
  assert asked == {"train": 10940, "val": 1390}
  told = ("has the placeholder for a caption, no caption", "has an empty 'Caption'")
  assert all(reason.endswith(told) for reason in reasons)
