"""VQA-RAD (Lau et al., 2018): questions on radiology images of MedPix, by clinicians.

Three data sets of the same files. The official split shares images between training and test;
`vqa_rad_disjoint` gives all questions of one tenth of the images to the test instead, as
Med-Flamingo does. `vqa_rad_mevf` is the split of MEVF (Nguyen et al., 2019), which most tables of
results use: all phrasings for training, the same 451 test questions.
"""

import dataclasses
from collections.abc import Iterator

from medflax.data.builders.base import CLOSED, OPEN, Builder, Record, answer_type, images
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE
from medflax.data.manifest import hash_fraction

_IMAGES = ("VQA_RAD Image Folder", "images")
_TEST_SHARE = 0.1


def _official(source: SourceFolder) -> Iterator[Row]:
  folder = source.folder(*_IMAGES)
  for name in source.found("VQA_RAD Dataset Public*.json"):
    for row in source.rows(name):
      is_test = str(row.fields.get("phrase_type", "")).startswith("test")
      yield row.of(split="test" if is_test else "train", folder=folder)


def _disjoint(source: SourceFolder) -> Iterator[Row]:
  for row in _official(source):
    at = hash_fraction(str(row.fields.get("image_name", "")))
    yield row.of(split="test" if at < _TEST_SHARE else "train")


def _mevf(source: SourceFolder) -> Iterator[Row]:
  folder = source.folder(*_IMAGES)
  for row in source.splits({"train": "trainset.json", "test": "testset.json"}):
    yield row.of(folder=folder)


def _records(row: Row) -> Iterator[Record]:
  image = row.text("image_name")
  kind = answer_type(row, "answer_type")
  yield Record(
    id=f"{row.split}-{row.text('qid')}",
    split=row.split,
    task=kind,
    question=row.text("question"),
    answer=row.text("answer"),
    group=image,
    media=images(f"{row.text('folder')}/{image}"),
    topic=row.text("question_type", optional=True),
    answer_type=kind,
    meta={
      "question_type": row.text("question_type", optional=True),
      "organ": row.text("image_organ", optional=True),
      "phrase_type": row.text("phrase_type", optional=True),
    },
  )


VQA_RAD = Builder(
  name="vqa_rad",
  version="2018",
  url="https://osf.io/89kps",
  licence="CC0 1.0",
  layout="'VQA_RAD Dataset Public.json' and 'VQA_RAD Image Folder/'",
  group="image",
  tasks=(OPEN, CLOSED),
  media=(IMAGE,),
  answers=(OPEN, CLOSED),
  published={"train": 1797, "test": 451, "images": 314},
  rows=_official,
  records=_records,
)
VQA_RAD_DISJOINT = dataclasses.replace(
  VQA_RAD, name="vqa_rad_disjoint", rows=_disjoint, published={"records": 2248, "images": 314}
)
VQA_RAD_MEVF = dataclasses.replace(
  VQA_RAD,
  name="vqa_rad_mevf",
  url="https://github.com/aioz-ai/MICCAI19-MedVQA",
  layout="trainset.json, testset.json and images/",
  rows=_mevf,
  published={"train": 3064, "test": 451},
)
