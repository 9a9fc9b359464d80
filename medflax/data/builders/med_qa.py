"""MedQA (Jin et al., 2021): examination questions of the USMLE with five options; no images."""

from collections.abc import Iterator

from medflax.data.builders.base import CLOSED, Builder, Record
from medflax.data.builders.source import Row, SourceFolder

QUESTION = "question"


def _rows(source: SourceFolder) -> Iterator[Row]:
  folder = source.folder("data_clean/questions/US", "questions/US", ".")
  tables = {"train": "train.jsonl", "val": "dev.jsonl", "test": "test.jsonl"}
  return source.splits({split: f"{folder}/{name}" for split, name in tables.items()})


def _records(row: Row) -> Iterator[Record]:
  options = row.within("options")
  choices = tuple(options.text(letter) for letter in options.fields)
  name = f"{row.split}-{row.number}"
  yield Record(
    id=name,
    split=row.split,
    task=QUESTION,
    question=row.text("question"),
    answer=options.text(row.text("answer_idx")),
    group=name,
    topic=row.text("meta_info", optional=True),
    answer_type=CLOSED,
    choices=choices,
    meta={"letter": row.text("answer_idx"), "step": row.text("meta_info", optional=True)},
  )


MED_QA = Builder(
  name="med_qa",
  version="2021",
  url="https://github.com/jind11/MedQA",
  licence="MIT",
  layout="data_clean/questions/US/{train,dev,test}.jsonl",
  group="question",
  tasks=(QUESTION,),
  media=(),
  answers=(CLOSED,),
  published={"train": 10178, "val": 1272, "test": 1273},
  rows=_rows,
  records=_records,
)
