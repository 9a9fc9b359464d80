"""MedPix 2.0 (Siragusa et al., 2025): CT and MR images with captions, and their cases.

Three kinds of questions: those of the templates, where `vqa_templated/` is there; each image's
caption; and about all images of a case (up to ten, as RadFM has it) what is seen and what it is,
given the patient's history. What a case does not tell ("N/A") is not asked.
"""

import collections
import re
from collections.abc import Iterator

from medflax.data.builders.base import (
  CLOSED,
  OPEN,
  Builder,
  Record,
  answer_type,
  hash_choice,
  images,
)
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE
from medflax.data.manifest import hash_split
from medflax.utils import UserError

MAX_IMAGES = 10
_SPLITS = {"train": "train", "dev": "val", "test": "test"}  # as they are called there, and here
_MISSING = ("", "n/a", "none")  # how a case says that it does not say
_PLACEHOLDER = "Replace this"  # what MedPix shows its authors where a caption is to be written
_CAPTION = (
  "What does this image show?",
  "Describe this image.",
  "Write a caption for this image.",
)
_CASE_QUESTIONS = {
  "findings": ("Findings", "What are the findings?"),
  "diagnosis": ("Case Diagnosis", "What is the diagnosis?"),
  "differential": ("Differential Diagnosis", "What is the differential diagnosis?"),
}


def _rows(source: SourceFolder) -> Iterator[Row]:
  suffix = ".png" if source.names("images/*.png") else ".jpg"
  splits, names = _official_splits(source), collections.defaultdict(dict)
  for official, split in _SPLITS.items():
    if source.has(f"vqa_templated/{official}.json"):
      yield from source.rows(f"vqa_templated/{official}.json", split)
  for row in source.rows("Descriptions.json"):
    case = str(row.fields.get("U_id", ""))
    names[case][str(row.fields.get("image", "")) + suffix] = None
    yield row.of(split=splits.get(case) or hash_split(case), suffix=suffix)
  for row in source.rows("Case_topic.json"):
    case = str(row.fields.get("U_id", ""))
    yield row.of(split=splits.get(case) or hash_split(case), images=[*names[case]][:MAX_IMAGES])


def _official_splits(source: SourceFolder) -> dict[str, str]:
  """The split of every case that the files name; others go by a hash."""
  splits = {}
  for official, split in _SPLITS.items():
    for pattern, field in (
      (f"splitted_dataset/descriptions_{official}*.jsonl", "U_id"),
      (f"vqa_templated/{official}.json", "case_id"),
    ):
      for name in source.names(pattern):
        splits |= {str(row.fields.get(field, "")): split for row in source.rows(name)}
  return splits


def _template(row: Row) -> Iterator[Record]:
  yield Record(
    id=f"template-{row.text('qid')}",
    split=row.split,
    task=row.text("question_type").lower(),
    question=row.text("question"),
    answer=row.text("answer"),
    group=row.text("case_id"),
    media=images(f"images/{row.text('image_name')}"),
    answer_type=answer_type(row, "answer_type"),
    meta={"organ": row.text("image_organ", optional=True)},
  )


def _caption(row: Row) -> Iterator[Record]:
  name, description = row.text("image"), row.within("Description")
  caption = description.text("Caption")
  if caption.startswith(_PLACEHOLDER):
    raise UserError(f"{name} has the placeholder for a caption, no caption")
  yield Record(
    id=f"caption-{name}",
    split=row.split,
    task="caption",
    question=hash_choice(_CAPTION, name),
    answer=caption,
    group=row.text("U_id"),
    media=images(f"images/{name}{row.text('suffix')}"),
    meta={
      "modality": description.text("Modality", optional=True),
      "plane": description.text("Plane", optional=True),
      "location": row.text("Location Category", optional=True),
    },
  )


def _case(row: Row) -> Iterator[Record]:
  case, told = row.text("U_id"), row.within("Case")
  media = images(*(f"images/{name}" for name in row.fields["images"]))
  history = told.text("History", optional=True)
  for task, (field, question) in _CASE_QUESTIONS.items():
    answer = re.sub(r"•\s*", "", told.text(field, optional=True))
    if media and answer.lower() not in _MISSING:
      has_history = history.lower() not in _MISSING
      yield Record(
        id=f"{task}-{case}",
        split=row.split,
        task=task,
        question=f"{history} {question}" if has_history else question,
        answer=answer,
        group=case,
        media=media,
      )


def _records(row: Row) -> Iterator[Record]:
  return _TABLES.get(row.table, _template)(row)


_TABLES = {"Descriptions.json": _caption, "Case_topic.json": _case}

MEDPIX = Builder(
  name="medpix",
  version="2.0",
  url="https://github.com/CHILab1/MedPix-2.0",
  licence="",
  layout="Descriptions.json, Case_topic.json and images/ (of MedPix-2-0/)",
  group="case",
  tasks=(
    *("modality", "plane", "organ", "abnormality", "contrast", "sequence"),
    *("caption", *_CASE_QUESTIONS),
  ),
  media=(IMAGE,),
  answers=(OPEN, CLOSED),
  published={"images": 2050},
  rows=_rows,
  records=_records,
)
