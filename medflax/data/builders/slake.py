"""SLAKE 1.0 (Liu et al., 2021): questions in English and Chinese, some on knowledge of a graph."""

import dataclasses
import functools
from collections.abc import Iterator

from medflax.data.builders.base import CLOSED, OPEN, Builder, Record, answer_type, images
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE

_TABLES = {"train": "train.json", "val": "validate.json", "test": "test.json"}


def _rows(source: SourceFolder, language: str) -> Iterator[Row]:
  for row in source.splits(_TABLES):
    # A row without a language would otherwise vanish from both data sets.
    if row.fields.get("q_lang", language) == language:
      yield row


def _records(row: Row) -> Iterator[Record]:
  image = row.text("img_name")
  kind = answer_type(row, "answer_type")
  yield Record(
    id=row.text("qid"),
    split=row.split,
    task=kind,
    question=row.text("question"),
    answer=row.text("answer"),
    group=image.split("/")[0],
    media=images(f"imgs/{image}"),
    topic=row.text("content_type", optional=True),
    answer_type=kind,
    meta={
      "language": row.text("q_lang"),
      "content_type": row.text("content_type", optional=True),
      "base_type": row.text("base_type", optional=True),
      "modality": row.text("modality", optional=True),
      "location": row.text("location", optional=True),
    },
  )


SLAKE_EN = Builder(
  name="slake_en",
  version="1.0",
  url="https://www.med-vqa.com/slake",
  licence="",
  layout="train.json, validate.json, test.json and imgs/ (of Slake1.0)",
  group="image",
  tasks=(OPEN, CLOSED),
  media=(IMAGE,),
  answers=(OPEN, CLOSED),
  published={"train": 4919, "val": 1053, "test": 1061},
  rows=functools.partial(_rows, language="en"),
  records=_records,
)
SLAKE_ZH = dataclasses.replace(
  SLAKE_EN,
  name="slake_zh",
  published={"train": 4916, "val": 1046, "test": 1033},
  rows=functools.partial(_rows, language="zh"),
)
