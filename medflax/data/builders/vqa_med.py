"""VQA-Med 2019, 2020 and 2021 (Ben Abacha et al.): radiology questions of ImageCLEF.

Tables are lines of `image|question|answer`, wherever the archives were unpacked to within the
folder. Reference answers of the test sets offer alternatives; the first is the answer, and all of
them are kept in `meta["answers"]`.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from medflax.data.builders.base import CLOSED, OPEN, Builder, Record, images, yes_no_type
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE

CATEGORIES = ("modality", "plane", "organ", "abnormality")
OTHER = "vqa"  # where the files do not tell the category


class Table(NamedTuple):
  """A file of questions, and another one of answers where they are apart."""

  questions: str
  columns: tuple[str, ...] = ("image", "question", "answer")
  answers: str = ""


_TEST = ("image", "question")
_2020 = (Table("**/VQAnswering_2020_Train_QA_pairs.txt"),)
_2020_VAL = (Table("**/VQAnswering_2020_Val_QA_Pairs.txt"),)
_TABLES: Mapping[str, Mapping[str, tuple[Table, ...]]] = {
  "2019": {
    "train": (Table("**/All_QA_Pairs_train.txt"),),
    "val": (Table("**/All_QA_Pairs_val.txt"),),
    "test": (
      Table(
        "**/VQAMed2019_Test_Questions_w_Ref_Answers.txt",
        ("image", "category", "question", "answer"),
      ),
    ),
  },
  "2020": {
    "train": _2020,
    "val": _2020_VAL,
    "test": (Table("**/*2020*Test*Questions*.txt", _TEST, "**/*2020*Test*Answers*.txt"),),
  },
  "2021": {
    "train": (*_2020, *_2020_VAL),
    "val": (Table("**/VQA-Med-2021-VQAnswering-Task1-New-ValidationSet.txt"),),
    "test": (
      Table(
        "**/Task1-VQA-2021-TestSet-Questions.txt",
        _TEST,
        "**/Task1-VQA-2021-TestSet-ReferenceAnswers.txt",
      ),
    ),
  },
}


def _rows(source: SourceFolder, year: str) -> Iterator[Row]:
  paths = source.stems("**/*.jpg")
  categories = _categories(source) if year == "2019" else {}
  for split, tables in _TABLES[year].items():
    for table in tables:
      answers = _answers(source, table)
      for name in source.found(table.questions):
        for row in source.rows(name, split, columns=table.columns, delimiter="|"):
          image, question = (row.fields.get(field, "").strip() for field in ("image", "question"))
          extra = {"path": paths.get(image, f"{image}.jpg")}
          if image in answers:
            extra["answer"] = answers[image]
          if (image, question) in categories:
            extra["category"] = categories[image, question]
          yield row.of(**extra)


def _answers(source: SourceFolder, table: Table) -> dict[str, str]:
  """Reference answers by image, where a file apart from the questions has them."""
  rows = (
    row
    for name in (source.found(table.answers) if table.answers else [])
    for row in source.rows(name, columns=("image", "answer"), delimiter="|")
  )
  return {row.fields["image"].strip(): row.fields["answer"] for row in rows if not row.problem}


def _categories(source: SourceFolder) -> dict[tuple[str, str], str]:
  """Category by image and question: the files C1_Modality_train.txt to C4_Abnormality_val.txt."""
  found = {}
  for number, category in enumerate(CATEGORIES, start=1):
    for name in source.names(f"**/C{number}_*.txt"):
      for row in source.rows(name, columns=("image", "question", "answer"), delimiter="|"):
        if not row.problem:
          found[row.fields["image"].strip(), row.fields["question"].strip()] = category
  return found


def _records(row: Row, task: str) -> Iterator[Record]:
  image = row.text("image")
  # "ct (w/contrast)#cta": alternatives, and what may be left out in brackets.
  answers = [part.strip() for part in re.split(r"[#|]", row.text("answer")) if part.strip()]
  yield Record(
    id=f"{row.split}-{row.table.rsplit('/', 1)[-1].removesuffix('.txt')}-{row.number}",
    split=row.split,
    task=row.text("category", optional=True).lower() or task,
    question=row.text("question"),
    answer=answers[0],
    group=image,
    media=images(row.text("path")),
    answer_type=yes_no_type(answers[0]),
    meta={"answers": answers},
  )


def _builder(
  year: str, version: str, layout: str, task: str, published: Mapping[str, int]
) -> Builder:
  return Builder(
    name=f"vqa_med_{year}",
    version=version,
    url=f"https://github.com/abachaa/VQA-Med-{year}",
    licence="CC BY 4.0",
    layout=layout,
    group="image",
    tasks=(*CATEGORIES, OTHER),
    media=(IMAGE,),
    answers=(OPEN, CLOSED),
    published=published,
    rows=functools.partial(_rows, year=year),
    records=functools.partial(_records, task=task),
  )


VQA_MED_2019 = _builder(
  "2019",
  "1",
  "the unpacked training, validation and test archives of VQA-Med-2019",
  OTHER,
  {"train": 12792, "val": 2000, "test": 500, "images": 4200},
)
VQA_MED_2020 = _builder(
  "2020",
  "1",
  "the unpacked archives of task 1 of VQA-Med-2020",
  "abnormality",
  {"train": 4000, "val": 500, "test": 500},
)
VQA_MED_2021 = _builder(
  "2021",
  "1",
  "the unpacked archives of task 1 of VQA-Med-2021 and the training archives of 2020",
  "abnormality",
  {"train": 4500, "val": 500, "test": 500},
)
